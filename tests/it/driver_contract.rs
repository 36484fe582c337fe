//! What every driver promises, put to each of them: the fake, plain processes, bubblewrap and gVisor, on the
//! real kernel. A runtime that is missing fails these tests; it does not skip them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sodium_model::DiskRules;
use sodium_model::{ExitKind, ExitRecord, Iid, Observed, SandboxName, Spec};
use sodium_runtime::fake::FakeDriver;
use sodium_runtime::storage::volume::unmount_all;
use sodium_runtime::storage::workspace::Workspaces;
use sodium_runtime::supervise::Supervisor;
use sodium_runtime::supervise::host::{Host, Paths};
use sodium_runtime::{Driver, DriverError, Order, StopOrder};
use sodium_shim::client::Client;
use sodium_shim::launch::SOCKET;
use sodium_shim::spool::{Chunk, Reader};
use uuid::Uuid;

use crate::gvisor::versions;

mod platform;
mod time;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A driver and where it keeps things; cleans up behind itself even when a test fails.
struct Bench {
    driver: Box<dyn Driver>,
    host: Option<Arc<Host>>,
    uid: Uuid,
    started: Vec<Iid>,
    /// Each start is given something that was started ahead.
    claims: bool,
    dir: tempfile::TempDir,
}

fn benches() -> Vec<Bench> {
    let fake = Bench {
        driver: Box::new(FakeDriver::default()),
        host: None,
        uid: Uuid::now_v7(),
        started: Vec::new(),
        claims: false,
        dir: tempfile::tempdir().unwrap(),
    };
    let mut benches = vec![fake];
    benches.extend(real());
    benches
}

fn real() -> Vec<Bench> {
    let process = bench(|host| Box::new(Supervisor::process(host)));
    let bubblewrap = bench(|host| Box::new(Supervisor::bubblewrap(host)));
    let mut benches = vec![process, bubblewrap];
    benches.extend(versions().iter().map(|program| gvisor(program)));
    benches.push(claimed());
    benches
}

/// gVisor's sandboxes, each started before anybody wanted it.
fn claimed() -> Bench {
    let mut bench = gvisor(versions().last().unwrap());
    bench.claims = true;
    bench
}

fn gvisor(program: &Path) -> Bench {
    bench(|host| {
        let driver = Supervisor::gvisor(host, Some(program), None);
        while !driver.find_out(Duration::from_secs(60)) {}
        driver.runtime().expect("a platform works");
        Box::new(driver)
    })
}

fn bench(make: impl Fn(Arc<Host>) -> Box<dyn Driver>) -> Bench {
    // Not below a directory that only root may walk, so that plain processes reach their workspace.
    let dir = tempfile::Builder::new().prefix("sodium-it-").tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    let paths = Paths {
        run: dir.path().join("run"),
        state: dir.path().join("state"),
        shim: env!("CARGO_BIN_EXE_sodium-shim").into(),
    };
    std::fs::create_dir(&paths.run).unwrap();
    let workspaces =
        Workspaces::open(&dir.path().join("sandboxes"), true, &DiskRules::default()).unwrap();
    let host = Arc::new(Host::open(paths, workspaces, 1 << 20, 1).unwrap());
    let driver = make(Arc::clone(&host));
    Bench { driver, host: Some(host), uid: Uuid::now_v7(), started: Vec::new(), claims: false, dir }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for iid in &self.started {
            let _ = self.driver.kill_orphan(iid);
            let deadline = Instant::now() + PATIENCE;
            while self.driver.clean_up(iid).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(host) = &self.host {
            // Those that nobody was given.
            for entry in std::fs::read_dir(host.paths.run.join("i")).into_iter().flatten().flatten()
            {
                if let Some(iid) = entry.file_name().to_str().and_then(Iid::parse) {
                    self.driver.discard(&iid);
                }
            }
            host.cgroups.remove();
        }
        unmount_all(&self.dir.path().join("sandboxes"));
    }
}

fn spec(command: &[&str]) -> Spec {
    serde_json::from_value(json!({
        "isolation": "process", "command": command, "state": "running",
        "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
        "stop": {"signal": "SIGTERM", "grace": "10s"}, "tty": false, "network": "none",
        "limits": {"memory_mb": 64, "cpu_percent": 100, "disk_mb": 0, "timeout_seconds": 0,
                   "max_processes": 16, "max_files": 256},
        "strict": false
    }))
    .unwrap()
}

