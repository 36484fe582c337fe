//! One sandbox, pass by pass, on a machine kept in memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use serde_json::json;

use crate::live::Live;
use crate::reconcile::activity::Activity;
use crate::reconcile::console::Consoles;
use crate::reconcile::meter::{self, Meter};
use crate::reconcile::pass::pass_blocking;
use crate::reconcile::turns::Turns;
use crate::reconcile::world::Again;
use crate::reconcile::{World, adopt};
use crate::store::edit::{self, Delete, Precondition, Put, Verb};
use crate::store::{Store, database_path};
use sodium_model::admission::Rules;
use sodium_model::{
    Allowed, DiskRules, InstancePhase, Isolation, Limits, Network, Owner, RestartPolicy, Sandbox,
    SandboxName, Span, Spec, State, Status, Time,
};
use sodium_runtime::fake::FakeDriver;
use sodium_runtime::fake::machine::Machine;
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::host::{Host, Paths};
use sodium_runtime::{Driver, Usage};
use sodium_sys::fault;

const BEGAN: Time = Time(1_000_000_000);
/// Of every sandbox in here.
const NAME: &str = "web";
/// When everything is planned and nothing is done.
const PLANNED: &str = "before a transaction";
/// More than from a start to its end.
const PASSES: usize = 20;

/// Nothing of a fake is followed, so nothing is ever spawned on it.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());

/// A daemon that passes when it is told to.
struct Bench {
    world: World,
    machine: Arc<Mutex<Machine>>,
    now: Time,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&database_path(dir.path())).unwrap();
        let machine: Arc<Mutex<Machine>> = Arc::default();
        machine.lock().unwrap().now = BEGAN;
        let fake = || FakeDriver::on(Arc::clone(&machine), store.epoch());
        let drivers: [(Isolation, Arc<dyn Driver>); 2] = [
            (Isolation::Bubblewrap, Arc::new(fake())),
            (Isolation::Gvisor, Arc::new(fake().dear())),
        ];
        let handle = RUNTIME.handle().clone();
        let consoles = Consoles::new(Arc::default(), handle, store.epoch(), None);
        let world = World {
            store,
            drivers: drivers.into(),
            host: None,
            rules: Arc::new(Live::new(rules())),
            boot_id: "boot".to_owned(),
            consoles: Arc::new(consoles),
            sessions: Arc::default(),
            activity: Activity::default(),
            meter: Meter::default(),
            turns: Turns::default(),
            idle_freeze: Live::default(),
        };
        Self { world, machine, now: BEGAN, _dir: dir }
    }

    /// Of a sandbox that runs.
    fn running(spec: Spec) -> Self {
        let bench = Self::new();
        put(&bench.world.store, spec);
        bench.rest();
        assert_eq!(bench.machine().running().len(), 1);
        bench
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    fn sandbox(&self) -> Arc<Sandbox> {
        self.world.store.snapshot().sandboxes.get(&name()).cloned().unwrap()
    }

    /// What is measured is more memory than it may nearly have.
    fn fill(&self) {
        let mut machine = self.machine();
        let full = Usage { memory_bytes: 63 << 20, ..Usage::default() };
        machine.used = machine.running().into_iter().map(|iid| (iid, full)).collect();
    }

    fn read(&mut self) {
        self.now = self.now.after(Span::seconds(60));
        meter::read_all(&self.world, self.now, false);
    }

    /// How often this was said.
    fn said(&self, reason: &str) -> usize {
        let snapshot = self.world.store.snapshot();
        snapshot.events.iter().filter(|event| event.reason == reason).count()
    }

    /// One pass, and then whatever the machine has to do.
    fn pass(&self) {
        pass_blocking(&self.world, &name(), self.now);
        self.machine().settle();
    }

    /// Work in which somebody does something as soon as that point is reached.
    fn meanwhile<T>(
        &self,
        point: &'static str,
        act: impl FnOnce(&Store) + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        let (store, mut act) = (self.world.store.clone(), Some(act));
        let hook = Box::new(move |reached: &'static str| {
            if reached == point
                && let Some(act) = act.take()
            {
                act(&store);
            }
            false
        });
        fault::with_hook(hook, work)
    }

    fn pass_and(&self, point: &'static str, act: impl FnOnce(&Store) + 'static) {
        self.meanwhile(point, act, || self.pass());
    }

    /// Everything there is to do now.
    fn rest(&self) {
        for _ in 0..PASSES {
            self.pass();
        }
    }
}

