//! A disk of a test's own: a small ext4 in a file, which can be filled, made read-only, and lose its power.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Stops the file system where it is: nothing that was not synced reaches the disk, and every access
/// from then on fails. FS_IOC_SHUTDOWN with "no log flush", as the kernel's own file system tests do it.
/// What is answered after that moment was never answered: the machine is off.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
disk = os.open(sys.argv[1], os.O_RDONLY)
print('armed', flush=True)
sys.stdin.read()
fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";

pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
}

impl Disk {
    /// Mounted at `at`, which is made. Its journal is written only when somebody syncs.
    pub fn new(at: &Path, megabytes: u64) -> Self {
        let image = at.with_extension("img");
        fs::create_dir(at).unwrap();
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        // On a mount that is shared, so that it goes from every copy of the mounts when it goes from ours:
        // a sandbox that started meanwhile would keep it, and mounted again it would be the same one.
        run("mount", &["--bind", at.to_str().unwrap(), at.to_str().unwrap()]);
        run("mount", &["--make-shared", at.to_str().unwrap()]);
        let disk = Self { image, at: at.to_owned() };
        disk.mount("rw");
        disk
    }

    fn mount(&self, how: &str) {
        let options = format!("loop,commit=300,{how}");
        run("mount", &["-o", &options, self.image.to_str().unwrap(), self.at.to_str().unwrap()]);
    }

    /// Mounts it again, `ro` or `rw`. After a loss of power the journal is replayed.
    pub fn mount_again(&self, how: &str) {
        run("umount", &[self.at.to_str().unwrap()]);
        self.mount(how);
    }

    /// Has somebody stand at the switch.
    pub fn arm(&self) -> Switch {
        let mut child = Command::new("python3")
            .args(["-c", SHUT_DOWN, self.at.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Switch(child)
    }
}

/// Cuts a disk's power at once.
pub struct Switch(Child);

impl Switch {
    pub fn cut(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success(), "the power is still on");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what a failed test has left running must not keep it.
        for _ in ["the disk", "what it is mounted on"] {
            let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        }
    }
}

fn run(program: &str, args: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let done = Command::new(program).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        if done.status.success() {
            return;
        }
        // What has it open may be about to end.
        assert!(said.contains("busy") && Instant::now() < deadline, "{program}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
