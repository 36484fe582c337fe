//! Trees of tenants' files that somebody changes while the daemon works on them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::desk::Desk;
use crate::gvisor::versions;

/// What no tenant may read.
const SECRET: &str = "of the host alone";
/// So many names are exchanged that a look at one and the use of it are seldom the same thing.
const PAIRS: usize = 50;

struct Swapped {
    pairs: Vec<(PathBuf, PathBuf)>,
}

impl Swapped {
    /// In the workspace, directories and files, and links to others outside of it.
    fn make(workspace: &Path, outside: &Path) -> Self {
        fs::create_dir(outside).unwrap();
        fs::write(outside.join("file"), SECRET).unwrap();
        fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut pairs = Vec::new();
        for n in 0..PAIRS {
            let (dir, file) = (workspace.join(format!("d{n}")), workspace.join(format!("f{n}")));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), "mine").unwrap();
            fs::write(&file, "mine").unwrap();
            for (own, leads_to) in [(dir, outside.to_owned()), (file, outside.join("file"))] {
                let link = own.with_extension("link");
                symlink(leads_to, &link).unwrap();
                pairs.push((own, link));
            }
        }
        Self { pairs }
    }

    /// Runs something while every name is exchanged without end.
    fn meanwhile<T>(&self, run: impl FnOnce() -> T) -> T {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    self.pairs.iter().for_each(|(one, other)| exchange(one, other));
                }
            });
            let _end = End(&ended);
            run()
        })
    }
}

/// Ends that, whatever becomes of the test.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn exchange(one: &Path, other: &Path) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// The contents of all files below.
fn contents(dir: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(contents(&entry.path()));
        } else if kind.is_file() {
            // One that was let go of may be being removed.
            match fs::read(entry.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
                read => found.push(read.unwrap()),
            }
        }
    }
    found
}

#[tokio::test]
async fn a_checkpoint_holds_nothing_from_outside_whoever_exchanges_names_meanwhile() {
    let desk = Desk::with(json!({"gvisor": {"program": versions().pop().unwrap()}})).await;
    let spec = json!({"isolation": "gvisor", "command": ["sh", "-c", "echo up; sleep 1000"],
        "limits": {"memory_mb": 128}});
    desk.write_spec("web.yaml", "web", &spec);
    desk.wait_logs("web", "up").await;
    let workspace = desk.workspace(&desk.sandbox("web").await);
    let swapped = Swapped::make(&workspace, &desk.path("outside"));
    let checkpoints = desk.path("state/checkpoints");
    for _ in 0..5 {
        // Refused or taken: it depends on who was faster.
        let (code, _, said) = swapped.meanwhile(|| desk.cli(&["checkpoint", "web"]));
        assert!(code == 0 || said.contains("copy "), "{said}");
        let held = contents(&checkpoints);
        assert!(!held.iter().any(|held| held == SECRET.as_bytes()), "it holds the host's file");
    }
    assert_eq!(desk.cli(&["checkpoint", "web"]).0, 0);
    let mine = contents(&checkpoints).iter().filter(|held| *held == b"mine").count();
    assert_eq!(mine, 2 * PAIRS);
    assert_eq!(desk.cli(&["restore", "web"]).0, 0);
    let restored = desk.workspace(&desk.sandbox("web").await);
    let mine = contents(&restored).iter().filter(|held| *held == b"mine").count();
    assert_eq!(mine, 2 * PAIRS);
}

#[tokio::test]
async fn a_retained_workspace_goes_to_nobody_who_only_takes_the_name() {
    let desk = Desk::new().await;
    let spec = json!({"isolation": "bubblewrap", "command": ["sleep", "1000"]});
    let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": "web"}, "spec": spec});
    let put = async || desk.ask("PUT", "/v1/sandboxes/web", &document.to_string()).await.status;
    assert_eq!(put().await, 201);
    let first = desk.wait_phase("web", "Running").await;
    fs::write(desk.workspace(&first).join("mine"), "the API's").unwrap();
    assert_eq!(desk.cli(&["delete", "web", "--keep-workspace"]).0, 0);
    // Somebody who may write files declares the same name.
    desk.write_spec("web.yaml", "web", &spec);
    let second = desk.wait_phase("web", "Running").await;
    assert!(!desk.workspace(&second).join("mine").exists());
    let id = format!("web.{}", first["metadata"]["uid"].as_str().unwrap());
    let events = desk.get("/v1/events?name=web").await.json.to_string();
    assert!(events.contains("BeginsEmpty") && events.contains(&id), "{events}");
    fs::write(desk.workspace(&second).join("other"), "the file's").unwrap();
    fs::remove_file(desk.path("desired/web.yaml")).unwrap();
    desk.wait_for("web", "gone", |one| one["code"] == "not_found").await;
    // Both are there, and each owner has its own back.
    let listed = desk.cli(&["workspace", "ls"]).1;
    assert!(listed.contains("file:web.yaml") && listed.contains(&id), "{listed}");
    assert_eq!(put().await, 201);
    let third = desk.wait_phase("web", "Running").await;
    let mine = fs::read_to_string(desk.workspace(&third).join("mine")).unwrap();
    assert_eq!(mine, "the API's");
    assert_eq!(desk.cli(&["delete", "web"]).0, 0);
    // Unless somebody takes it over.
    let id = format!("web.{}", second["metadata"]["uid"].as_str().unwrap());
    assert_eq!(desk.cli(&["workspace", "take", &id, "--for", "api"]).0, 0);
    assert_eq!(desk.cli(&["workspace", "take", "web.gone", "--for", "api"]).0, 1);
    assert_eq!(put().await, 201);
    let fourth = desk.wait_phase("web", "Running").await;
    assert!(desk.workspace(&fourth).join("other").exists());
}

#[tokio::test]
async fn what_a_tenant_closes_to_its_own_user_is_put_aside_and_removed_all_the_same() {
    let desk = Desk::rootless().await;
    let script = "mkdir -p x/y z; touch x/y/f z/f; chmod 0 x/y x; chmod 500 z; chmod 0 .; echo closed; exec sleep 1000";
    for (name, ephemeral) in [("kept", false), ("gone", false), ("again", true)] {
        let spec = json!({"isolation": "process", "command": ["sh", "-c", script], "ephemeral": ephemeral,
            "limits": {"timeout_seconds": 0}});
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": name}, "spec": spec});
        let put = desk.ask("PUT", &format!("/v1/sandboxes/{name}"), &document.to_string()).await;
        assert_eq!(put.status, 201, "{put:?}");
        desk.wait_logs(name, "closed").await;
    }
    // A workspace that begins anew at each start begins anew.
    let restarted = desk.post("/v1/sandboxes/again/restart?wait=20s", json!({})).await;
    assert_eq!(restarted.status, 200, "{restarted:?}");
    for (name, keep) in [("kept", true), ("gone", false), ("again", false)] {
        let path = format!("/v1/sandboxes/{name}?wait=20s&force=true&keep_workspace={keep}");
        let deleted = desk.ask("DELETE", &path, "").await;
        assert_eq!(deleted.status, 200, "{name}: {deleted:?}");
    }
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(desk.path(dir)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains('-') || name.starts_with("kept")).collect()
    };
    assert_eq!(names("sandboxes"), [""; 0]);
    assert_eq!(names("sandboxes/.removed").len(), 2, "itself and whose it was");
}
