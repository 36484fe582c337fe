//! bubblewrap's command line and options, as values.
//!
//! Everything is unshared. The root is a directory of ours with the host's /usr in it, read-only; /dev, /proc and
//! /tmp are new. What bubblewrap is told is ours alone: its options come over a descriptor, and what it starts is
//! our init, which is told inside what to become. Where the daemon is root, everything is found on a stage, because
//! the user that bubblewrap runs as may not walk to where it lies.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rootfs::{ETC_NETWORK, HOME, INIT, INSIDE_ID, Shown, Tmp};
use crate::runtime::{Enter, Entered, Prepared, Role, Runtime, Start};
use crate::storage::workspace::Place;
use crate::supervise::host::Host;
use crate::supervise::ledger::Counting;
use crate::{DriverError, Order};
use sodium_model::{Isolation, Network};
use sodium_shim::exec::order::Way;
use sodium_shim::init;
use sodium_shim::launch::{
    Confinement, OPTIONS_FD, Program, STAGE, STATUS_FD, Stage, UNSHARE_NETWORK,
};
use sodium_sys::error::chain;
use sodium_sys::{is_root, path, process, seccomp};

/// bubblewrap itself and the init it leaves in the sandbox count against the limit on processes.
pub const OWN_PROCESSES: u64 = 2;

const FILTER: &str = "filter.bpf";
const FILTER_FD: i32 = 10;

/// What is on the stage.
const ROOT: &str = "root";
const FILES: &str = "files";
const TMP: &str = "tmp";
const PROGRAMS: &str = "usr";

/// Sandboxes by bubblewrap, if that is there.
#[derive(Debug)]
pub(crate) struct Bubblewrap(Result<Bwrap, String>);

impl Bubblewrap {
    pub(crate) fn new(host: &Host) -> Self {
        let found = Bwrap::detect(&host.paths.run, &host.paths.shim);
        Self(found.map_err(|error| chain(&error)))
    }
}

impl Runtime for Bubblewrap {
    fn isolation(&self) -> Isolation {
        Isolation::Bubblewrap
    }

    fn version(&self) -> Result<String, String> {
        self.0.as_ref().map(|bwrap| bwrap.version.clone()).map_err(Clone::clone)
    }

    fn missing(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }

    fn counting(&self) -> Counting {
        Counting::Host { own: OWN_PROCESSES }
    }

    fn prepare(&self, start: &Start<'_>) -> Result<Prepared, DriverError> {
        let bwrap = self.0.as_ref().map_err(|why| DriverError::Refused(why.clone()))?;
        let (order, place) = (start.order, start.own_files()?);
        let is_staged = is_root();
        let hidden = start.host.workspaces.volumes.mounts();
        let confinement = Confinement::Bubblewrap {
            inherited: bwrap.inherited(),
            options: bwrap.options(order, place, is_staged),
            inside: Program {
                args: order.spec.resolved_command(),
                env: start.env.clone().into_iter().collect(),
                shares_network: order.spec.network == Network::Host,
            },
            stage: is_staged.then(|| bwrap.stage(place, &hidden)),
        };
        Ok(Prepared {
            program: text(&bwrap.program),
            args: Bwrap::args(),
            confinement,
            role: Role::Wrapper,
            files: Vec::new(),
        })
    }

    fn enter(&self, enter: Enter<'_>) -> Result<Entered, DriverError> {
        let Enter { pid, order, confined, env, .. } = enter;
        let shares_network = order.spec.network == Network::Host;
        Ok(Entered { way: Way::Namespaces { pid, confined, shares_network }, env })
    }

    /// Behind bubblewrap's own init.
    fn is_first(&self, pid: u32) -> bool {
        process::inner_pid(pid) == Some(2)
    }
}

/// The program, and what its sandboxes are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bwrap {
    pub program: PathBuf,
    /// As it says itself: `bubblewrap 0.8.0`.
    pub version: String,
    pub shown: Shown,
    /// The root of every sandbox, read-only.
    pub root: PathBuf,
}

/// Where bubblewrap finds the trees of a sandbox.
struct Trees {
    root: PathBuf,
    files: PathBuf,
    tmp: Option<PathBuf>,
}

impl Bwrap {
    /// Finds the program and writes the files that every sandbox is shown.
    pub fn detect(run: &Path, shim: &Path) -> Result<Self, DriverError> {
        let hint = "install it with: apt-get install bubblewrap";
        let program = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .ok_or(DriverError::Missing { program: "bwrap", hint })?;
        let failed = |source| DriverError::Host { stage: "write what sandboxes are shown", source };
        let shown = Shown::make(run).map_err(failed)?;
        let root = shown.root(shim, Tmp::Directory).map_err(failed)?;
        path::write_durably(&shown.made.join(FILTER), &seccomp::program_bytes()).map_err(failed)?;
        let said = Command::new(&program).arg("--version").env_clear().output();
        let said =
            said.map_err(|source| DriverError::Spawn { program: program.clone(), source })?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        Ok(Self { program, version, shown, root })
    }

    /// What bubblewrap is to find open, and at which number.
    pub fn inherited(&self) -> Vec<(i32, PathBuf)> {
        vec![(FILTER_FD, self.shown.made.join(FILTER))]
    }