fn rules() -> Rules {
    Rules {
        default_isolation: Isolation::Bubblewrap,
        default_limits: Limits::DEFAULT,
        allowed: Allowed { network_enabled: true, ..Allowed::default() },
        images: BTreeMap::new(),
        default_policy: RestartPolicy::Always,
    }
}

fn name() -> SandboxName {
    SandboxName::try_from(NAME).unwrap()
}

fn spec() -> Spec {
    serde_json::from_value(json!({
        "isolation": "bubblewrap", "command": ["sleep", "1000"], "state": "running",
        "restart": {"policy": "always", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
        "stop": {"signal": "SIGTERM", "grace": "10s"}, "tty": false, "network": "none",
        "limits": {"memory_mb": 64, "cpu_percent": 100, "disk_mb": 0, "timeout_seconds": 0,
                   "max_processes": 16, "max_files": 256},
        "strict": false
    }))
    .unwrap()
}

fn put(store: &Store, spec: Spec) -> Arc<Sandbox> {
    let put = Put {
        name: name(),
        labels: BTreeMap::new(),
        spec,
        owner: Owner::Api,
        uid: None,
        precondition: Precondition::None,
    };
    let done = store.write_blocking(move |core| edit::put(core, put, BEGAN));
    Arc::clone(done.unwrap().unwrap().sandbox())
}

fn power(store: &Store, verb: Verb) -> Arc<Sandbox> {
    store.write_blocking(move |core| edit::power(core, NAME, verb, BEGAN)).unwrap().unwrap()
}

fn delete(store: &Store) -> Arc<Sandbox> {
    let how = Delete { uid: None, keep_workspace: false, force: false };
    store.write_blocking(move |core| edit::delete(core, NAME, how, BEGAN)).unwrap().unwrap()
}

/// What comes from the host's network would wake nobody, and bubblewrap costs nothing while it is idle.
#[test]
fn only_gvisors_sandboxes_without_the_hosts_network_are_frozen_while_idle() {
    for (isolation, network, is_frozen) in [
        (Isolation::Gvisor, Network::None, true),
        (Isolation::Gvisor, Network::Host, false),
        (Isolation::Bubblewrap, Network::None, false),
    ] {
        let mut bench = Bench::running(Spec { isolation, network, ..spec() });
        bench.world.idle_freeze.set(Some(Span::seconds(60)));
        // The first look only finds out how things are.
        for _ in 0..3 {
            bench.now = bench.now.after(Span::seconds(3_600));
            bench.rest();
        }
        let groups: Vec<bool> = bench.machine().groups.values().copied().collect();
        assert_eq!(groups, [is_frozen], "{isolation:?}, network {network:?}");
    }
}

#[test]
fn a_status_that_speaks_of_an_older_wish_is_not_published() {
    let wishes: [fn(&Store) -> Arc<Sandbox>; 2] = [
        |store| power(store, Verb::Start),
        |store| put(store, Spec { tty: true, state: State::Stopped, ..spec() }),
    ];
    for wish in wishes {
        let bench = Bench::new();
        put(&bench.world.store, Spec { state: State::Stopped, ..spec() });
        bench.pass_and(PLANNED, move |store| drop(wish(store)));
        // That it is to stay stopped is true of what it was.
        assert_eq!(bench.sandbox().status, Status::default());
        bench.rest();
        let now = bench.sandbox();
        let told = (now.status.observed_generation, now.status.observed_request);
        assert_eq!(told, (now.generation, now.power.request));
    }
}

#[test]
fn nothing_is_started_once_something_else_is_wished_for() {
    let wishes: [fn(&Store) -> Arc<Sandbox>; 4] = [
        |store| power(store, Verb::Stop),
        |store| power(store, Verb::Kill),
        |store| put(store, Spec { state: State::Stopped, ..spec() }),
        delete,
    ];
    for wish in wishes {
        let bench = Bench::new();
        put(&bench.world.store, spec());
        bench.pass_and(PLANNED, move |store| drop(wish(store)));
        assert_eq!(bench.machine().truth.starts, 0);
        assert_eq!(bench.sandbox().instance, None);
        bench.rest();
        assert_eq!(bench.machine().truth.starts, 0);
    }
}

#[test]
fn what_is_to_end_hears_of_it_when_the_store_has_it() {
    let bench = Bench::running(spec());
    power(&bench.world.store, Verb::Stop);
    let phase = Rc::new(Cell::new(None));
    let seen = Rc::clone(&phase);
    // The driver is asked.
    bench.pass_and("stop", move |store| {
        let snapshot = store.snapshot();
        let live = snapshot.sandboxes.get(&name()).and_then(|one| one.live());
        seen.set(live.map(|live| live.phase));
    });
    assert_eq!(phase.get(), Some(InstancePhase::Stopping));
}

#[test]
fn what_was_to_end_runs_on_if_that_is_wished_for_before_it_is_told() {
    let bench = Bench::running(spec());
    let before = bench.machine().running();
    put(&bench.world.store, Spec { state: State::Stopped, ..spec() });
    bench.pass_and(PLANNED, |store| drop(put(store, spec())));
    assert_eq!(bench.machine().running(), before);
    bench.rest();
    assert_eq!(bench.machine().running(), before);
    let now = bench.sandbox();
    assert_eq!((now.status.observed_generation, now.history.restarts), (3, 0));
}

#[test]
fn alarms_of_the_last_instance_do_not_silence_those_of_the_next() {
    let mut bench = Bench::running(spec());
    bench.fill();
    bench.read();
    bench.read();
    assert_eq!(bench.said("MemoryNearLimit"), 1);
    // It is another one before anybody has looked again.
    let before = bench.machine().running();
    power(&bench.world.store, Verb::Restart);
    bench.rest();
    assert_ne!(bench.machine().running(), before);
    bench.fill();
    bench.read();
    assert_eq!(bench.said("MemoryNearLimit"), 2);
}

/// Its shim is there before it listens. That is no failure, and nothing to wait a second for.
#[test]
fn what_is_to_end_before_its_shim_listens_is_told_as_soon_as_it_does() {
    let wishes: [fn(&Store) -> Arc<Sandbox>; 3] = [
        |store| power(store, Verb::Stop),
        delete,
        |store| put(store, Spec { limits: Limits { memory_mb: 32, ..spec().limits }, ..spec() }),
    ];
    for wish in wishes {
        let bench = Bench::new();
        put(&bench.world.store, spec());
        pass_blocking(&bench.world, &name(), bench.now);
        wish(&bench.world.store);
        let again = pass_blocking(&bench.world, &name(), bench.now);
        assert!(matches!(again, Again::In(span) if span < Span(50)), "{again:?}");
    }
}

/// Its directory would be removed as what is left of something that nobody knows.
#[test]
fn what_is_started_between_two_looks_at_host_and_store_is_not_unexplained() {
    let started = Bench::running(spec()).sandbox();
    let iid = started.live().unwrap().iid.clone();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let paths = Paths { run: at("run"), state: at("state"), shim: at("nothing") };
    let workspaces = Workspaces::of(&at("sandboxes"), false, &DiskRules::default());
    let host = Host::open(paths, workspaces, 1 << 20, 1).unwrap();
    let run_dir = at("run").join("i").join(iid.as_str());
    let start = move |store: &Store| {
        store.write_blocking(move |core| core.put(Sandbox::clone(&started))).unwrap();
        std::fs::create_dir(&run_dir).unwrap();
    };
    let bench = Bench::new();
    let look = || adopt::unexplained(&host, &bench.world.store).0;
    let found = bench.meanwhile("between host and store", start, look);
    host.cgroups.remove();
    assert_eq!((found, host.residues()), (vec![], vec![iid]));
}
