//! What the clock does to what runs, whoever asks how often meanwhile.

use std::time::{Duration, Instant};

use sodium_model::{ExitKind, Observed};
use sodium_runtime::Adjust;

use super::{PATIENCE, real, spec, stop};

/// It prints a word once it can be asked to end, and ends by force alone.
const IGNORES: [&str; 3] = ["bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"];
/// Longer than a test waits, in milliseconds.
const FOREVER: u64 = 600_000;

#[test]
fn a_later_stop_hastens_the_kill_and_never_puts_it_off() {
    for mut bench in real() {
        let killed = ExitKind::Signaled { signal: "SIGKILL".to_owned() };
        // What ends it is the shorter grace, whichever was given first: the other one outlasts the test.
        for graces in [[1_000, FOREVER], [FOREVER, 1]] {
            let from = bench.console().len();
            let iid = bench.start(&spec(&IGNORES));
            bench.wait(&iid, "ready", |_| bench.console()[from..].contains("ready"));
            for grace_ms in graces {
                bench.driver.stop(&iid, &stop(false, grace_ms)).unwrap();
            }
            assert_eq!(bench.wait_exit(&iid).kind, killed, "{}: {graces:?}", bench.label());
            bench.driver.clean_up(&iid).unwrap();
        }
    }
}

#[test]
fn a_changed_time_limit_counts_from_the_start_however_often_it_is_changed() {
    for mut bench in real() {
        let mut brief = spec(&["sleep", "1000"]);
        let iid = bench.start(&brief);
        bench.wait_running(&iid);
        brief.limits.timeout_seconds = 1;
        let order = Adjust { uid: bench.uid, host_uid: 234_567, limits: &brief.limits };
        let deadline = Instant::now() + PATIENCE;
        // If each change began the time anew, it would never be over.
        while matches!(bench.driver.observe(&iid).unwrap(), Observed::Running { .. }) {
            assert!(Instant::now() < deadline, "{}: it had time again", bench.label());
            // Refused, if it has ended since.
            let _ = bench.driver.adjust(&iid, &order);
            std::thread::sleep(Duration::from_millis(20));
        }
        let exit = bench.wait_exit(&iid);
        assert!(matches!(exit.kind, ExitKind::Timeout { .. }), "{}: {exit:?}", bench.label());
    }
}
