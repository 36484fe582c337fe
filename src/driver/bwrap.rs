//! bubblewrap's command line, as a value.
//!
//! Everything is unshared; the host's /usr is the root file system for now, read-only; /dev, /proc,
//! /tmp and the root itself are new. What bubblewrap needs of the host's files it is handed as open
//! descriptors, because the user it runs as may not walk there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::driver::shown::{
    ETC, ETC_NETWORK, GROUP, HOME, INIT, INIT_COPY, INSIDE_ID, PASSWD, Shown, add_init,
};
use crate::driver::{DriverError, Order};
use crate::model::{Network, Spec};
use crate::shim::launch::STATUS_FD;
use crate::sys::path;
use crate::sys::seccomp;

/// bubblewrap itself and the init it leaves in the sandbox count against the limit on processes.
pub const OWN_PROCESSES: u64 = 2;

const FILTER: &str = "filter.bpf";

const FILTER_FD: i32 = 10;
const WORKSPACE_FD: i32 = 12;
const PASSWD_FD: i32 = 13;
const GROUP_FD: i32 = 14;
const TMP_FD: i32 = 15;
const INIT_FD: i32 = 16;

/// The program, and what its sandboxes are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    pub program: PathBuf,
    /// As it says itself: `bubblewrap 0.8.0`.
    pub version: String,
    pub shown: Shown,
}

/// Whether it is the probe that is to run, which is no program of the host's.
fn is_probe(spec: &Spec) -> bool {
    spec.command.first().is_some_and(|program| program == INIT)
}

impl Bubblewrap {
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
        add_init(run, shim).map_err(failed)?;
        path::write_durably(&shown.made.join(FILTER), &seccomp::program_bytes()).map_err(failed)?;
        let said = Command::new(&program).arg("--version").output();
        let said =
            said.map_err(|source| DriverError::Spawn { program: program.clone(), source })?;
        let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        Ok(Self { program, version, shown })
    }

    /// What bubblewrap is to find open, and at which number.
    pub fn inherited(
        &self,
        spec: &Spec,
        workspace: &Path,
        tmp: Option<&Path>,
    ) -> Vec<(i32, PathBuf)> {
        let init = is_probe(spec).then(|| (INIT_FD, self.shown.made.join(INIT_COPY)));
        let tmp = tmp.map(|tmp| (TMP_FD, tmp.to_owned()));
        let always = [
            (FILTER_FD, self.shown.made.join(FILTER)),
            (WORKSPACE_FD, workspace.to_owned()),
            (PASSWD_FD, self.shown.made.join(PASSWD)),
            (GROUP_FD, self.shown.made.join(GROUP)),
        ];
        always.into_iter().chain(tmp).chain(init).collect()
    }

    /// The arguments, the zeroth included. Pure: the tests read like `bwrap --help`.
    pub fn args(&self, order: &Order<'_>, has_tmp: bool) -> Vec<String> {
        let mut args: Vec<String> = vec!["bwrap".to_owned()];
        let mut add = |parts: &[&str]| args.extend(parts.iter().map(|part| (*part).to_owned()));
        let id = INSIDE_ID.to_string();
        add(&[
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup",
        ]);
        let shares_network = order.spec.network == Network::Host;
        if !shares_network {
            add(&["--unshare-net"]);
        }
        add(&["--disable-userns", "--uid", &id, "--gid", &id, "--cap-drop", "ALL"]);
        add(&["--die-with-parent", "--hostname", order.name.as_str()]);
        if !order.spec.tty {
            // With a terminal, the shim has made the session that owns it.
            add(&["--new-session"]);
        }
        add(&["--ro-bind", "/usr", "/usr"]);
        for (name, target) in &self.shown.top_level {
            let path = format!("/{name}");
            match target {
                Some(target) => add(&["--symlink", target, &path]),
                None => add(&["--ro-bind", &path, &path]),
            }
        }
        for path in ETC.iter().chain(ETC_NETWORK.iter().filter(|_| shares_network)) {
            add(&["--ro-bind-try", path, path]);
        }
        add(&["--ro-bind-data", &PASSWD_FD.to_string(), "/etc/passwd"]);
        add(&["--ro-bind-data", &GROUP_FD.to_string(), "/etc/group"]);
        add(&["--proc", "/proc", "--dev", "/dev"]);
        if has_tmp {
            add(&["--bind-fd", &TMP_FD.to_string(), "/tmp"]);
        } else {
            add(&["--perms", "1777", "--tmpfs", "/tmp"]);
        }
        add(&["--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp"]);
        if is_probe(order.spec) {
            add(&["--ro-bind-fd", &INIT_FD.to_string(), INIT]);
        }
        add(&["--bind-fd", &WORKSPACE_FD.to_string(), HOME]);
        // After everything was mounted into it.
        add(&["--remount-ro", "/", "--chdir", HOME]);
        add(&[
            "--seccomp",
            &FILTER_FD.to_string(),
            "--json-status-fd",
            &STATUS_FD.to_string(),
            "--",
        ]);
        args.extend(order.spec.resolved_command());
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::shimmed::tests::order;

    #[test]
    fn the_command_line_shares_nothing_but_what_is_named() {
        let bwrap = Bubblewrap {
            program: "/usr/bin/bwrap".into(),
            version: "bubblewrap 0.8.0".to_owned(),
            shown: Shown {
                top_level: vec![
                    ("bin".to_owned(), Some("usr/bin".to_owned())),
                    ("lib64".to_owned(), None),
                ],
                made: "/run/sodiumd/shown".into(),
            },
        };
        order(|order| {
            let line = bwrap.args(order, false).join(" ");
            let want = "bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts \
                --unshare-cgroup --unshare-net --disable-userns --uid 1000 --gid 1000 --cap-drop ALL \
                --die-with-parent --hostname web --new-session --ro-bind /usr /usr \
                --symlink usr/bin /bin --ro-bind /lib64 /lib64 ";
            assert!(line.starts_with(want), "{line}");
            let end = "--ro-bind-data 13 /etc/passwd --ro-bind-data 14 /etc/group --proc /proc \
                --dev /dev --perms 1777 --tmpfs /tmp --dir /run --dir /var --symlink /tmp /var/tmp \
                --bind-fd 12 /home/container --remount-ro / --chdir /home/container --seccomp 10 \
                --json-status-fd 11 -- sh -c id";
            assert!(line.ends_with(end), "{line}");
            assert!(!line.contains("resolv.conf"));
        });
    }
}
