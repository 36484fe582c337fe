//! Wherever somebody puts it: each isolation starts there, and doctor says so before.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::desk::Desk;

/// Something mounted on a directory, for as long as this.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path, kind: &str, options: &str) -> Self {
        std::fs::create_dir(at).unwrap();
        let image = at.with_extension("img");
        let source = if kind == "tmpfs" {
            PathBuf::from("none")
        } else {
            std::fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
            image
        };
        let looped = if kind == "tmpfs" { "" } else { "loop," };
        let options = format!("{looped}{options}");
        run(Command::new("mount").args(["-t", kind, "-o", &options]).arg(source).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: this is no place to fail.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// All of it below a directory, nothing of which is anywhere else.
async fn everything_runs_in(above: &Path, within: Vec<&'static str>) {
    let runsc = concat!(env!("CARGO_MANIFEST_DIR"), "/target/runsc/bookworm-backports");
    let extra = json!({"gvisor": {"program": runsc}, "images_path": "./images"});
    let mut desk = Desk::prepared_in(above, extra);
    desk.within = within;
    let (_, said, error) = desk.cli(&["doctor", "-o", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {error}"));
    let tried = ["process", "bubblewrap", "gvisor, systrap", "state_path"];
    for one in said["findings"].as_array().unwrap() {
        let is_tried = tried.contains(&one["name"].as_str().unwrap());
        assert!(!is_tried || one["severity"] == "fine", "{}: {one:#}", above.display());
    }
    desk.start().await;
    let script = "echo kept > file; cat file; echo there > /tmp/x; cat /tmp/x; sleep 1000";
    let isolations = ["process", "bubblewrap", "gvisor"];
    for isolation in isolations {
        let spec = json!({"command": ["sh", "-c", script], "isolation": isolation,
            "limits": {"disk_mb": 32, "timeout_seconds": 0}});
        desk.write_spec(&format!("{isolation}.yaml"), isolation, &spec);
    }
    let mut pids = Vec::new();
    for isolation in isolations {
        desk.wait_logs(isolation, "kept\nthere\n").await;
        pids.push(desk.wait_phase(isolation, "Running").await["status"]["instance"].clone());
        let (code, out, error) = desk.cli(&["exec", isolation, "--", "cat", "file"]);
        assert_eq!((code, out.as_str()), (0, "kept\n"), "{isolation}: {error}");
        let secret = desk.path("config.json");
        let (code, out, _) = desk.cli(&["exec", isolation, "--", "cat", secret.to_str().unwrap()]);
        assert!(code != 0 && out.is_empty(), "{isolation} reads {}: {out}", secret.display());
    }
    desk.kill();
    desk.start().await;
    for (isolation, before) in isolations.into_iter().zip(pids) {
        let after = desk.wait_phase(isolation, "Running").await;
        assert_eq!(after["status"]["instance"], before, "{isolation}");
    }
    let (code, _, error) = desk.cli(&["drain"]);
    assert_eq!(code, 0, "{error}");
    desk.kill();
    let (code, _, said) = desk.cli(&["uninstall", "--purge", "--yes"]);
    assert_eq!(code, 0, "{said}");
    let left = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // As the kernel writes it, but for what it writes otherwise.
    let unique = desk.dir.path().file_name().unwrap().to_str().unwrap().replace(' ', "\\040");
    assert!(!left.contains(&unique), "{left}");
}

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("chmod").arg("755").arg(dir.path()));
    dir
}

#[tokio::test]
async fn below_names_with_everything_that_has_a_meaning_somewhere() {
    let place = place();
    let above = place.path().join("ä ß:b,c=%20d'\"e#;$(f)");
    std::fs::create_dir(&above).unwrap();
    everything_runs_in(&above, Vec::new()).await;
}

#[tokio::test]
async fn what_runsc_cannot_work_with_is_refused_before_a_start_and_says_what_to_do() {
    let place = place();
    let runsc = concat!(env!("CARGO_MANIFEST_DIR"), "/target/runsc/bookworm-backports");
    let above = place.path().join("a[b]");
    std::fs::create_dir(&above).unwrap();
    let desk = Desk::prepared_in(&above, json!({"gvisor": {"program": runsc}}));
    let said = desk.cli(&["doctor"]).1;
    assert!(said.contains("! gvisor") && said.contains("for a pattern"), "{said}");
    assert!(said.contains("leave \"run_path\" out"), "{said}");
}

#[tokio::test]
async fn below_a_directory_that_is_closed_to_others_and_stays_so() {
    let place = place();
    let (closed, link) = (place.path().join("closed"), place.path().join("link"));
    std::fs::create_dir(&closed).unwrap();
    run(Command::new("chmod").arg("700").arg(&closed));
    std::os::unix::fs::symlink(&closed, &link).unwrap();
    everything_runs_in(&closed, Vec::new()).await;
    everything_runs_in(&link, Vec::new()).await;
    assert_eq!(std::fs::metadata(&closed).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn two_hundred_characters_deep_and_behind_a_link() {
    let place = place();
    let deep = place.path().join(["directory-of-eighteen"; 10].join("/"));
    std::fs::create_dir_all(&deep).unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&deep, &link).unwrap();
    everything_runs_in(&deep, Vec::new()).await;
    everything_runs_in(&link, Vec::new()).await;
}

#[tokio::test]
async fn under_a_umask_that_closes_everything_to_others() {
    let place = place();
    everything_runs_in(place.path(), vec!["sh", "-c", "umask 077; exec \"$@\"", "sh"]).await;
}

/// On each of these, mounted with these options.
async fn everything_runs_on(kinds: [&str; 2], options: &str) {
    let place = place();
    for kind in kinds {
        let at = place.path().join(kind);
        let _mounted = Mounted::new(&at, kind, options);
        everything_runs_in(&at, Vec::new()).await;
    }
}

#[tokio::test]
async fn on_file_systems_from_which_nothing_may_be_run() {
    everything_runs_on(["tmpfs", "ext4"], "noexec,nosuid,nodev").await;
}

#[tokio::test]
async fn on_xfs_and_on_btrfs() {
    everything_runs_on(["xfs", "btrfs"], "nosuid").await;
}
