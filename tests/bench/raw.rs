//! The references: bubblewrap and pipes without sodiumd.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sodium_model::{Limits, Network};
use sodium_runtime::gvisor::runsc::{Guest, Runsc};

const USER: u32 = 300_000;

/// bwrap as somebody would type it.
pub struct Bwrap {
    args: Vec<String>,
    /// None: root types it.
    user: Option<u32>,
}

impl Bwrap {
    /// With everything unshared, and a home, as a user of its own.
    pub fn new(dir: &Path, command: &[&str]) -> Self {
        let home = dir.join("raw");
        std::fs::create_dir_all(&home).unwrap();
        chown(&home, Some(USER), Some(USER)).unwrap();
        let home = home.to_str().unwrap();
        let mut more = vec!["--new-session", "--uid", "1000", "--gid", "1000"];
        more.extend(["--bind", home, "/home/container", "--chdir", "/home/container"]);
        Self::with(&more, command, Some(USER))
    }

    /// As root types it who has read the manual page.
    pub fn plain(command: &[&str]) -> Self {
        Self::with(&[], command, None)
    }

    fn with(more: &[&str], command: &[&str], user: Option<u32>) -> Self {
        let mut args = vec!["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"];
        for (target, link) in [("usr/bin", "/bin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64")] {
            args.extend(["--symlink", target, link]);
        }
        args.extend(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        args.extend(more);
        args.push("--");
        args.extend(command);
        Self { args: args.into_iter().map(str::to_owned).collect(), user }
    }

    fn spawn(&self) -> Child {
        let mut bwrap = Command::new("/usr/bin/bwrap");
        bwrap.args(&self.args).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if let Some(user) = self.user {
            bwrap.uid(user).gid(user);
        }
        bwrap.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Spawn to the first byte of output.
    pub fn first_byte(&self) -> Duration {
        let began = Instant::now();
        let mut child = self.spawn();
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        let took = began.elapsed();
        child.wait().unwrap();
        took
    }

    /// So many at once, until each has said something.
    pub fn crowd(&self, count: usize) -> Duration {
        let began = Instant::now();
        let mut children: Vec<Child> = (0..count).map(|_| self.spawn()).collect();
        for child in &mut children {
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        }
        let took = began.elapsed();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        took
    }
}

/// runsc with the bundle that sodiumd gives it, in no cgroup.
pub struct Gvisor {
    program: PathBuf,
    dir: PathBuf,
    started: std::cell::Cell<u32>,
}

impl Gvisor {
    pub fn new(program: &Path, run: &Path, command: &[&str]) -> Self {
        // Ways that nobody may walk do not lead to a root: the run directory's own rule.
        let dir = run.join("raw");
        std::fs::create_dir_all(&dir).unwrap();
        let runsc =
            Runsc::detect(Some(program), &dir, Path::new(env!("CARGO_BIN_EXE_sodium-shim")))
                .unwrap();
        let workspace = dir.join("shown/homes/container");
        chown(workspace, Some(USER), Some(USER)).unwrap();
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let guest = Guest {
            hostname: "raw",
            command: &command,
            env: &[("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into(),
            host_uid: USER,
            host_root: USER + 1,
            tty: false,
            network: Network::None,
            limits: &Limits::DEFAULT,
            waits: false,
            has_tmp: false,
        };
        std::fs::write(dir.join("config.json"), runsc.bundle(&guest).to_string()).unwrap();
        Self { program: program.to_owned(), dir, started: std::cell::Cell::new(0) }
    }

    /// What it prints.
    pub fn output(&self) -> String {
        String::from_utf8(self.command().output().unwrap().stdout).unwrap()
    }

    fn command(&self) -> Command {
        let number = self.started.replace(self.started.get() + 1);
        let state = self.dir.join("state");
        let mut runsc = Command::new(&self.program);
        runsc
            .arg(format!("--root={}", state.display()))
            .args(["--platform=systrap", "--network=none", "--ignore-cgroups", "run"])
            .arg(format!("--bundle={}", self.dir.display()))
            .arg(format!("raw-{number:08}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        runsc
    }

    /// Spawn to the first byte of output.
    pub fn first_byte(&self) -> Duration {
        let began = Instant::now();
        let mut child = self.command().spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let took = began.elapsed();
        child.wait().unwrap();
        took
    }
}

/// A program in the namespaces of another, from its start to its end.
pub fn nsenter(pid: u64) -> Duration {
    let began = Instant::now();
    let mut nsenter = Command::new("/usr/bin/nsenter");
    nsenter.arg(format!("--target={pid}")).args([
        "--all",
        "--preserve-credentials",
        "--",
        "/usr/bin/true",
    ]);
    let status = nsenter.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
    began.elapsed()
}

/// MiB/s of a program's output copied from its pipe to a TCP connection and read there.
pub fn pipe_to_tcp(script: &str, bytes: usize) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut left) = (vec![0; 256 << 10], bytes);
        while left > 0 {
            left -= stream.read(&mut buffer).unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    let began = Instant::now();
    let mut child =
        Command::new("bash").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = pipe.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&buffer[..count]).unwrap();
    }
    reader.join().unwrap();
    let took = began.elapsed();
    child.wait().unwrap();
    bytes as f64 / f64::from(1 << 20) / took.as_secs_f64()
}