impl Bench {
    fn label(&self) -> String {
        if self.host.is_none() {
            return "driver fake".to_owned();
        }
        let claims = if self.claims { ", claimed" } else { "" };
        format!("driver {} ({:?}{claims})", self.driver.isolation().as_str(), self.driver.runtime())
    }

    fn start(&mut self, spec: &Spec) -> Iid {
        let n = self.started.len() as u64 + 1;
        let iid = Iid::new(self.uid, n);
        let mut spec = spec.clone();
        if self.claims {
            spec.image = Some("image".to_owned());
            self.driver.warm_up("image", &spec.limits).unwrap();
            assert_eq!(self.driver.warm("image"), 1);
        }
        let spec = &spec;
        let order = Order {
            iid: &iid,
            name: &SandboxName::try_from("web").unwrap(),
            uid: self.uid,
            generation: 1,
            epoch: 1,
            spec,
            host_uid: 234_567,
            image_files: &BTreeMap::new(),
            take_back: None,
            restore: None,
        };
        self.driver.start(&order).unwrap_or_else(|error| panic!("{}: {error:?}", self.label()));
        // What asks for a terminal cannot be given one that was started without.
        assert_eq!(self.driver.warm("image"), usize::from(self.claims && spec.tty));
        self.started.push(iid.clone());
        iid
    }

