//! The daemon, composed: locks, store, drivers, loop, files, listeners; and their orderly end.
//!
//! The API is up before anything is adopted, and nothing here waits for a sandbox. Ending the daemon
//! ends no sandbox: their shims go on, and the next daemon adopts them.

pub mod ids;
mod port;
mod reload;
pub mod uninstall;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::api::{self, Api};
use crate::config::{Config, StoreKind};
use crate::desired::watch::{Source, Watch};
use crate::desired::write::Writer;
use crate::live::Live;
use crate::reconcile::activity::Activity;
use crate::reconcile::console::Consoles;
use crate::reconcile::meter;
use crate::reconcile::queue::Queue;
use crate::reconcile::turns::Turns;
use crate::reconcile::{self, Handle, World, adopt, warm};
use crate::store::{Remains, Store, database_path};
use sodium_model::admission::Rules;
use sodium_model::{Isolation, Level, RestartPolicy, Sandbox, Span, Time};
use sodium_runtime::Driver;
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::Supervisor;
use sodium_runtime::supervise::host::{self, Host, Paths};
use sodium_sys::error::chain;
use sodium_sys::lock::{self, Lock};
use sodium_sys::trust::TrustError;
use sodium_sys::{clock, mount, own, path, service, socket, spawn};

use port::Port;
use reload::Reload;

/// Of the state directory, which has the token in it.
pub const STATE_MODE: u32 = 0o700;
/// Threads for HTTP, consoles and the loop's waiting.
const WORKER_COUNT_MAX: usize = 4;
/// Threads for passes and other work that blocks.
const BLOCKING_COUNT_MAX: usize = 32;
/// How long a platform of gVisor is given to run a program: so at first, and at last.
const PLATFORM_WITHIN: std::time::Duration = std::time::Duration::from_secs(15);
const PLATFORM_WITHIN_MAX: std::time::Duration = std::time::Duration::from_secs(240);
/// How often expired workspaces are looked for.
const EXPIRE_EVERY: std::time::Duration = std::time::Duration::from_secs(600);

/// What admission goes by under this configuration.
pub fn rules(config: &Config) -> Rules {
    let (images, bad) = crate::image::load(&config.images_path);
    for bad in bad {
        warn!(path = ?bad.path, why = bad.message, "image file left out");
    }
    Rules {
        default_isolation: config.isolation,
        default_limits: config.default_limits,
        allowed: config.allowed.clone(),
        images,
        default_policy: RestartPolicy::OnFailure,
    }
}

/// Runs until asked to end. `path` is where the configuration came from, and is read again on SIGHUP.
pub fn run(config: Config, path: PathBuf) -> anyhow::Result<()> {
    spawn::forget_umask();
    let port = Port::take(&config);
    spawn::tune_allocator();
    spawn::raise_open_files();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKER_COUNT_MAX))
        .max_blocking_threads(BLOCKING_COUNT_MAX)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()
        .context("start the runtime")?;
    let locks = (prepare(&config)?, ids::take(config.ids)?);
    let done = runtime.block_on(serve(config, path, port));
    // Requests that go on, such as log followers, end with the runtime.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    // Work that was not waited for goes on until the process ends, and so long nobody else may begin.
    std::mem::forget(locks);
    done
}

/// Directories and locks, before anything else is touched.
fn prepare(config: &Config) -> anyhow::Result<[Lock; 3]> {
    let locks = lock_places(config)?;
    if sodium_sys::is_root()
        && let Err(error) = mount::allow_exec(&config.run_path)
    {
        warn!(
            error = chain(&error),
            "nothing can be run from the run directory: sandboxes will not start"
        );
    }
    Ok(locks)
}

