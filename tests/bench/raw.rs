//! The references: bubblewrap and pipes without sodiumd.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sodiumd::driver::Order;
use sodiumd::driver::bwrap::Bubblewrap;
use sodiumd::driver::runsc::{Guest, Runsc};
use sodiumd::model::{Iid, Limits, Network, SandboxName, Spec};

const USER: u32 = 300_000;

/// bwrap with exactly the arguments, descriptors and user that sodiumd gives it.
pub struct Bwrap {
    program: PathBuf,
    args: Vec<String>,
    inherited: Vec<(i32, PathBuf)>,
}

impl Bwrap {
    pub fn new(dir: &Path, command: &[&str]) -> Self {
        let made = dir.join("raw");
        let workspace = made.join("workspace");
        std::fs::create_dir_all(&workspace).unwrap();
        chown(&workspace, Some(USER), Some(USER)).unwrap();
        let spec: Spec = serde_json::from_value(json!({
            "isolation": "bubblewrap", "command": command, "state": "running",
            "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
            "stop": {"signal": "SIGTERM", "grace": "10s"}, "tty": false, "network": "none",
            "limits": {"memory_mb": 0, "cpu_percent": 0, "disk_mb": 0, "timeout_seconds": 0,
                       "max_processes": 0, "max_files": 0},
            "strict": false
        }))
        .unwrap();
        let bubblewrap =
            Bubblewrap::detect(&made, Path::new(env!("CARGO_BIN_EXE_sodium-shim"))).unwrap();
        let uid = uuid::Uuid::nil();
        let order = Order {
            iid: &Iid::new(uid, 1),
            name: &SandboxName::try_from("raw").unwrap(),
            uid,
            generation: 1,
            epoch: 1,
            spec: &spec,
            host_uid: USER,
            image_files: &Default::default(),
            take_back: false,
            restore: None,
        };
        let args = bubblewrap.args(&order, false);
        Self {
            program: bubblewrap.program.clone(),
            args,
            inherited: bubblewrap.inherited(&spec, &workspace, None),
        }
    }

    #[expect(unsafe_code, reason = "descriptors have to be placed between fork and exec")]
    fn spawn(&self) -> Child {
        let mut files: Vec<(i32, std::fs::File)> = self
            .inherited
            .iter()
            .map(|(fd, path)| (*fd, std::fs::File::open(path).unwrap()))
            .collect();
        files.push((11, std::fs::File::options().write(true).open("/dev/null").unwrap()));
        let mut command = Command::new(&self.program);
        command
            .args(&self.args[1..])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .uid(USER)
            .gid(USER)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let placed: Vec<(i32, i32)> =
            files.iter().map(|(to, file)| (file.as_raw_fd(), *to)).collect();
        let place = move || {
            // High first, so that none is overwritten before it was copied.
            for (from, to) in &placed {
                // SAFETY: dup2 takes two integers and is async-signal-safe.
                if unsafe { libc::dup2(*from, to + 100) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for (_, to) in &placed {
                // SAFETY: as above; close is too.
                unsafe {
                    libc::dup2(to + 100, *to);
                    libc::close(to + 100);
                }
            }
            Ok(())
        };
        // SAFETY: the closure calls dup2 and close only and allocates nothing.
        unsafe { command.pre_exec(place) }.spawn().unwrap()
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
            tty: false,
            network: Network::None,
            limits: &Limits::DEFAULT,
            waits: false,
            has_tmp: false,
        };
        std::fs::write(dir.join("config.json"), runsc.bundle(&guest).to_string()).unwrap();
        Self { program: program.to_owned(), dir, started: std::cell::Cell::new(0) }
    }

    /// Spawn to the first byte of output.
    pub fn first_byte(&self) -> Duration {
        let number = self.started.replace(self.started.get() + 1);
        let state = self.dir.join("state");
        let began = Instant::now();
        let mut child = Command::new(&self.program)
            .arg(format!("--root={}", state.display()))
            .args(["--platform=systrap", "--network=none", "--ignore-cgroups", "run"])
            .arg(format!("--bundle={}", self.dir.display()))
            .arg(format!("raw-{number:08}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let took = began.elapsed();
        child.wait().unwrap();
        took
    }
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