    #[track_caller]
    fn wait(&self, iid: &Iid, what: &str, done: impl Fn(&Observed) -> bool) -> Observed {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.driver.observe(iid).unwrap();
            if done(&seen) {
                return seen;
            }
            let console = self.console();
            assert!(Instant::now() < deadline, "{}: {what}: {seen:?}\n{console}", self.label());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn wait_running(&self, iid: &Iid) -> Option<u32> {
        let runs = |seen: &Observed| matches!(seen, Observed::Running { .. });
        match self.wait(iid, "running", runs) {
            Observed::Running { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn wait_exit(&self, iid: &Iid) -> ExitRecord {
        let ended = |seen: &Observed| matches!(seen, Observed::Exited { .. });
        match self.wait(iid, "exited", ended) {
            Observed::Exited { exit } => exit,
            other => panic!("{other:?}"),
        }
    }

    /// Starts, waits for the end, and returns it with what was printed.
    #[track_caller]
    fn run(&mut self, spec: &Spec) -> (ExitRecord, String) {
        let iid = self.start(spec);
        let exit = self.wait_exit(&iid);
        let console = self.console();
        self.driver.clean_up(&iid).unwrap();
        (exit, console)
    }

    fn console(&self) -> String {
        let Some(host) = &self.host else { return String::new() };
        let mut reader = Reader::new(&host.console(self.uid), 0);
        let (mut buffer, mut all) = (vec![0; 65536], Vec::new());
        while let Chunk::Bytes { count, .. } = reader.read(&mut buffer).unwrap() {
            all.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn stop(force: bool, grace_ms: u64) -> StopOrder<'static> {
    StopOrder { signal: "SIGTERM", grace_ms, force, reason: "stopped" }
}

#[test]
fn codes_of_ends_are_told_as_they_were() {
    for mut bench in benches() {
        for code in [0, 1, 42, 143] {
            let (exit, _) = bench.run(&spec(&["sh", "-c", &format!("exit {code}")]));
            assert_eq!(exit.kind, ExitKind::Exited { code }, "{}", bench.label());
            assert_eq!(exit.reason, None);
        }
    }
}

#[test]
fn an_end_is_told_when_the_disk_has_it_and_not_before() {
    for mut bench in real() {
        let paths = bench.host.as_ref().unwrap().paths.clone();
        let (exits, away) = (paths.state.join("instances"), paths.state.join("away"));
        std::fs::rename(&exits, &away).unwrap();
        let iid = bench.start(&spec(&["sh", "-c", "exit 7"]));
        let socket = paths.run.join("i").join(iid.as_str()).join(SOCKET);
        // Its shim tries to store what it knows before it answers anybody.
        let knows = || Client::connect(&socket, 1).is_ok_and(|(_, state)| state.exit.is_some());
        bench.wait(&iid, "known to have ended", |_| knows());
        let seen = bench.driver.observe(&iid).unwrap();
        assert!(matches!(seen, Observed::Stopping { .. }), "{}: {seen:?}", bench.label());
        std::fs::rename(&away, &exits).unwrap();
        assert_eq!(bench.wait_exit(&iid).kind, ExitKind::Exited { code: 7 });
        // From here on nobody has to live to remember it.
        bench.driver.kill_shim(&iid).unwrap();
        let seen = bench.wait(&iid, "gone", |seen| matches!(seen, Observed::Gone { .. }));
        let Observed::Gone { exit: Some(exit), .. } = seen else { panic!("{seen:?}") };
        assert_eq!(exit.kind, ExitKind::Exited { code: 7 }, "{}", bench.label());
        bench.driver.clean_up(&iid).unwrap();
    }
}

#[test]
fn nothing_is_left_after_clean_up_and_it_can_be_repeated() {
    for mut bench in benches() {
        let iid = bench.start(&spec(&["sleep", "1000"]));
        bench.wait_running(&iid);
        assert!(bench.driver.clean_up(&iid).is_err(), "{}: cleaned up what runs", bench.label());
        bench.driver.stop(&iid, &stop(true, 0)).unwrap();
        bench.wait_exit(&iid);
        bench.driver.clean_up(&iid).unwrap();
        bench.driver.clean_up(&iid).unwrap();
        let gone = Observed::Gone { exit: None, began: false };
        assert_eq!(bench.driver.observe(&iid).unwrap(), gone, "{}", bench.label());
        if let Some(host) = &bench.host {
            assert_eq!(host.residues(), [], "{}", bench.label());
        }
    }
}

#[test]
fn a_stop_asks_first_and_a_kill_does_not() {
    for mut bench in benches() {
        let iid = bench.start(&spec(&["sleep", "1000"]));
        bench.wait_running(&iid);
        bench.driver.stop(&iid, &stop(false, 60_000)).unwrap();
        let exit = bench.wait_exit(&iid);
        assert_eq!(
            exit.kind,
            ExitKind::Signaled { signal: "SIGTERM".to_owned() },
            "{}",
            bench.label()
        );
        assert_eq!(exit.reason.as_deref(), Some("stopped"));
        bench.driver.clean_up(&iid).unwrap();
    }
}

#[test]
fn one_that_ignores_being_asked_is_killed_after_the_grace() {
    for mut bench in real() {
        let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
        let iid = bench.start(&spec(&["bash", "-c", script]));
        bench.wait(&iid, "ready", |_| bench.console().contains("ready"));
        let began = Instant::now();
        bench.driver.stop(&iid, &stop(false, 300)).unwrap();
        let exit = bench.wait_exit(&iid);
        assert_eq!(
            exit.kind,
            ExitKind::Signaled { signal: "SIGKILL".to_owned() },
            "{}",
            bench.label()
        );
        assert!(began.elapsed() >= Duration::from_millis(300), "killed within the grace");
    }
}

#[test]
fn a_command_that_does_not_exist_says_so_on_the_console_too() {
    for mut bench in benches() {
        let (exit, console) = bench.run(&spec(&["no-such-program"]));
        let ExitKind::StartFailed { message, .. } = &exit.kind else {
            panic!("{}: {exit:?}", bench.label())
        };
        assert!(message.contains("no-such-program"), "{}: {message}", bench.label());
        assert!(bench.host.is_none() || console.contains("no-such-program"), "{console}");
    }
}

#[test]
fn what_forked_away_ends_with_the_first_process() {
    for mut bench in real() {
        let script =
            "setsid sleep 1000 >/dev/null 2>&1 & (setsid sh -c 'sleep 1000' &) ; echo done";
        let (exit, _) = bench.run(&spec(&["bash", "-c", script]));
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 }, "{}", bench.label());
    }
}

#[test]
fn output_is_whole_whether_closed_or_enormous() {
    for mut bench in real() {
        let (exit, console) = bench.run(&spec(&["bash", "-c", "echo a; exec >&- 2>&-; sleep 0.1"]));
        assert_eq!((exit.kind, console.as_str()), (ExitKind::Exited { code: 0 }, "a\n"));
        let (exit, _) = bench.run(&spec(&["head", "-c", "50000000", "/dev/zero"]));
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 });
        let bounds = Reader::bounds(&bench.host.as_ref().unwrap().console(bench.uid)).unwrap();
        assert_eq!(bounds.end, 50_000_002, "{}", bench.label());
        assert!(bounds.end - bounds.start <= 1 << 20, "the spool is bounded");
    }
}

#[test]
fn each_sandbox_has_a_user_a_home_and_an_environment_of_its_own() {
    for mut bench in real() {
        let script = "id -u; pwd; echo $HOME; env | sort | cut -d= -f1 | tr '\\n' ' '; touch here";
        let (exit, console) = bench.run(&spec(&["bash", "-c", script]));
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 }, "{console}");
        let inside = bench.driver.isolation() != sodium_model::Isolation::Process;
        let lines: Vec<&str> = console.lines().collect();
        assert_eq!(lines[0], if inside { "1000" } else { "234567" }, "{}", bench.label());
        assert_eq!(lines[1], lines[2]);
        assert_eq!(lines[1], "/home/container");
        let told = "BUN_JSC_forceRAMSize DENO_V8_FLAGS GOMAXPROCS GOMEMLIMIT HOME LANG \
            MALLOC_ARENA_MAX NODE_OPTIONS PATH PWD PYTHON_CPU_COUNT SHLVL SODIUM_SANDBOX TERM USER _ ";
        assert_eq!(lines[3], told);
    }
}