fn lock_places(config: &Config) -> anyhow::Result<[Lock; 3]> {
    let owned = [
        (&config.state_path, STATE_MODE, "state_path"),
        // What sandboxes are shown lies in the run directory, and gVisor walks there as nobody.
        (&config.run_path, own::PASSABLE, "run_path"),
        // What tenants make of the modes of their own files is then of no use to anybody else on the host.
        (&config.sandboxes_path, own::PRIVATE, "sandboxes_path"),
    ];
    for (dir, mode, key) in owned {
        claim(dir, mode, key)?;
    }
    for (index, (dir, _, key)) in owned.iter().enumerate() {
        let same = |other: &&(&PathBuf, u32, &str)| {
            fs::canonicalize(other.0).ok() == fs::canonicalize(dir).ok()
        };
        if let Some((_, _, other)) = owned[..index].iter().find(same) {
            bail!(
                "\"{key}\" and \"{other}\" in config.json are one directory, {}: give each its own",
                dir.display()
            );
        }
    }
    let [state, run, sandboxes] = owned.map(|(dir, _, key)| take(dir, key));
    Ok([state?, run?, sandboxes?])
}

/// Has the directory under this key of config.json be there and be ours.
pub fn claim(dir: &Path, mode: u32, key: &str) -> anyhow::Result<()> {
    own::claim(dir, mode).map_err(|error| match error {
        TrustError::Distrusted(why) => {
            anyhow!("{why}; or name another directory as \"{key}\" in config.json")
        }
        TrustError::Unreadable(source) => {
            anyhow::Error::new(source).context(format!("make {} (\"{key}\")", dir.display()))
        }
    })
}

/// Locks a directory that only one daemon may use at a time, under this key of config.json.
pub fn take(dir: &Path, key: &str) -> anyhow::Result<Lock> {
    let path = dir.join("lock");
    match lock::try_take(&path).with_context(|| format!("lock {}", dir.display()))? {
        Some(lock) => Ok(lock),
        None => bail!(
            "another sodiumd (pid {}) uses {}; stop it, or give this one its own \"{key}\" in config.json",
            lock::holder(&path),
            dir.display()
        ),
    }
}

async fn serve(config: Config, path: PathBuf, mut port: Port) -> anyhow::Result<()> {
    let (token, token_path) = token(config.token.as_deref(), &config.state_path)?;
    let tcp = port.listen().await;
    let bound = tcp.as_ref().ok().and_then(port::Doors::address);
    let local = local_listener(&config.socket())?;
    let store = open_store(&config)?;
    let queue = Arc::new(Queue::default());
    let rules = Arc::new(Live::new(rules(&config)));
    store.bound(config.allowed.totals);
    let world = Arc::new(world(&config, store.clone(), &rules, &queue)?);
    let handle = Handle::new(Arc::clone(&world), Arc::clone(&queue));
    let (watch, watching) = Watch::start(source(&config, &store, &rules, handle.clone()));
    let declare = match config.store {
        StoreKind::Sqlite => api::Declare::Sqlite,
        StoreKind::Files => api::Declare::Files(Arc::new(Writer::new(&config.desired_path))),
    };
    let api = Arc::new(Api {
        store,
        handle,
        rules,
        auth: api::Auth::new(token),
        tickets: api::Tickets::default(),
        declare,
        watch: watch.clone(),
        bounds: Live::new(config.bounds.clone()),
        load: api::Load::default(),
        audit: api::Audit::default(),
        about: about(bound),
        clock: clock::wall_ms,
        running: TaskTracker::new(),
    });
    let running = api.running.clone();
    let missing = port.missing(&tcp, &api.store).await;
    greet(&config, (bound, missing.as_deref()), &token_path);
    let shutdown = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    let undo = Arc::new(Live::new(config.workspace_undo));
    tasks.spawn(port.serve(tcp, Arc::clone(&api), shutdown.clone()));
    tasks.spawn(serve_on(local, Arc::clone(&api), true, shutdown.clone()));
    let (audited, auditing) = audit_task(&api);
    tasks.spawn(loop_task(Arc::clone(&world), Arc::clone(&queue), shutdown.clone()));
    tasks.spawn(warm_task(Arc::clone(&world), shutdown.clone()));
    tasks.spawn(meter_task(Arc::clone(&world), shutdown.clone()));
    tasks.spawn(expire_task(Arc::clone(&world), Arc::clone(&undo), shutdown.clone()));
    tasks.spawn(watchdog_task(world.store.clone(), queue, shutdown.clone()));
    let has_token = config.token.is_some();
    let mut reload = Reload { path, started_with: config, api, world, undo, has_token };
    told(service::Told::Ready(match missing {
        None => "serving",
        Some(_) => "serving the local socket alone: the API has no port",
    }));
    let ended = tokio::select! {
        why = obey_signals(&mut reload) => why,
        // No task ends by itself; one that does takes the daemon with it.
        done = tasks.join_next() => Err(anyhow::anyhow!("a task ended unexpectedly: {done:?}")),
    };
    told(service::Told::Stopping);
    info!("shutting down; sandboxes keep running and are adopted on restart");
    shutdown.cancel();
    watch.stop();
    wind_down(tasks, &running).await;
    // What has been done until here has its event.
    audited.cancel();
    let _ = auditing.await;
    // The thread ends with its present scan.
    let _ = reconcile::blocking(move || watching.join()).await;
    ended
}

