//! What the drivers are given in tests.

use std::collections::BTreeMap;

use super::launch::environment;
use super::ledger::Counting;
use super::*;
use crate::process::View;
use crate::storage::workspace::Kept;
use sodium_model::{SandboxName, Spec, Verdict};
use sodium_sys::cgroup::Controller;

/// An order for `sh -c id`, for tests of command lines.
pub(crate) fn order(check: impl FnOnce(&Order<'_>)) {
    let uid = Uuid::nil();
    let spec: Spec = serde_json::from_value(serde_json::json!({
        "isolation": "bubblewrap", "command": ["sh", "-c", "id"], "state": "running",
        "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "5m"}, "max_failures": 0},
        "stop": {"signal": "SIGTERM", "grace": "10s"}, "tty": false, "network": "none",
        "limits": {"memory_mb": 64, "cpu_percent": 100, "disk_mb": 0, "timeout_seconds": 0,
                   "max_processes": 16, "max_files": 256},
        "strict": false
    }))
    .unwrap();
    check(&Order {
        iid: &Iid::new(uid, 1),
        name: &SandboxName::try_from("web").unwrap(),
        uid,
        generation: 1,
        epoch: 1,
        spec: &spec,
        host_uid: 200_000,
        image_files: &BTreeMap::new(),
        take_back: None,
        restore: None,
    });
}

#[test]
fn the_environment_is_built_from_empty_and_the_spec_has_the_last_word() {
    order(|order| {
        let own = [("TERM", "dumb"), ("A", "b"), ("GOMAXPROCS", "7")];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let spec = Spec { env: own, limits: Limits::NONE, ..order.spec.clone() };
        let env = environment(order.name, &spec, &View::inside());
        let names: Vec<&str> = env.keys().map(String::as_str).collect();
        let want =
            ["A", "GOMAXPROCS", "HOME", "LANG", "PATH", "PWD", "SODIUM_SANDBOX", "TERM", "USER"];
        assert_eq!(names, want);
        assert_eq!(env["TERM"], "dumb");
        let limited = Spec { limits: Limits::DEFAULT, ..spec };
        assert_eq!(environment(order.name, &limited, &View::inside())["GOMAXPROCS"], "7");
    });
}

#[test]
fn a_limit_beyond_the_daemons_own_says_so() {
    let limits = Limits { max_files: 1 << 30, ..Limits::DEFAULT };
    let kept = Kept {
        mechanism: "x".to_owned(),
        read_back: Some(1008 << 20),
        verdict: Verdict::Enforced,
        reason: String::new(),
    };
    let disk = ledger::Disk { kept: &kept, console_bytes: ledger::shares(&limits, 16 << 20).1 };
    let statuses = ledger::statuses(&limits, &[], Counting::Host { own: 0 }, &disk);
    let files = statuses.iter().find(|status| status.limit == "max_files").unwrap();
    assert_eq!(files.verdict, Verdict::Degraded);
    assert!(files.reason.contains("cannot give more"), "{files:?}");
    let disk = statuses.iter().find(|status| status.limit == "disk_mb").unwrap();
    assert_eq!((disk.read_back, disk.requested), (Some(1024), 1024));
    assert_eq!(disk.mechanism, "x of 1008 MiB, 16 MiB for the console");
}

/// What the kernel has is said, whatever was asked for, and strict runs with nothing else.
#[test]
fn a_limit_that_reads_back_as_another_is_not_enforced_and_strict_refuses_it() {
    let limits = Limits { memory_mb: 64, max_processes: 16, ..Limits::NONE };
    let kept = Kept {
        mechanism: String::new(),
        read_back: None,
        verdict: Verdict::Enforced,
        reason: String::new(),
    };
    let disk = ledger::Disk { kept: &kept, console_bytes: 0 };
    let found = |bytes: Option<u64>| {
        let applied = bytes.map(|bytes| Applied {
            controller: Controller::Memory,
            mechanism: "memory.max".to_owned(),
            read_back: Some(bytes),
        });
        let pids = Applied {
            controller: Controller::Pids,
            mechanism: "pids.max".to_owned(),
            read_back: Some(17),
        };
        let applied: Vec<Applied> = applied.into_iter().chain([pids]).collect();
        let all = ledger::statuses(&limits, &applied, Counting::Host { own: 1 }, &disk);
        let strict = |strict| {
            let mut refused = None;
            order(|order| {
                let spec = Spec { strict, limits, ..order.spec.clone() };
                refused = ledger::check_strict(&spec, &all).err().map(|error| error.to_string());
            });
            refused
        };
        let memory = all.iter().find(|one| one.limit == "memory_mb").unwrap();
        let processes = all.iter().find(|one| one.limit == "max_processes").unwrap();
        assert_eq!((processes.verdict, processes.read_back), (Verdict::Enforced, Some(16)));
        (memory.verdict, memory.read_back, strict(true), strict(false))
    };
    assert_eq!(found(Some(64 << 20)), (Verdict::Enforced, Some(64), None, None));
    let (verdict, read_back, refused, lenient) = found(Some(65 << 20));
    assert_eq!((verdict, read_back, lenient), (Verdict::Degraded, Some(65), None));
    assert!(refused.is_some_and(|why| why.contains("memory_mb is not enforced")));
    let (verdict, read_back, refused, lenient) = found(None);
    assert_eq!((verdict, read_back, lenient), (Verdict::Unsupported, None, None));
    assert!(refused.is_some());
}
