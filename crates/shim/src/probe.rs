//! A program that tries to pass each limit and each wall of the sandbox that it runs in, for real, and says what
//! the kernel answered. It is shown to a sandbox only if that is what the sandbox is to run; who judges what it says
//! is `sodiumd prove`.
//!
//! What it says are lines of JSON: `{"tried": …}` before what may be its end, and what came of it after.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use sodium_sys::error::chain;
use sodium_sys::{attack, process, trial};

/// The word that says that this is wanted.
pub const WORD: &str = "probe";
/// Nothing is tried beyond so many times the limit: then it is passed.
const BEYOND: u64 = 2;
/// With no limit, there still is an end.
const MOST_PROCESSES: u64 = 4_096;
const MOST_FILES: u64 = 70_000;
const MOST_INODES: u64 = 150_000;
const MIB: usize = 1 << 20;
/// How long something is written without a pause.
const BUSY: Duration = Duration::from_millis(2_500);
const FLOOD_BYTES: usize = 32 * MIB;
/// How long a connection may take that should not come about.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// Runs one, named by the first word.
pub(super) fn run(words: &[String]) -> ExitCode {
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    let count = |at: usize| word(at).parse::<u64>().unwrap_or(0);
    match word(0) {
        "memory" => memory(count(1)),
        "processes" => processes(count(1)),
        "files" => files(count(1)),
        "disk" => disk(count(1)),
        "inodes" => inodes(),
        "io" => io_rate(),
        "cpu" => cpu(Duration::from_millis(count(1))),
        "output" => flood(),
        "time" => outstay(),
        "host" => host(words.get(1..).unwrap_or_default()),
        "network" => network(words.get(1..).unwrap_or_default()),
        "attacks" => attacks(word(1), word(2) == attack::FILTER),
        "link" => link(word(1)),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn say(value: &Value) {
    // Nobody to tell: then nobody minds.
    let _ = writeln!(io::stdout(), "{value}").and_then(|()| io::stdout().flush());
}

/// What refused, in the kernel's words; or that nothing did.
fn answer<T>(done: &io::Result<T>) -> Value {
    done.as_ref().err().map_or(Value::Null, |error| json!(error.to_string()))
}

fn memory(limit_mb: u64) {
    say(&json!({"tried": "memory", "limit_mb": limit_mb}));
    let most = limit_mb.max(64) * BEYOND + 64;
    let mut held: Vec<Vec<u8>> = Vec::new();
    for mb in 1..=most {
        let mut piece: Vec<u8> = Vec::new();
        if piece.try_reserve_exact(MIB).is_err() {
            say(&json!({"held_mb": mb - 1, "answer": "cannot allocate memory"}));
            return;
        }
        // Touched, each page, or it is only a promise.
        piece.resize(MIB, 7);
        held.push(piece);
        if mb % 8 == 0 || mb > limit_mb.saturating_sub(8) {
            say(&json!({"held_mb": mb}));
        }
    }
    say(&json!({"held_mb": most, "answer": null, "passed": true}));
}

fn processes(limit: u64) {
    let most = if limit == 0 { MOST_PROCESSES } else { limit * BEYOND + 16 };
    let mut pids = Vec::new();
    let mut refusal = Value::Null;
    while (pids.len() as u64) < most {
        match trial::idle_child() {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                refusal = json!(error.source.to_string());
                break;
            }
        }
    }
    // With the first process, which is us.
    let count = pids.len() + 1;
    for pid in pids {
        trial::kill_child(pid);
    }
    while process::reap_any().is_some() {}
    say(&json!({"processes": count, "answer": refusal}));
}

fn files(limit: u64) {
    let most = if limit == 0 { MOST_FILES } else { limit * BEYOND + 16 };
    let mut open = Vec::new();
    let mut refusal = Value::Null;
    while (open.len() as u64) < most {
        match File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => {
                refusal = json!(error.to_string());
                break;
            }
        }
    }
    let count = open.len() + 3;
    drop(open);
    say(&json!({"files": count, "answer": refusal}));
}

/// Fills the workspace, then /tmp: they share what there is. What was written goes again.
fn disk(limit_mb: u64) {
    let most = limit_mb.max(16) * BEYOND;
    let tmp = std::env::temp_dir();
    let (home_mb, refusal) = fill(Path::new("prove-fill"), most);
    let (tmp_mb, tmp_refusal) = fill(&tmp.join("prove-fill"), most.saturating_sub(home_mb));
    let _ = fs::remove_file(tmp.join("prove-fill"));
    let _ = fs::remove_file("prove-fill");
    let after = fs::write("prove-after", vec![1; MIB]);
    let _ = fs::remove_file("prove-after");
    say(
        &json!({"home_mb": home_mb, "answer": refusal, "tmp_mb": tmp_mb, "tmp_answer": tmp_refusal,
        "then": answer(&after)}),
    );
}

fn fill(path: &Path, most_mb: u64) -> (u64, Value) {
    let piece = vec![0x5A_u8; MIB];
    let mut file = match File::create(path) {
        Ok(file) => file,
        Err(error) => return (0, json!(error.to_string())),
    };
    for mb in 0..most_mb {
        if let Err(error) = file.write_all(&piece) {
            return (mb, json!(error.to_string()));
        }
        if mb % 64 == 63
            && let Err(error) = file.sync_data()
        {
            return (mb, json!(error.to_string()));
        }
    }
    let synced = file.sync_all();
    (most_mb, answer(&synced))
}