    /// What is mounted for it first, for one that becomes another user.
    pub fn stage(&self, place: &Place, hidden: &Path) -> Stage {
        let tmp = place.tmp.iter().map(|tmp| (tmp.clone(), TMP));
        let binds = [
            (self.root.clone(), ROOT),
            (place.files.clone(), FILES),
            (Path::new("/").join(PROGRAMS), PROGRAMS),
        ];
        let own = self.own_top_level().map(|name| (Path::new("/").join(name), name));
        let binds = binds.into_iter().chain(tmp).chain(own);
        Stage {
            binds: binds.map(|(from, at)| (from, at.to_owned())).collect(),
            hidden: Some(hidden.to_owned()),
        }
    }

    /// The arguments, the zeroth included: the same for all sandboxes.
    pub fn args() -> Vec<String> {
        let options = OPTIONS_FD.to_string();
        ["bwrap", "--args", &options, "--", INIT, init::START].map(str::to_owned).to_vec()
    }

    /// The options. Pure: the tests read like `bwrap --help`.
    pub fn options(&self, order: &Order<'_>, place: &Place, is_staged: bool) -> Vec<String> {
        let trees = self.trees(place, is_staged);
        let mut options: Vec<String> = Vec::new();
        let mut add = |parts: &[&str]| options.extend(parts.iter().map(|part| (*part).to_owned()));
        let id = INSIDE_ID.to_string();
        add(&["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]);
        add(&["--unshare-cgroup"]);
        let shares_network = order.spec.network == Network::Host;
        if !shares_network {
            add(&[UNSHARE_NETWORK]);
        }
        add(&["--disable-userns", "--uid", &id, "--gid", &id, "--cap-drop", "ALL"]);
        add(&["--die-with-parent", "--hostname", order.name.as_str()]);
        if !order.spec.tty {
            // With a terminal, the shim has made the session that owns it.
            add(&["--new-session"]);
        }
        add(&["--ro-bind", &text(&trees.root), "/"]);
        for name in [PROGRAMS].into_iter().chain(self.own_top_level()) {
            let from = if is_staged { Path::new(STAGE) } else { Path::new("/") };
            add(&["--ro-bind", &text(&from.join(name)), &format!("/{name}")]);
        }
        for path in ETC_NETWORK.iter().filter(|_| shares_network) {
            add(&["--ro-bind-try", path, path]);
        }
        add(&["--proc", "/proc", "--dev", "/dev"]);
        match &trees.tmp {
            Some(tmp) => add(&["--bind", &text(tmp), "/tmp"]),
            None => add(&["--perms", "1777", "--tmpfs", "/tmp"]),
        }
        add(&["--bind", &text(&trees.files), HOME, "--chdir", HOME]);
        add(&["--seccomp", &FILTER_FD.to_string(), "--json-status-fd", &STATUS_FD.to_string()]);
        options
    }

    /// Directories of the host that hold programs and are no links into /usr.
    fn own_top_level(&self) -> impl Iterator<Item = &str> {
        let own = self.shown.top_level.iter().filter(|(_, target)| target.is_none());
        own.map(|(name, _)| name.as_str())
    }

    fn trees(&self, place: &Place, is_staged: bool) -> Trees {
        let at = |name: &str, otherwise: &Path| match is_staged {
            true => Path::new(STAGE).join(name),
            false => otherwise.to_owned(),
        };
        Trees {
            root: at(ROOT, &self.root),
            files: at(FILES, &place.files),
            tmp: place.tmp.as_deref().map(|tmp| at(TMP, tmp)),
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::workspace::Kept;
    use crate::supervise::tests::order;

    fn bwrap() -> Bwrap {
        Bwrap {
            program: "/usr/bin/bwrap".into(),
            version: "bubblewrap 0.8.0".to_owned(),
            shown: Shown {
                top_level: vec![
                    ("bin".to_owned(), Some("usr/bin".to_owned())),
                    ("lib64".to_owned(), None),
                ],
                made: "/run/sodiumd/shown".into(),
            },
            root: "/run/sodiumd/shown/root".into(),
        }
    }

    #[test]
    fn the_options_share_nothing_but_what_is_named() {
        let place = Place { files: "/srv/a b/files".into(), tmp: None, kept: Kept::unlimited() };
        order(|order| {
            let line = bwrap().options(order, &place, true).join(" ");
            let want = "--unshare-user --unshare-pid --unshare-ipc --unshare-uts \
                --unshare-cgroup --unshare-net --disable-userns --uid 1000 --gid 1000 --cap-drop ALL \
                --die-with-parent --hostname web --new-session --ro-bind /sys/root / \
                --ro-bind /sys/usr /usr --ro-bind /sys/lib64 /lib64 --proc /proc --dev /dev \
                --perms 1777 --tmpfs /tmp --bind /sys/files /home/container \
                --chdir /home/container --seccomp 10 --json-status-fd 11";
            assert_eq!(line, want);
            let line = bwrap().options(order, &place, false).join(" ");
            assert!(line.contains("--ro-bind /run/sodiumd/shown/root / "), "{line}");
            assert!(line.contains("--ro-bind /usr /usr --ro-bind /lib64 /lib64 "), "{line}");
            assert!(line.contains("--bind /srv/a b/files /home/container "), "{line}");
        });
    }

    #[test]
    fn the_command_line_is_the_same_for_everybody() {
        assert_eq!(Bwrap::args().join(" "), "bwrap --args 12 -- /sodium-init start");
    }
}