/// What the directory of specs is to the rest.
fn source(config: &Config, store: &Store, rules: &Arc<Live<Rules>>, handle: Handle) -> Source {
    Source {
        root: config.desired_path.clone(),
        store: store.clone(),
        rules: Arc::clone(rules),
        clock: clock::wall_ms,
        changed: Box::new(move |name| handle.look_at(name)),
    }
}

fn about(address: Option<SocketAddr>) -> api::About {
    api::About {
        version: env!("CARGO_PKG_VERSION"),
        started_at_ms: clock::boot_ms(),
        address: Arc::new(Live::new(address)),
        boot_ms: clock::boot_ms,
    }
}

/// Lets what has begun come to its end, for a while.
async fn wind_down(mut tasks: tokio::task::JoinSet<anyhow::Result<()>>, running: &TaskTracker) {
    running.close();
    let orderly = tokio::time::timeout(std::time::Duration::from_secs(5), async {
        let ended = async { while tasks.join_next().await.is_some() {} };
        tokio::join!(ended, running.wait())
    });
    if orderly.await.is_err() {
        warn!("some requests did not end in time and were cut off");
    }
}

/// Tells the service manager. One that cannot be told is not there.
fn told(what: service::Told<'_>) {
    if let Err(error) = service::tell(what) {
        debug!(error = chain(&error), "the service manager was not told");
    }
}

/// Until asked to end; asked to, reads the configuration again.
async fn obey_signals(reload: &mut Reload) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    loop {
        // Each arm only waits.
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => (),
        }
        told(service::Told::Reloading);
        reload.reload();
        told(service::Told::Ready("serving"));
    }
}

/// Tells the service manager that everything still moves, if it wants to know: that the loop comes round
/// and the store answers.
async fn watchdog_task(
    store: Store,
    queue: Arc<Queue>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(within) = service::watchdog() else {
        shutdown.cancelled().await;
        return Ok(());
    };
    loop {
        let moves = async {
            let _ = queue.pulse().await;
            // A disk that refuses is no reason to be ended; one that never answers is.
            let _ = store.write(|_| Ok(())).await;
        };
        if tokio::time::timeout(within / 2, moves).await.is_ok() {
            told(service::Told::Alive);
        } else {
            error!(
                "reconcile loop or store unresponsive; withholding the keep-alive of the service manager"
            );
        }
        // Both arms only wait.
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(within / 3) => (),
        }
    }
}

/// The store; if it was put together again, that is said here, in an event, and by /health.
fn open_store(config: &Config) -> anyhow::Result<Store> {
    let (path, now) = (database_path(&config.state_path), Time(clock::wall_ms()));
    let store = Store::open_or_rescue(&path, || host::records(&config.run_path), now)?;
    if let Some(rescued) = &store.snapshot().rescued {
        error!(at = %rescued.at, "{rescued}");
        let message = rescued.to_string();
        if rescued.at == now {
            store.write_blocking(move |core| {
                core.event(None, Level::Warning, ("StoreRebuilt", message), now)
            })?;
        }
    }
    Ok(store)
}

