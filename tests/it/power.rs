//! The disk under a daemon fails, and loses its power: what was answered is there afterwards, what runs
//! goes on, and whoever asks meanwhile is told why nothing can be changed.

use serde_json::json;

use crate::desk::Desk;

fn document(name: &str, command: &str) -> String {
    json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": name},
        "spec": {"command": [command], "state": "stopped"}})
    .to_string()
}

/// A daemon whose state and specs are on a disk of its own.
fn on_a_disk() -> Desk {
    let paths = json!({"state_path": "./disk/state", "desired_path": "./disk/desired"});
    let mut desk = Desk::prepared(paths);
    desk.add_disk("disk", 32);
    std::fs::create_dir(desk.path("disk/desired")).unwrap();
    desk
}

/// Nothing can be changed now, and whoever tries is told so. Returns how.
async fn refused(desk: &Desk) -> String {
    let put = desk.ask("PUT", "/v1/sandboxes/late", &document("late", "late")).await;
    assert_eq!(put.status, 503, "{put:?}\n{}", desk.log());
    if put.json["code"] == "busy" {
        // What SQLite took for damage: the database is written anew, which fails too.
        return Box::pin(refused(desk)).await;
    }
    assert_eq!(put.json["code"], "disk_failed", "{put:?}");
    put.json["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_the_api_acknowledged_survives_a_loss_of_power() {
    let mut desk = on_a_disk();
    for loss in 0..4 {
        desk.start().await;
        let switch = desk.disk.as_ref().unwrap().arm();
        let mut answered = Vec::new();
        for n in 0..3 + loss * 5 {
            let (name, command) = (format!("s{}", n % 5), format!("c{loss}-{n}"));
            let path = format!("/v1/sandboxes/{name}");
            let put = desk.ask("PUT", &path, &document(&name, &command)).await;
            assert!(matches!(put.status, 200 | 201), "{put:?}");
            answered.push((name, command));
        }
        switch.cut();
        refused(&desk).await;
        desk.kill();
        desk.disk.as_ref().unwrap().mount_again("rw");
        desk.start().await;
        for name in ["s0", "s1", "s2", "s3", "s4"] {
            let Some((_, last)) = answered.iter().rev().find(|(asked, _)| asked == name) else {
                continue;
            };
            let kept = desk.wait_for(name, last, |one| one["spec"]["command"] == json!([last]));
            kept.await;
        }
        assert_eq!(desk.get("/health").await.json["store"], "ok");
        desk.kill();
    }
}

#[tokio::test]
async fn a_disk_that_fails_is_said_and_what_runs_goes_on() {
    let mut desk = on_a_disk();
    desk.start().await;
    let spec = json!({"command": ["sleep", "1000"], "limits": {"timeout_seconds": 0}});
    let running = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": "a"}, "spec": spec});
    let put = desk.ask("PUT", "/v1/sandboxes/a", &running.to_string()).await;
    assert_eq!(put.status, 201, "{put:?}");
    let before = desk.wait_phase("a", "Running").await;
    desk.disk.as_ref().unwrap().arm().cut();
    let why = refused(&desk).await;
    let stop = desk.post("/v1/sandboxes/a/stop", json!(null)).await;
    assert_eq!(stop.status, 503, "{stop:?}");
    assert!(why.contains("nothing was changed") || why.contains("cannot be rebuilt"), "{why}");
    assert_eq!(desk.get("/readyz").await.status, 503);
    let health = desk.get("/health").await.json;
    assert_eq!(health["status"], "degraded");
    assert!(health["store"].as_str().unwrap().contains("sodiumd.db"), "{health}");
    let now = desk.sandbox("a").await;
    assert_eq!(now["status"]["instance"]["pid"], before["status"]["instance"]["pid"]);
    desk.kill();
    desk.disk = None;
    // Whoever cleans up looks there.
    std::fs::create_dir_all(desk.path("disk/state")).unwrap();
    let pid = before["status"]["instance"]["pid"].as_u64().unwrap();
    assert!(std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("sleep"));
}
