//! Which platform runsc works with on this host: each is tried for real, and what worked is remembered.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::runsc::{CONFIG, Guest, Runsc, STATE};
use crate::supervise::SEARCH_PATH;
use sodium_model::{IdRange, Limits, Network, Platform};
use sodium_shim::launch::RUNSC_STAGE;
use sodium_sys::error::chain;
use sodium_sys::{SysError, mount, path, process};

/// A platform that runs programs here. Not sure, if one that goes before it has only been too slow.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub platform: Platform,
    pub is_sure: bool,
}

/// Why there is none. Being slow proves nothing: the host may have been busy.
#[derive(Debug)]
pub struct Unfit {
    pub why: String,
    pub is_slow: bool,
}

impl Runsc {
    /// What an earlier daemon found out about this very program on this very kernel.
    pub fn remembered(&self, asked: Option<Platform>, memory: &Path) -> Option<Platform> {
        let text = fs::read_to_string(memory).ok()?;
        let (platform, about) = text.split_once('\n')?;
        (about == self.about(asked)).then(|| Platform::parse(platform)).flatten()
    }

    /// Remembers it. What cannot be written is found out again.
    pub fn remember(&self, asked: Option<Platform>, found: Platform, memory: &Path) {
        let text = format!("{}\n{}", found.as_str(), self.about(asked));
        let _ = path::write_durably(memory, text.as_bytes());
    }

    fn about(&self, asked: Option<Platform>) -> String {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let changed = fs::metadata(&self.program).map_or(0, |meta| meta.ctime());
        let asked = asked.map_or("auto", Platform::as_str);
        format!("{} {} {changed} {asked} {kernel}", self.program.display(), self.version)
    }

    /// The first platform that runs a program on this host within that time. Being there proves nothing of /dev/kvm,
    /// so each is tried. kvm is never chosen by itself: inside a virtual machine it is the slowest.
    pub fn choose(
        &self,
        asked: Option<Platform>,
        run: &Path,
        ids: &IdRange,
        within: Duration,
    ) -> Result<Found, Unfit> {
        let candidates =
            asked.map_or_else(|| vec![Platform::Systrap, Platform::Ptrace], |one| vec![one]);
        let (mut faults, mut is_slow) = (Vec::new(), false);
        for platform in candidates {
            match self.try_platform(platform, run, ids, within) {
                Ok(true) => return Ok(Found { platform, is_sure: !is_slow }),
                Ok(false) => {
                    is_slow = true;
                    let seconds = within.as_secs();
                    faults.push(format!("{}: nothing ran within {seconds} s", platform.as_str()));
                }
                Err(why) => faults.push(format!("{}: {why}", platform.as_str())),
            }
        }
        Err(Unfit { why: faults.join("; "), is_slow })
    }

    fn try_platform(
        &self,
        platform: Platform,
        run: &Path,
        ids: &IdRange,
        within: Duration,
    ) -> Result<bool, String> {
        let dir = run.join(format!("try-{}", platform.as_str()));
        let _ = fs::remove_dir_all(&dir);
        // What is mounted for a thread, it and what it starts see, and nobody else.
        let tried = thread::scope(|scope| {
            let trial = scope.spawn(|| {
                self.set_stage().map_err(|error| chain(&error))?;
                self.try_in(platform, &dir, ids, within)
            });
            trial.join().expect("a trial reports what fails")
        });
        let _ = fs::remove_dir_all(&dir);
        tried
    }

    /// Mounts what runsc's processes may not walk to, for the calling thread, which ends next.
    fn set_stage(&self) -> Result<(), SysError> {
        let Some(made) = self.staged() else { return Ok(()) };
        mount::private_namespace()?;
        mount::bind(made, Path::new(RUNSC_STAGE))
    }

    /// False: nothing ran in time.
    fn try_in(
        &self,
        platform: Platform,
        dir: &Path,
        ids: &IdRange,
        within: Duration,
    ) -> Result<bool, String> {
        let guest = Guest {
            hostname: "try",
            command: &["/usr/bin/true".to_owned()],
            env: &BTreeMap::new(),
            host_uid: ids.trial(),
            host_root: ids.root_of(ids.trial()),
            tty: false,
            network: Network::None,
            limits: &Limits::DEFAULT,
            waits: false,
            has_tmp: false,
        };
        let failed = |error: std::io::Error| error.to_string();
        fs::create_dir_all(dir).map_err(failed)?;
        fs::write(dir.join(CONFIG), self.bundle(&guest).to_string()).map_err(failed)?;
        // Attached: whoever is killed takes the whole sandbox along.
        let mut args = self.flags(&dir.join(STATE), platform, Network::None, false);
        // That nobody has foreseen: runsc of 2022 names an abstract socket after it, which anybody could have taken.
        let id = format!("try-{}", uuid::Uuid::new_v4().simple());
        args.extend(["run".to_owned(), format!("--bundle={}", dir.display()), id]);
        let mut child = Command::new(&self.program)
            .args(&args[1..])
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        match process::wait_within(&mut child, within).map_err(failed)? {
            Some(status) if status.success() => Ok(true),
            Some(status) => Err(complaint(&mut child).unwrap_or_else(|| status.to_string())),
            None => Ok(false),
        }
    }
}

/// The last thing it said.
fn complaint(child: &mut Child) -> Option<String> {
    let mut text = String::new();
    child.stderr.take()?.take(64 << 10).read_to_string(&mut text).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}
