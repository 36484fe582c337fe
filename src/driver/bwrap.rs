//! bubblewrap's command line, as a value.
//!
//! Everything is unshared; the host's /usr is the root file system for now, read-only; /dev, /proc,
//! /tmp and the root itself are new. What bubblewrap needs of the host's files it is handed as open
//! descriptors, because the user it runs as may not walk there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::driver::{DriverError, Order};
use crate::model::Network;
use crate::shim::launch::STATUS_FD;
use crate::sys::SysError;
use crate::sys::path;
use crate::sys::seccomp;

/// Where the workspace is inside, and HOME.
pub const HOME: &str = "/home/container";
/// Who the workload is inside.
pub const INSIDE_ID: u32 = 1000;
/// bubblewrap itself and the init it leaves in the sandbox count against the limit on processes.
pub const OWN_PROCESSES: u64 = 2;

const FILTER_FD: i32 = 10;
const WORKSPACE_FD: i32 = 12;
const PASSWD_FD: i32 = 13;
const GROUP_FD: i32 = 14;

/// Read-only files of the host that programs ask for, where they exist.
const ETC: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/bash.bashrc",
    "/etc/python3",
    "/etc/python3.11",
    "/etc/java-17-openjdk",
];
/// And these only with the host's network.
const ETC_NETWORK: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/gai.conf"];

/// What this host has, found once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    pub program: PathBuf,
    /// `/bin` and its like: the symlink's target on a merged-/usr host, or none.
    pub top_level: Vec<(String, Option<String>)>,
    /// Files made for the sandboxes, in the run directory.
    pub made: PathBuf,
}

impl Bubblewrap {
    /// Finds the program and writes the files that every sandbox is shown.
    pub fn detect(made: &Path) -> Result<Self, DriverError> {
        let hint = "install it with: apt-get install bubblewrap";
        let program = ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"]
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .ok_or(DriverError::Missing { program: "bwrap", hint })?;
        let failed = |source| DriverError::Host { stage: "write what sandboxes are shown", source };
        let dir = made.join("shown");
        fs::create_dir_all(&dir).map_err(|source| failed(SysError::io("mkdir", &dir, source)))?;
        let home = format!("container:x:{INSIDE_ID}:{INSIDE_ID}:container:{HOME}:/bin/bash\n");
        let nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        let group = format!("container:x:{INSIDE_ID}:\nnogroup:x:65534:\n");
        let write = |name: &str, bytes: &[u8]| path::write_durably(&dir.join(name), bytes);
        write("passwd", format!("{home}{nobody}").as_bytes()).map_err(failed)?;
        write("group", group.as_bytes()).map_err(failed)?;
        write("filter.bpf", &seccomp::program_bytes()).map_err(failed)?;
        let top_level = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]
            .into_iter()
            .filter(|name| Path::new("/").join(name).exists())
            .map(|name| {
                let target = fs::read_link(Path::new("/").join(name)).ok();
                (name.to_owned(), target.map(|path| path.to_string_lossy().into_owned()))
            })
            .collect();
        Ok(Self { program, top_level, made: dir })
    }

    /// What bubblewrap is to find open, and at which number.
    pub fn inherited(&self, workspace: &Path) -> Vec<(i32, PathBuf)> {
        vec![
            (FILTER_FD, self.made.join("filter.bpf")),
            (WORKSPACE_FD, workspace.to_owned()),
            (PASSWD_FD, self.made.join("passwd")),
            (GROUP_FD, self.made.join("group")),
        ]
    }

    /// The arguments, the zeroth included. Pure: the tests read like `bwrap --help`.
    pub fn args(&self, order: &Order<'_>) -> Vec<String> {
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
        for (name, target) in &self.top_level {
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
        add(&["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp"]);
        add(&["--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp"]);
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
    use crate::driver::host::tests::order;

    #[test]
    fn the_command_line_shares_nothing_but_what_is_named() {
        let bwrap = Bubblewrap {
            program: "/usr/bin/bwrap".into(),
            top_level: vec![
                ("bin".to_owned(), Some("usr/bin".to_owned())),
                ("lib64".to_owned(), None),
            ],
            made: "/run/sodiumd/shown".into(),
        };
        order(|order| {
            let line = bwrap.args(order).join(" ");
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