async fn serve_on<L: api::Doorway>(
    listener: L,
    api: Arc<Api>,
    trusted: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = api::router(Arc::clone(&api), trusted);
    api::serve(listener, api, router, shutdown).await;
    Ok(())
}

async fn loop_task(
    world: Arc<World>,
    queue: Arc<Queue>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ended = Arc::clone(&world);
    reconcile::blocking(move || adopt::end_later_blocking(&ended)).await;
    let swept = Arc::clone(&world);
    let sweeping = tokio::spawn(reconcile::blocking(move || adopt::sweep_blocking(&swept)));
    reconcile::run(world, queue, shutdown, clock::wall_ms).await;
    sweeping.await.context("sweep")
}

/// Ends by a token of its own, as the last.
fn audit_task(api: &Arc<Api>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let ends = CancellationToken::new();
    (ends.clone(), tokio::spawn(api::audit(Arc::clone(api), ends)))
}

async fn warm_task(world: Arc<World>, shutdown: CancellationToken) -> anyhow::Result<()> {
    warm::run(world, shutdown).await;
    Ok(())
}

async fn meter_task(world: Arc<World>, shutdown: CancellationToken) -> anyhow::Result<()> {
    meter::run(world, shutdown, clock::wall_ms).await;
    Ok(())
}

async fn expire_task(
    world: Arc<World>,
    undo: Arc<Live<Span>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let (world, keep) = (Arc::clone(&world), undo.get().0);
        let expired = reconcile::blocking(move || match &world.host {
            Some(host) => host.workspaces.expire(clock::wall_ms(), keep),
            None => Ok(()),
        });
        if let Err(error) = expired.await {
            warn!(error = chain(&error), "old workspaces not removed");
        }
        // Both arms only wait.
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(EXPIRE_EVERY) => (),
        }
    }
}

/// Which ids anything on the host has: whoever was given one next would have that, too.
fn remains(host: &Arc<Host>) -> Remains {
    let host = Arc::clone(host);
    Box::new(move |ids| {
        if !sodium_sys::is_root() {
            return BTreeSet::new();
        }
        let mut found = host.ids_in_use(ids);
        found.extend(host.workspaces.owners(ids));
        found
    })
}

fn world(
    config: &Config,
    store: Store,
    rules: &Arc<Live<Rules>>,
    queue: &Arc<Queue>,
) -> anyhow::Result<World> {
    let paths = Paths {
        run: config.run_path.clone(),
        state: config.state_path.clone(),
        shim: shim_path()?,
    };
    let workspaces = Workspaces::open(&config.sandboxes_path, sodium_sys::is_root(), &config.disk)?;
    if let Err(error) = workspaces.end_trial() {
        warn!(error = chain(&error), "what a daemon before this one tried is still there");
    }
    let host = Host::open(paths, workspaces, config.console_bytes, store.epoch())?;
    let host = Arc::new(host.with_ids(config.ids).with_timer_slack(config.gvisor_timer_slack));
    store.give_ids(config.ids, remains(&host))?;
    let (program, platform) = (config.gvisor_program.as_deref(), config.gvisor_platform);
    let all = [
        Supervisor::bubblewrap(Arc::clone(&host)),
        Supervisor::process(Arc::clone(&host)),
        Supervisor::gvisor(Arc::clone(&host), program, platform),
    ];
    let begin = |one| begin(Arc::new(one), config.isolation, &store, queue);
    let drivers: BTreeMap<Isolation, Arc<dyn Driver>> = all.into_iter().map(begin).collect();
    let runtime = tokio::runtime::Handle::current();
    let consoles =
        Consoles::new(Arc::clone(queue), runtime, store.epoch(), Some(Arc::clone(&host)));
    Ok(World {
        store,
        drivers,
        host: Some(host),
        rules: Arc::clone(rules),
        boot_id: clock::boot_id(),
        consoles: Arc::new(consoles),
        sessions: Arc::default(),
        activity: Activity::default(),
        meter: meter::Meter::default(),
        turns: Turns::default(),
        idle_freeze: Live::new(config.gvisor_idle_freeze),
    })
}