fn inodes() {
    let dir = Path::new("prove-inodes");
    let _ = fs::create_dir(dir);
    let mut refusal = Value::Null;
    let mut count = 0;
    while count < MOST_INODES {
        if let Err(error) = File::create(dir.join(count.to_string())) {
            refusal = json!(error.to_string());
            break;
        }
        count += 1;
    }
    let _ = fs::remove_dir_all(dir);
    say(&json!({"inodes": count, "answer": refusal}));
}

/// Writes to the disk as fast as that takes it.
fn io_rate() {
    let piece = vec![0xA5_u8; 256 << 10];
    let (mut written, began) = (0, Instant::now());
    let mut refusal = Value::Null;
    while began.elapsed() < BUSY {
        // The same file again and again: it is the way there that is measured, not the room.
        let done = File::create("prove-io").and_then(|mut file| {
            file.write_all(&piece)?;
            file.sync_all()
        });
        if let Err(error) = done {
            refusal = json!(error.to_string());
            break;
        }
        written += piece.len();
    }
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(1).max(1);
    let _ = fs::remove_file("prove-io");
    say(&json!({"stored": written, "ms": ms, "answer": refusal}));
}

/// Keeps twice as many threads busy as there are cpus to be seen.
fn cpu(busy: Duration) {
    let seen = trial::cpu_count();
    let before = trial::cpu_usec();
    let began = Instant::now();
    let threads: Vec<_> = (0..seen * 2)
        .map(|_| {
            thread::Builder::new().spawn(move || {
                let mut x = 1_u64;
                while began.elapsed() < busy {
                    for _ in 0..10_000 {
                        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005));
                    }
                }
            })
        })
        .collect();
    for thread in threads.into_iter().flatten() {
        // A thread that panics has at least tried.
        let _ = thread.join();
    }
    let wall = u64::try_from(began.elapsed().as_micros()).unwrap_or(1).max(1);
    let used = trial::cpu_usec().saturating_sub(before);
    say(&json!({"cpus": seen, "percent": used * 100 / wall}));
}

fn flood() {
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat().repeat(64);
    let (mut written, began) = (0, Instant::now());
    let mut out = io::stdout().lock();
    while written < FLOOD_BYTES && began.elapsed() < 4 * BUSY && out.write_all(&line).is_ok() {
        written += line.len();
    }
    drop(out);
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(1).max(1);
    say(&json!({"written": written, "ms": ms}));
}

/// Does not go when it is asked to.
fn outstay() {
    trial::ignore_requests_to_end();
    say(&json!({"tried": "time"}));
    thread::sleep(Duration::from_secs(3_600));
    say(&json!({"passed": true}));
}

/// Files that are the host's alone, and what else there is to see of it.
fn host(paths: &[String]) {
    let known = ["/etc/shadow", "/root/.", "/dev/mem", "/dev/kmsg", "/proc/1/root/etc/shadow"];
    let beyond = paths.iter().map(|path| format!("/proc/1/root{path}"));
    let names = known.map(str::to_owned).into_iter().chain(paths.iter().cloned()).chain(beyond);
    let readable = |path: &String| match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => fs::read_dir(path).is_ok(),
        _ => File::open(path).is_ok(),
    };
    let read: Vec<String> = names.filter(readable).collect();
    let places = [
        "/usr/prove",
        "/etc/prove",
        "/prove",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
    ];
    let writable = |path: &&str| OpenOptions::new().append(true).create(true).open(path).is_ok();
    let wrote: Vec<&str> = places.into_iter().filter(writable).collect();
    let strangers = attack::strangers(&[std::process::id()]);
    let signalled = strangers.iter().filter(|pid| trial::may_signal(**pid)).count();
    let shown = |pid: &&u32| **pid != 1 && !process::arguments(**pid).is_empty();
    let seen = strangers.iter().filter(shown).count();
    say(&json!({"read": read, "wrote": wrote, "seen": seen, "signalled": signalled}));
}

fn network(addresses: &[String]) {
    let answers: Vec<Value> = addresses
        .iter()
        .filter_map(|text| text.parse::<SocketAddr>().ok())
        .map(|address| {
            let connected = TcpStream::connect_timeout(&address, CONNECT_WITHIN);
            json!({"to": address.to_string(), "answer": answer(&connected)})
        })
        .collect();
    say(&json!({"connections": answers}));
}

/// One line for each attack, with what refused it; and one at the end.
fn attacks(abstract_socket: &str, filtered: bool) {
    say(&standing());
    for (name, tried) in attack::ALL {
        say(&match attack::attempt(*tried) {
            Ok(done) => json!({"attack": name, "answer": answer(&done)}),
            Err(error) => json!({"attack": name, "untried": chain(&error)}),
        });
    }
    let reached = attack::reach_abstract_socket(abstract_socket);
    say(&json!({"attack": attack::ABSTRACT_SOCKET, "answer": answer(&reached)}));
    if filtered {
        let through = attack::unfiltered();
        let answer = through.is_empty().then_some("each call on its list was refused");
        say(&json!({"attack": attack::FILTER, "answer": answer, "through": through}));
    }
    say(&json!({"attacks": "over"}));
}

/// What the kernel has written down of this process.
fn standing() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let users: Vec<&str> = users.split_whitespace().collect();
    json!({"capabilities": field("CapEff"), "no_new_privileges": field("NoNewPrivs"),
        "filter": field("Seccomp"), "users": users.join(" ")})
}

/// A way out of the workspace for whoever follows it.
fn link(target: &str) {
    let _ = fs::remove_file("prove-link");
    say(&json!({"answer": answer(&symlink(target, "prove-link"))}));
}