/// What root's group may read, such as a file of mode 0640, is none of a sandbox's.
#[test]
fn each_sandbox_has_a_group_of_its_own_and_no_other() {
    for mut bench in real() {
        let isolation = bench.driver.isolation();
        let iid = bench.start(&spec(&["bash", "-c", "id -G; exec sleep 1000"]));
        let pid = bench.wait_running(&iid).unwrap();
        bench.wait(&iid, "groups", |_| bench.console().ends_with('\n'));
        let inside = isolation != sodium_model::Isolation::Process;
        let want = if inside { "1000\n" } else { "234567\n" };
        assert_eq!(bench.console(), want, "{}", bench.label());
        if isolation == sodium_model::Isolation::Gvisor {
            // Its guest's groups are no groups of the host.
            continue;
        }
        // As the host has it, whatever is said inside: real, effective, saved, and of files.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        let ids: Vec<&str> = of("Gid:").split_whitespace().collect();
        assert_eq!(ids, ["234567"; 4], "{}", bench.label());
        assert_eq!(of("Groups:").trim(), "", "{}", bench.label());
    }
}

#[test]
fn three_descriptors_go_in_and_no_more() {
    for mut bench in real() {
        // Asked one by one: gVisor of 2022 cannot list them.
        let script = "import os\nfor fd in range(256):\n try: os.fstat(fd); print(fd)\n except OSError: pass";
        let (_, console) = bench.run(&spec(&["python3", "-c", script]));
        assert_eq!(console, "0\n1\n2\n", "{}", bench.label());
    }
}

/// A shim speaks to sixteen at once. Who finds no place waits for one, and takes what runs for nothing else meanwhile.
#[test]
fn many_that_look_at_once_all_see_what_runs() {
    for mut bench in real() {
        let iid = bench.start(&spec(&["sleep", "1000"]));
        bench.wait_running(&iid);
        let (driver, label) = (&bench.driver, bench.label());
        let runs = || matches!(driver.observe(&iid).unwrap(), Observed::Running { .. });
        std::thread::scope(|scope| {
            let looks: Vec<_> = (0..64).map(|_| scope.spawn(|| (0..20).all(|_| runs()))).collect();
            assert!(looks.into_iter().all(|look| look.join().unwrap()), "{label}");
        });
    }
}

#[test]
fn a_crash_starts_no_program_of_the_host() {
    for mut bench in real() {
        if bench.driver.isolation() == sodium_model::Isolation::Gvisor {
            continue;
        }
        // With 0, a piped core_pattern would be obeyed.
        let script = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))";
        let (_, console) = bench.run(&spec(&["python3", "-c", script]));
        assert_eq!(console, "(1, 1)\n", "{}", bench.label());
    }
}