/// A driver, of which it may take a while to find out how it works here; whoever waits for that is looked at again then.
fn begin(
    driver: Arc<Supervisor>,
    usual: Isolation,
    store: &Store,
    queue: &Arc<Queue>,
) -> (Isolation, Arc<dyn Driver>) {
    let isolation = driver.isolation();
    if driver.recall() {
        match driver.runtime() {
            Err(reason) if isolation == usual => {
                warn!(isolation = isolation.as_str(), reason, "runtime unavailable");
            }
            // One that nobody has to have.
            Err(reason) => info!(isolation = isolation.as_str(), reason, "runtime unavailable"),
            Ok(_) => (),
        }
        return (isolation, driver);
    }
    let (found, store, queue) = (Arc::clone(&driver), store.clone(), Arc::clone(queue));
    let find_out = move || {
        let mut within = PLATFORM_WITHIN;
        while !found.find_out(within) {
            let reason = found.not_yet().unwrap_or_default();
            info!(isolation = isolation.as_str(), reason, "runtime slow to start, trying again");
            within = (within * 2).min(PLATFORM_WITHIN_MAX);
        }
        match found.runtime() {
            Ok(runtime) => info!(isolation = isolation.as_str(), runtime, "runtime available"),
            Err(reason) => warn!(isolation = isolation.as_str(), reason, "runtime unavailable"),
        }
        let waits = |sandbox: &&Arc<Sandbox>| sandbox.spec.isolation == isolation;
        for sandbox in store.snapshot().sandboxes.values().filter(waits) {
            queue.push(&sandbox.name);
        }
    };
    // A thread of its own: one that hangs must not keep a sandbox waiting.
    let name = isolation.as_str().to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(find_out);
    drop(thread.expect("a thread can be started at start-up"));
    (isolation, driver)
}

/// The shim lies beside the daemon.
fn shim_path() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find our own program")?;
    let shim = own.with_file_name("sodium-shim");
    if !shim.is_file() {
        bail!("{} is missing; install it beside {}", shim.display(), own.display());
    }
    Ok(shim)
}

/// The configured token, or one made at the first start and kept.
fn token(configured: Option<&str>, state: &Path) -> anyhow::Result<(String, PathBuf)> {
    let path = state.join("token");
    if let Some(token) = configured {
        return Ok((token.to_owned(), path));
    }
    if let Ok(text) = fs::read_to_string(&path)
        && !text.trim().is_empty()
    {
        return Ok((text.trim().to_owned(), path));
    }
    let token = api::secret().map_err(|error| anyhow::anyhow!("make a token: {error}"))?;
    path::write_durably(&path, format!("{token}\n").as_bytes())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("protect the token")?;
    Ok((token, path))
}

fn local_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let listener = socket::listen(path)?;
    UnixListener::from_std(listener).context("listen on the local socket")
}

/// Says where to look. To people, so not as log lines.
fn greet(config: &Config, (bound, missing): (Option<SocketAddr>, Option<&str>), token_path: &Path) {
    let token = match &config.token {
        Some(_) => "the \"token\" of config.json".to_owned(),
        None => format!("$(cat {})", token_path.display()),
    };
    let lines = [
        format!("sodiumd {} is up", env!("CARGO_PKG_VERSION")),
        match bound {
            Some(at) => format!("  API       http://{at}   Authorization: Bearer {token}"),
            None => {
                format!("  API       not yet: {}", missing.unwrap_or("its address is not known"))
            }
        },
        format!("  specs     {}/*.yaml", config.desired_path.display()),
        format!("  state     {}", config.state_path.display()),
        "  look      sodiumd get · sodiumd logs NAME -f · sodiumd events".to_owned(),
    ];
    // Nobody reads it? Then nobody misses it.
    let _ = io::Write::write_all(&mut io::stderr(), format!("{}\n", lines.join("\n")).as_bytes());
}
