//! The daemon's own work on files in directories that others may write to: what is planted or swapped there
//! leads it nowhere, and a configuration that others may write is not believed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags};
use serde_json::{Value, json};
use sodium_model::admission::Rules;
use sodium_model::{Allowed, Isolation, Limits, RestartPolicy, SandboxName};
use sodiumd::desired::scan::{Scanner, Text};
use sodiumd::desired::write::Writer;
use sodiumd::store::{Store, backup, database_path};

use crate::desk::{Desk, PATIENCE};

/// How long each race is run.
const RACE: Duration = Duration::from_millis(400);
const SECRET: &str = "outside";

fn stopped(command: &str) -> Value {
    json!({"command": [command], "state": "stopped"})
}

fn document(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name},
        "spec": spec})
}

async fn put(desk: &Desk, name: &str, spec: &Value) -> crate::desk::Answer {
    let path = format!("/v1/sandboxes/{name}");
    desk.ask("PUT", &path, &document(name, spec).to_string()).await
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn links_planted_in_the_directory_of_specs_lead_an_edit_nowhere() {
    let desk = Desk::with(json!({"store": "files"})).await;
    let outside = desk.path("outside");
    fs::write(&outside, SECRET).unwrap();
    for planted in [".web.yaml.new", "web.yaml", "gone.yaml"] {
        symlink("../outside", desk.path("desired").join(planted)).unwrap();
    }
    let made = put(&desk, "web", &stopped("one")).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(put(&desk, "web", &stopped("two")).await.status, 200);
    let seed = desk.post("/sandboxes", json!({"runtime": "bash", "name": "seed"})).await;
    assert_eq!(seed.status, 200, "{seed:?}");
    symlink("../outside", desk.path("desired/.seed.yaml.new")).unwrap();
    let start = json!({"command": "sleep", "args": ["77"]});
    assert_eq!(desk.post("/sandboxes/seed/start", start).await.status, 200);
    let file = desk.path("desired/web.yaml");
    let meta = fs::symlink_metadata(&file).unwrap();
    assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o600, "{meta:?}");
    fs::remove_file(&file).unwrap();
    symlink("../outside", &file).unwrap();
    assert_eq!(desk.ask("DELETE", "/v1/sandboxes/web?wait=30s", "").await.status, 200);
    assert_eq!(fs::read_to_string(outside).unwrap(), SECRET);
    assert!(fs::symlink_metadata(&file).is_err(), "the link was not removed");
}

#[tokio::test]
async fn an_owner_that_is_no_file_name_is_not_written_to() {
    let desk = Desk::with(json!({"store": "files"})).await;
    assert_eq!(put(&desk, "web", &stopped("one")).await.status, 201);
    for path in ["../planted.yaml", "sub/planted.yaml", ".planted.yaml", "planted"] {
        let owner = json!({"owner": format!("file:{path}")});
        // Whether it is taken as an owner or not, nothing is written there.
        let _ = desk.post("/v1/sandboxes/web/transfer", owner).await;
        let _ = put(&desk, "web", &stopped("two")).await;
        assert!(!desk.path("desired").join(path).exists(), "{path}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_not_opened_among_images_and_specs() {
    let mut desk = Desk::prepared(json!({"images_path": "./images"}));
    fs::create_dir(desk.path("images")).unwrap();
    fs::write(desk.path("outside"), SECRET).unwrap();
    let image = json!({"id": "mine", "name": "", "runtime": "bash", "startup": "sleep 1000"});
    for (dir, end) in [("images", "json"), ("desired", "yaml")] {
        let at = |name: &str| desk.path(dir).join(format!("{name}.{end}"));
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        for (name, target) in
            [("zero", "/dev/zero"), ("out", "../outside"), ("stdin", "/proc/self/fd/0")]
        {
            symlink(target, at(name)).unwrap();
        }
    }
    fs::write(desk.path("images/mine.json"), image.to_string()).unwrap();
    desk.start().await;
    // As Kubernetes lays out a volume, and swaps it.
    for (version, command) in [("1", "one"), ("2", "two")] {
        let dir = desk.path("desired").join(format!("..{version}"));
        fs::create_dir(&dir).unwrap();
        let spec = json!({"image": "mine", "env": {"A": command}, "state": "stopped"});
        let text = document("web", &spec).to_string();
        fs::write(dir.join("web.yaml"), text).unwrap();
        let swapped = desk.path("desired/..data_tmp");
        symlink(format!("..{version}"), &swapped).unwrap();
        fs::rename(swapped, desk.path("desired/..data")).unwrap();
        if version == "1" {
            symlink("..data/web.yaml", desk.path("desired/web.yaml")).unwrap();
        }
        let taken = |one: &Value| one["spec"]["env"]["A"] == command;
        desk.wait_for("web", "taken", taken).await;
    }
    let images = desk.get("/v1/images").await.json;
    assert_eq!(images["items"].as_array().unwrap().len(), 1, "{images}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let files = desk.get("/v1/files").await.json;
        let items = files["items"].as_array().unwrap();
        let faulty = |name: &str| {
            let item = items.iter().find(|item| item["path"] == name);
            item.is_some_and(|item| item["faults"].as_array().is_some_and(|all| !all.is_empty()))
        };
        if ["pipe.yaml", "zero.yaml", "out.yaml", "stdin.yaml"].iter().all(|name| faulty(name)) {
            assert!(!files.to_string().contains(SECRET), "{files}");
            return;
        }
        assert!(Instant::now() < deadline, "{files:#}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two names that change places without end, while work goes on.
fn while_swapped(one: &Path, other: &Path, mut work: impl FnMut()) {
    let end = Instant::now() + RACE;
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let mut swaps = 0;
            while Instant::now() < end {
                // One of them may just be missing.
                let exchange = RenameFlags::RENAME_EXCHANGE;
                let done = nix::fcntl::renameat2(AT_FDCWD, one, AT_FDCWD, other, exchange);
                swaps += u64::from(done.is_ok());
            }
            swaps
        });
        while Instant::now() < end {
            work();
        }
        assert!(swapping.join().unwrap() > 0, "nothing was swapped");
    });
}

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// A directory that others write to, and a file beside it that is none of its business.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        fs::write(dir.path().join("outside.yaml"), SECRET).unwrap();
        Self { dir }
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside.yaml")
    }

    fn assert_unharmed(&self) {
        assert_eq!(fs::read_to_string(self.outside()).unwrap(), SECRET);
        assert!(fs::symlink_metadata(self.outside()).unwrap().is_file());
        let beside = fs::read_dir(self.dir.path()).unwrap().count();
        assert_eq!(beside, 2, "something was written outside");
    }
}

