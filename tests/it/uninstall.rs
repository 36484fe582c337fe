//! `sodiumd uninstall`: takes away what is ours, and nothing of anybody else's.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::desk::Desk;

#[tokio::test]
async fn while_a_daemon_runs_nothing_is_taken_away() {
    let desk = Desk::new().await;
    desk.write_spec("web.yaml", "web", &json!({"command": ["sleep", "1000"]}));
    let before = desk.wait_phase("web", "Running").await["status"]["instance"]["pid"].clone();
    let (code, _, said) = desk.cli(&["uninstall", "--purge", "--yes"]);
    assert!(code == 1 && said.contains("another sodiumd") && said.contains("drain"), "{said}");
    assert_eq!(desk.sandbox("web").await["status"]["instance"]["pid"], before);
    let (code, _, said) = desk.cli(&["uninstall", "--purge"]);
    assert!(code == 1 && said.contains("add --yes"), "nobody is there to be asked: {said}");
}

#[tokio::test]
async fn what_lies_in_a_directory_of_ours_is_not_removed_along_with_it() {
    for paths in [
        json!({"run_path": "d", "state_path": "d/state", "sandboxes_path": "d/sandboxes"}),
        json!({"run_path": "."}),
        json!({"state_path": ".", "sandboxes_path": "sandboxes"}),
    ] {
        let mut desk = Desk::prepared(paths.clone());
        desk.daemon = Some(desk.spawn());
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        desk.kill();
        let (code, _, said) = desk.cli(&["uninstall", "--purge", "--yes"]);
        assert!(code == 1 && said.contains("nothing was taken away"), "{paths}: {said}");
        assert!(desk.path("config.json").exists() && desk.path("desired").exists(), "{paths}");
    }
}

#[tokio::test]
async fn a_disk_that_somebody_mounted_for_sandboxes_is_emptied_and_stays_mounted() {
    let mut desk = Desk::prepared(json!({"sandboxes_path": "link/boxes"}));
    desk.add_disk("disk", 64);
    fs::create_dir(desk.path("disk/boxes")).unwrap();
    symlink(desk.path("disk"), desk.path("link")).unwrap();
    desk.start().await;
    let spec = json!({"command": ["sh", "-c", "echo kept > file; sleep 1000"],
        "limits": {"disk_mb": 16}});
    desk.write_spec("web.yaml", "web", &spec);
    desk.wait_phase("web", "Running").await;
    assert_eq!(desk.cli(&["drain"]).0, 0);
    desk.kill();
    let (code, _, said) = desk.cli(&["uninstall"]);
    assert!(code == 0 && said.contains("kept "), "{said}");
    assert!(desk.path("disk/boxes").exists() && !desk.path("run").exists());
    // It runs again though it was drained for this, on the files that it had.
    desk.start().await;
    desk.wait_phase("web", "Running").await;
    desk.kill();
    let (code, _, said) = desk.cli(&["uninstall", "--purge", "--yes"]);
    assert!(code == 0 && said.contains("ended 1 sandboxes"), "{said}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let disk = desk.path("disk").to_str().unwrap().replace(' ', "\\040");
    assert!(mounts.contains(&disk), "{mounts}");
    assert!(!desk.path("disk/boxes").exists() && !desk.path("state").exists());
}

#[tokio::test]
async fn a_group_of_which_nothing_else_is_known_is_left_to_whose_it_may_be() {
    let mut desk = Desk::new().await;
    desk.kill();
    let notes = fs::read(desk.path("run/cgroups.json")).unwrap();
    let notes: serde_json::Value = serde_json::from_slice(&notes).unwrap();
    let group =
        std::path::Path::new(notes[0]["unified"].as_str().unwrap()).join("0123456789abcdef-1");
    fs::create_dir(&group).unwrap();
    let (code, _, said) = desk.cli(&["uninstall"]);
    assert!(code == 1 && said.contains("may be another daemon's"), "{said}");
    fs::remove_dir(&group).unwrap();
    assert_eq!(desk.cli(&["uninstall"]).0, 0);
}

#[tokio::test]
async fn a_user_s_own_goes_too_and_needs_nothing_of_roots() {
    let mut desk = Desk::rootless().await;
    desk.write_spec("web.yaml", "web", &json!({"command": ["sleep", "1000"]}));
    let pid = desk.wait_phase("web", "Running").await["status"]["instance"]["pid"].clone();
    desk.kill();
    let (code, _, said) = desk.cli(&["uninstall", "--purge", "--yes"]);
    assert!(code == 0 && said.contains("ended 1 sandboxes"), "{said}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}/cwd")).exists(), "{pid} runs on");
    assert!(!desk.path("run").exists() && !desk.path("state").exists());
}