#[test]
fn limits_hold_before_the_first_instruction_and_are_read_back() {
    for mut bench in real() {
        let mut limited =
            spec(&["bash", "-c", "ulimit -n; for i in $(seq 40); do sleep 5 & done; wait"]);
        limited.limits.max_processes = 8;
        let (_, console) = bench.run(&limited);
        assert!(console.starts_with("256\n"), "{console}");
        assert!(
            console.contains("Resource temporarily unavailable"),
            "{}: {console}",
            bench.label()
        );
        let mut eater = spec(&["python3", "-c", "b = bytearray(200 << 20); print('survived')"]);
        eater.limits.memory_mb = 32;
        let (exit, console) = bench.run(&eater);
        assert!(matches!(exit.kind, ExitKind::Oom { .. }), "{}: {exit:?} {console}", bench.label());
        assert!(exit.oom_kills >= 1 && exit.memory_peak_bytes > 16 << 20, "{exit:?}");
    }
}

#[test]
fn time_runs_out_without_the_daemon() {
    for mut bench in real() {
        let mut brief = spec(&["bash", "-c", "echo up; sleep 1000"]);
        brief.limits.timeout_seconds = 1;
        let (exit, console) = bench.run(&brief);
        assert!(matches!(exit.kind, ExitKind::Timeout { .. }), "{}: {exit:?}", bench.label());
        assert!(console.contains("time limit of 1 s reached"), "{console}");
    }
}

#[test]
fn a_dead_shim_takes_its_workload_along_and_the_end_is_not_invented() {
    for mut bench in real() {
        let iid = bench.start(&spec(&["bash", "-c", "sleep 1000 & sleep 1000"]));
        bench.wait_running(&iid);
        bench.driver.kill_shim(&iid).unwrap();
        // gVisor's sandbox is nobody's child then: what is left is told apart, and ended.
        let silent = |seen: &Observed| matches!(seen, Observed::Gone { .. } | Observed::Orphan);
        if bench.wait(&iid, "silent", silent) == Observed::Orphan {
            bench.driver.kill_orphan(&iid).unwrap();
        }
        let seen = bench.wait(&iid, "gone", |seen| matches!(seen, Observed::Gone { .. }));
        assert_eq!(seen, Observed::Gone { exit: None, began: true }, "{}", bench.label());
        bench.driver.clean_up(&iid).unwrap();
    }
}

#[test]
fn a_terminal_is_one_and_has_a_session() {
    for mut bench in real() {
        let script = "test -t 0 && echo is a tty; stty size";
        let terminal = Spec { tty: true, ..spec(&["bash", "-c", script]) };
        let (exit, console) = bench.run(&terminal);
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 }, "{console}");
        assert!(console.starts_with("is a tty\r\n24 80\r\n"), "{}: {console:?}", bench.label());
    }
}

#[test]
fn a_gvisor_guest_counts_its_own_memory_cpus_and_processes() {
    for mut bench in versions().iter().map(|program| gvisor(program)).chain([claimed()]) {
        let script =
            "head -1 /proc/meminfo; nproc; ulimit -u; id -u; grep CapEff /proc/self/status";
        let mut limited = spec(&["bash", "-c", script]);
        limited.limits.memory_mb = 96;
        let (_, console) = bench.run(&limited);
        let words: Vec<&str> = console.split_whitespace().collect();
        let want = ["MemTotal:", "98304", "kB", "1", "16", "1000", "CapEff:", "0000000000000000"];
        assert_eq!(words, want, "{}", bench.label());
        // Which is the guest's view; on the host it may use them all, within its quota.
        let mut idle = limited.clone();
        idle.command = ["sleep", "1000"].map(str::to_owned).to_vec();
        let iid = bench.start(&idle);
        let pid = bench.wait_running(&iid).unwrap();
        let allowed = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap().to_owned()
        };
        assert_eq!(allowed(pid), allowed(std::process::id()), "{}", bench.label());
        bench.driver.stop(&iid, &stop(true, 0)).unwrap();
        bench.wait_exit(&iid);
        bench.driver.clean_up(&iid).unwrap();
        // What the host allows is more, so that the guest's own limit is the one that is met.
        limited.command = vec!["python3".to_owned(), "-c".to_owned(), THREADS.to_owned()];
        let (exit, console) = bench.run(&limited);
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 }, "{console}");
        assert!(console.ends_with("refused\n"), "{console}");
    }
}

