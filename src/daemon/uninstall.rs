//! Takes away what daemons of one configuration have made on this host.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::config::Config;
use crate::daemon::{ids, lock_places};
use crate::store::{Store, database_path};
use sodium_model::{Iid, Observed, Time};
use sodium_runtime::storage::volume::unmount_all;
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::Supervisor;
use sodium_runtime::supervise::host::{Host, Paths};
use sodium_runtime::{Driver, StopOrder};
use sodium_sys::disk::walk;
use sodium_sys::error::chain;
use sodium_sys::lock::Lock;
use sodium_sys::{self as sys, SysError, clock, ids as tables, mount};

/// How long all sandboxes together may take to be gone, once they are killed by their shims, and by us.
const ENDED_WITHIN: Duration = Duration::from_secs(10);
const GONE_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// A configuration of which nothing runs any more. No daemon begins with it as long as this is there.
#[derive(Debug)]
pub struct Ended {
    places: Places,
    _locks: [Lock; 3],
}

/// The directories, without links.
#[derive(Debug)]
struct Places {
    run: PathBuf,
    state: PathBuf,
    sandboxes: PathBuf,
}

/// Ends what still runs, and takes away cgroups, mounts, loop devices and the run directory. Until it has looked that
/// nothing is left, it says what is.
pub fn uninstall(config: &Config, say: &mut dyn FnMut(&str)) -> anyhow::Result<Ended> {
    let locks = lock_places(config).context(
        "nothing was taken away; if a daemon runs: \"sodiumd drain\", then \"systemctl stop sodiumd\" or Ctrl-C",
    )?;
    let places = Places::of(config)?;
    // What was stopped for this runs again under the next daemon. One that cannot be told so can be by its operator.
    if let Err(error) = undrain(&places.state) {
        say(&format!("the store does not take that sandboxes may run again: {error:#}"));
    }
    let ended = end_sandboxes(config, &places)?;
    if ended > 0 {
        say(&format!("ended {ended} sandboxes"));
    }
    unmount(&places).context("unmount what is below sandboxes_path and run_path")?;
    let left = mounts(&places);
    if !left.is_empty() {
        bail!("still mounted: {left:?}; end who uses it, or reboot, and try again");
    }
    remove(&places.run).context("remove run_path")?;
    say("no process, cgroup or mount of its sandboxes is left");
    Ok(Ended { places, _locks: locks })
}

impl Ended {
    /// Removes what tenants have written, the store, and the reservation of host uids.
    pub fn purge(self, config: &Config, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        for dir in [&self.places.sandboxes, &self.places.state] {
            remove(dir).with_context(|| format!("remove {}", dir.display()))?;
            say(&format!("removed {}", dir.display()));
        }
        // Whoever else gives them out wants them kept.
        if sys::is_root() && tables::holder(&config.ids.all()).is_none() {
            for file in ids::give_back(config.ids)? {
                say(&format!("{file}: removed {}", config.ids.reservation()));
            }
        }
        Ok(())
    }
}

impl Places {
    /// None of them has anything of somebody's in it, or of another's.
    fn of(config: &Config) -> anyhow::Result<Self> {
        let real =
            |dir: &Path| fs::canonicalize(dir).with_context(|| format!("find {}", dir.display()));
        let places = Self {
            run: real(&config.run_path)?,
            state: real(&config.state_path)?,
            sandboxes: real(&config.sandboxes_path)?,
        };
        let given = [&config.desired_path, &config.images_path];
        let given = given.into_iter().filter_map(|dir| fs::canonicalize(dir).ok());
        let ours = [&places.run, &places.state, &places.sandboxes];
        let all: Vec<PathBuf> = ours.into_iter().cloned().chain(given).collect();
        for outer in ours {
            if let Some(inner) =
                all.iter().find(|inner| *inner != outer && inner.starts_with(outer))
            {
                bail!(
                    "{} lies in {}, which would be removed; nothing was taken away: remove by hand what is not wanted",
                    inner.display(),
                    outer.display()
                );
            }
        }
        Ok(places)
    }
}

/// Under another name first, so that whoever looks meanwhile finds nothing half. What is a file system of its own is
/// emptied, and stays.
fn remove(dir: &Path) -> Result<(), SysError> {
    if mount::is_at(dir) {
        return walk::clear(dir);
    }
    let mut aside = dir.as_os_str().to_owned();
    aside.push(format!(".removed-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    fs::rename(dir, &aside).map_err(|source| SysError::io("rename", dir, source))?;
    walk::remove(&aside)
}

/// Kills, and cleans up as the loop does. Returns how many there were.
fn end_sandboxes(config: &Config, places: &Places) -> anyhow::Result<usize> {
    let paths = Paths {
        run: config.run_path.clone(),
        state: config.state_path.clone(),
        // Nothing is started.
        shim: PathBuf::new(),
    };
    let workspaces = Workspaces::of(&config.sandboxes_path, sys::is_root(), &config.disk);
    // Shims obey whoever comes last.
    let host = Arc::new(Host::open(paths, workspaces, config.console_bytes, u64::MAX)?);
    let all = host.residues();
    let is_known = |iid: &&Iid| places.run.join("i").join(iid.as_str()).exists();
    if let Some(stranger) = all.iter().find(|iid| !is_known(iid)) {
        bail!(
            "there is a cgroup of {stranger}, and nothing of it in {}: it may be another daemon's, whose run_path has the \
             same name elsewhere; nothing was taken away",
            places.run.display()
        );
    }
    let driver = Supervisor::process(Arc::clone(&host));
    let kill = StopOrder { signal: "SIGKILL", grace_ms: 0, force: true, reason: "uninstall" };
    for iid in &all {
        // One whose shim does not answer is ended below.
        let _ = driver.stop(iid, &kill);
    }
    let began = Instant::now();
    let mut why = String::new();
    loop {
        let left = host.residues();
        if left.is_empty() {
            host.cgroups.remove();
            return Ok(all.len());
        }
        if began.elapsed() > GONE_WITHIN {
            bail!("{} sandboxes do not end: {why}; try again, or reboot", left.len());
        }
        for iid in &left {
            let runs = matches!(
                driver.observe(iid),
                Ok(Observed::Launching | Observed::Running { .. } | Observed::Stopping { .. })
            );
            if runs && began.elapsed() < ENDED_WITHIN {
                continue;
            }
            if let Err(error) = driver.kill_shim(iid).and_then(|()| driver.clean_up(iid)) {
                why = chain(&error);
            }
        }
        thread::sleep(PAUSE);
    }
}

fn unmount(places: &Places) -> Result<(), SysError> {
    unmount_all(&places.sandboxes);
    for at in mounts(places) {
        mount::forget(&at)?;
    }
    if mount::is_itself(&places.run) {
        mount::forget(&places.run)?;
    }
    Ok(())
}

/// What is mounted below, the last first. What somebody has mounted there for us to use is theirs.
fn mounts(places: &Places) -> Vec<PathBuf> {
    let below =
        |dir: &Path| mount::below(dir).into_iter().filter(|at| at != dir).collect::<Vec<_>>();
    [below(&places.sandboxes), below(&places.run)].concat()
}

fn undrain(state: &Path) -> anyhow::Result<()> {
    let path = database_path(state);
    if !path.exists() {
        return Ok(());
    }
    let now = Time(clock::wall_ms());
    Store::open(&path)?.write_blocking(move |core| core.set_drained(false, now))?;
    Ok(())
}