fn rules() -> Rules {
    Rules {
        default_isolation: Isolation::Process,
        allowed: Allowed { floor: Isolation::Process, ..Allowed::default() },
        default_limits: Limits::DEFAULT,
        images: Default::default(),
        default_policy: RestartPolicy::OnFailure,
    }
}

#[test]
fn a_name_that_is_swapped_with_a_link_is_neither_written_through_nor_read_through() {
    let scene = Scene::new();
    let (file, link) = (scene.shared("web.yaml"), scene.shared("x"));
    let writer = Writer::new(&scene.shared(""));
    let name = SandboxName::try_from("web").unwrap();
    let spec = document("web", &stopped("one"));
    let plant = || {
        if fs::symlink_metadata(&file).is_err() {
            let _ = fs::write(scene.shared("plain"), "");
            let _ = fs::rename(scene.shared("plain"), &file);
        }
        if fs::symlink_metadata(&link).is_err() {
            let _ = symlink("../outside.yaml", &link);
        }
    };
    plant();
    let mut scanner = Scanner::new(&scene.shared(""));
    while_swapped(&file, &link, || {
        plant();
        // Whatever comes of it is the matter of whoever swaps.
        let _ = writer.put("web.yaml", (&name, None), &spec, &rules());
        let scan = scanner.scan(0, true).unwrap();
        for text in scan.read.values() {
            if let Text::Bytes { bytes, .. } = text {
                assert_ne!(bytes, SECRET.as_bytes(), "it was read through a link");
            }
        }
        let _ = writer.remove("web.yaml", &name);
    });
    scene.assert_unharmed();
}

