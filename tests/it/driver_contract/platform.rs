//! Which platform of gVisor works here, where none does at first.

use std::sync::Arc;
use std::time::Duration;

use sodium_runtime::Driver;
use sodium_runtime::supervise::Supervisor;

use super::{PATIENCE, bench};

/// A host may be busy as its daemon begins. A platform that was too slow then is neither given up nor put last for good.
#[test]
fn a_platform_that_nothing_ran_on_in_time_is_tried_again() {
    let bench = bench(|host| Box::new(Supervisor::process(host)));
    let host = bench.host.as_ref().unwrap();
    let (program, fast) = (bench.dir.path().join("runsc"), bench.dir.path().join("fast"));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*version*) echo runsc version release-20240729.0 ;;\n*systrap*) [ -e {0} ] || exec sleep 100 ;;\n\
         *) [ -e {0} ] || [ -e {0}.ptrace ] || exec sleep 100 ;;\nesac\n",
        fast.display()
    );
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let gvisor = || Supervisor::gvisor(Arc::clone(host), Some(&program), None);
    let (driver, within) = (gvisor(), Duration::from_millis(500));

    assert!(!driver.find_out(within));
    let why = driver.not_yet().unwrap();
    assert!(why.contains("so far, systrap: nothing ran within"), "{why}");
    assert!(driver.runtime().is_err());

    // It runs on the second one, and whether it does on the first is for the next daemon to find out.
    std::fs::write(fast.with_extension("ptrace"), "").unwrap();
    assert!(driver.find_out(within * 8));
    assert!(driver.runtime().unwrap().ends_with("ptrace"), "{:?}", driver.runtime());
    assert_eq!(driver.not_yet(), None);
    let next = gvisor();
    assert!(!next.recall());
    std::fs::write(&fast, "").unwrap();
    assert!(next.find_out(PATIENCE));
    assert!(next.runtime().unwrap().ends_with("systrap"), "{:?}", next.runtime());
    assert!(gvisor().recall());
}