#[test]
fn what_gvisor_lacks_is_told_to_whom_it_may_have_failed() {
    for mut bench in versions().iter().map(|program| gvisor(program)).chain([claimed()]) {
        // 323 is userfaultfd; the rest does not exist anywhere, and is too much to be kept.
        let script = "import ctypes, os, sys
call = ctypes.CDLL(None).syscall
for number in [323] + list(range(1000, 1500)): call(number, 0, 0, 0, 0, 0, 0)
sys.stdout.flush(); os._exit(int(sys.argv[1]))";
        let (exit, console) = bench.run(&spec(&["python3", "-c", script, "3"]));
        assert_eq!(exit.kind, ExitKind::Exited { code: 3 }, "{}: {console}", bench.label());
        let hint = exit.hint.unwrap();
        assert!(hint.contains("userfaultfd: no isolation allows it"), "{hint}");
        assert!(hint.contains("system call 1000,") && !hint.contains("1400"), "{hint}");
        assert_eq!(console, format!("[sodiumd] {hint}\n"));
        let (exit, _) = bench.run(&spec(&["python3", "-c", script, "0"]));
        assert_eq!(exit.hint, None, "{}", bench.label());
        // A C library that only tries what it can do without has missed nothing.
        let (exit, _) = bench.run(&spec(&["sh", "-c", "exit 3"]));
        assert_eq!(exit.hint, None, "{}", bench.label());
    }
}

/// As many threads as it is given.
const THREADS: &str = "import threading, time
try:
    while True: threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
except RuntimeError: print('refused', flush=True)
import os; os._exit(0)";

#[test]
fn nothing_gets_out_of_bubblewrap_and_gvisor() {
    let outside = tempfile::Builder::new().prefix("sodium-it-").tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(outside.path(), mode).unwrap();
    // Readable for everyone, so that only the walls keep it.
    std::fs::write(outside.path().join("secret"), "x").unwrap();
    for mut bench in real() {
        let isolation = bench.driver.isolation();
        if isolation == sodium_model::Isolation::Process {
            continue;
        }
        let path = outside.path().to_str().unwrap();
        let pid = std::process::id().to_string();
        let script = include_str!("breakout.py");
        let (exit, console) =
            bench.run(&spec(&["python3", "-c", script, path, &pid, isolation.as_str()]));
        assert_eq!(exit.kind, ExitKind::Exited { code: 0 }, "{}: {console}", bench.label());
        assert_eq!(console, "tried\n", "{}", bench.label());
    }
}

#[test]
fn what_has_the_name_of_something_new_is_left_as_it_is() {
    for mut bench in real() {
        let iid = bench.start(&spec(&["sleep", "1000"]));
        let pid = bench.wait_running(&iid);
        // Another sandbox, whose instances would have the same names.
        let twin = Uuid::from_u128(bench.uid.as_u128() ^ 1 << 120);
        assert_eq!(Iid::new(twin, 1), iid);
        let spec = spec(&["sleep", "1000"]);
        let order = Order {
            iid: &iid,
            name: &SandboxName::try_from("twin").unwrap(),
            uid: twin,
            generation: 1,
            epoch: 1,
            spec: &spec,
            host_uid: 234_568,
            image_files: &BTreeMap::new(),
            take_back: None,
            restore: None,
        };
        let refused = bench.driver.start(&order).unwrap_err();
        assert!(matches!(refused, DriverError::Exists { .. }), "{}: {refused:?}", bench.label());
        let seen = bench.driver.observe(&iid).unwrap();
        let Observed::Running { pid: now, frozen: false, .. } = seen else { panic!("{seen:?}") };
        assert_eq!(now, pid, "{}", bench.label());
        bench.driver.stop(&iid, &stop(true, 0)).unwrap();
        bench.wait_exit(&iid);
        // Ended, it keeps its name until it is cleaned up.
        let refused = bench.driver.start(&order).unwrap_err();
        assert!(matches!(refused, DriverError::Exists { .. }), "{}: {refused:?}", bench.label());
        bench.wait_exit(&iid);
    }
}