#[test]
fn an_image_that_is_swapped_with_a_link_is_not_read_through_it() {
    let scene = Scene::new();
    let image = |id: &str| {
        format!(r#"{{"id": "{id}", "name": "A", "runtime": "bash", "startup": "bash"}}"#)
    };
    fs::write(scene.dir.path().join("outside.json"), image("outside")).unwrap();
    fs::write(scene.shared("a.json"), image("inside")).unwrap();
    symlink("../outside.json", scene.shared("x")).unwrap();
    let (mut inside, mut refused) = (0, 0);
    while_swapped(&scene.shared("a.json"), &scene.shared("x"), || {
        let (images, bad) = sodiumd::image::load(&scene.shared(""));
        assert!(!images.contains_key("outside"), "it was read through a link");
        inside += images.len();
        refused += bad.len();
    });
    assert!(inside > 0 && refused > 0, "{inside} {refused}");
}

#[test]
fn a_directory_that_is_swapped_with_a_link_out_is_not_walked_through() {
    let scene = Scene::new();
    // A name in a directory of specs leads through it, as Kubernetes' do.
    let outside = scene.dir.path().join("outside.yaml");
    fs::create_dir(scene.shared("..1")).unwrap();
    fs::write(scene.shared("..1/outside.yaml"), "inside").unwrap();
    symlink("..", scene.shared("..2")).unwrap();
    symlink("..1/outside.yaml", scene.shared("web.yaml")).unwrap();
    let mut scanner = Scanner::new(&scene.shared(""));
    let (mut inside, mut refused) = (0, 0);
    while_swapped(&scene.shared("..1"), &scene.shared("..2"), || {
        let scan = scanner.scan(0, true).unwrap();
        match &scan.read["web.yaml"] {
            Text::Bytes { bytes, .. } => {
                assert_eq!(bytes, b"inside", "it was read through a link");
                inside += 1;
            }
            Text::Unusable { .. } => refused += 1,
        }
    });
    assert!(inside > 0 && refused > 0, "{inside} {refused}");
    assert_eq!(fs::read_to_string(outside).unwrap(), SECRET);
}

#[test]
fn a_copy_of_the_store_is_written_through_no_link_that_is_swapped_in() {
    let scene = Scene::new();
    let state = tempfile::tempdir().unwrap();
    let database = database_path(state.path());
    let _store = Store::open(&database).unwrap();
    let copy = scene.shared("copy.db");
    symlink("../outside.yaml", scene.shared("x")).unwrap();
    symlink("../outside.yaml", scene.shared("copy.db.half")).unwrap();
    while_swapped(&copy, &scene.shared("x"), || {
        let _ = fs::remove_file(&copy);
        let _ = backup::backup(&database, &copy);
        if fs::symlink_metadata(scene.shared("x")).is_err() {
            let _ = symlink("../outside.yaml", scene.shared("x"));
        }
    });
    scene.assert_unharmed();
}

fn doctor(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sodiumd"));
    command.current_dir(dir).args(args).args(["doctor", "-o", "json"]).output().unwrap()
}

#[test]
fn a_configuration_that_others_may_write_runs_nothing() {
    let desk = Desk::prepared(json!({"gvisor": {"program": "./runsc"}}));
    // It says who ran it.
    let ran = desk.path("ran");
    let script = format!("#!/bin/sh\ntouch '{}'\nexit 1\n", ran.display());
    fs::write(desk.path("runsc"), script).unwrap();
    set_mode(&desk.path("runsc"), 0o755);
    let (config, dir) = (desk.path("config.json"), desk.dir.path().to_owned());
    let config_text = config.display().to_string();
    for (file_mode, dir_mode, fix) in [
        (0o600, 0o777, "chmod go-w "),
        (0o600, 0o1777, "install -D -m 600 "),
        (0o622, 0o755, "chmod go-w "),
        (0o644, 0o755, "chmod 600 "),
    ] {
        set_mode(&config, file_mode);
        set_mode(&dir, dir_mode);
        for args in [vec![], vec!["--config", config_text.as_str()]] {
            let output = doctor(&dir, &args);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}{error}");
            let said: Value = serde_json::from_str(&said).unwrap();
            let found = &said["findings"].as_array().unwrap()[0];
            assert_eq!(found["severity"], "broken", "{found}");
            assert!(found["fix"].as_str().unwrap().starts_with(fix), "{found}");
            // Every other command says the same, and ends.
            let mut command = Command::new(env!("CARGO_BIN_EXE_sodiumd"));
            let output = command.current_dir(&dir).args(&args).arg("get").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(fix), "{said}");
        }
        assert!(!ran.exists(), "{file_mode:o} {dir_mode:o}: what it names was run");
    }
    set_mode(&config, 0o600);
    set_mode(&dir, 0o755);
    doctor(&dir, &[]);
    assert!(ran.exists(), "one that is believed is used");
}

#[test]
fn a_checkout_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.json");
    let text = fs::read_to_string(shipped).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    // Not one under /run.
    config["run_path"] = json!("./run");
    let path = dir.path().join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    for (file_mode, dir_mode) in [(0o644, 0o755), (0o664, 0o775)] {
        set_mode(&path, file_mode);
        set_mode(dir.path(), dir_mode);
        sodiumd::config::load(&path).unwrap();
    }
}

/// What tells a Git writer where a fault is told them the lines of whatever they had linked to.
#[tokio::test]
async fn a_check_of_specs_reads_nothing_from_outside() {
    let desk = Desk::prepared(json!({}));
    std::fs::write(desk.path("secret.json"), "{\"token\": \"hunter2\"}\n").unwrap();
    let spec = desk.path("desired/web.yaml");
    for target in [desk.path("secret.json"), "/proc/self/environ".into(), "/dev/zero".into()] {
        std::os::unix::fs::symlink(target, &spec).unwrap();
        let (code, out, err) = desk.cli(&["check", spec.to_str().unwrap()]);
        assert!(code != 0 && out.is_empty() && !err.contains("hunter2"), "{code} {out} {err}");
        std::fs::remove_file(&spec).unwrap();
    }
}
