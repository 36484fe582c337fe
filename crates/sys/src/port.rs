//! Who listens at a TCP port of this machine, as /proc tells it.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::read_small;

/// In /proc/net/tcp: the state of a socket that listens.
const LISTENS: &str = "0A";

/// A socket that listens, and a process that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Of the socket: whoever made it.
    pub uid: u32,
    /// Id and program. `None`: none that we may look at.
    pub process: Option<(u32, String)>,
}

/// A program calls itself what it likes, so its name is quoted.
impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, program)) => write!(out, "pid {pid} ({program:?}, uid {})", self.uid),
            None => write!(out, "a process of uid {}", self.uid),
        }
    }
}

/// Whoever listens at this port, at whatever address, in our network.
pub fn holder(port: u16) -> Option<Holder> {
    let (uid, inode) = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = read_small(Path::new(table)).unwrap_or_default();
        text.lines().skip(1).find_map(|line| listener(line, port))
    })?;
    Some(Holder { uid, process: process(&format!("socket:[{inode}]")) })
}

/// Uid and inode of the line's socket, if it listens at this port.
fn listener(line: &str, port: u16) -> Option<(u32, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, at) = fields.get(1)?.rsplit_once(':')?;
    if u16::from_str_radix(at, 16).ok()? != port || *fields.get(3)? != LISTENS {
        return None;
    }
    Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?))
}

/// The process that has this open. A service manager may have it as well, for the one that serves.
fn process(link: &str) -> Option<(u32, String)> {
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.filter(|pid| has_open(*pid, link)).max()?;
    let program = read_small(Path::new(&format!("/proc/{pid}/comm"))).unwrap_or_default();
    Some((pid, program.trim_end().to_owned()))
}

fn has_open(pid: u32, link: &str) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    links.any(|found| found.as_os_str() == link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_is_found_and_whoever_does_not_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = holder(port).unwrap();
        let (pid, _) = found.process.clone().unwrap();
        assert_eq!((pid, found.uid), (std::process::id(), crate::own_ids().0));
        assert!(found.to_string().starts_with(&format!("pid {pid} (\"")), "{found}");
        drop(listener);
        assert_eq!(holder(port), None);
    }

    #[test]
    fn a_line_that_is_none_says_nothing() {
        let line = "   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000  4711        0 42 1";
        assert_eq!(listener(line, 0x1f91), Some((4_711, 42)));
        assert_eq!(listener(line, 80), None);
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), 0x1f91), None);
        assert_eq!(listener("", 80), None);
    }
}
