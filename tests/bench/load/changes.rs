//! Those who change something: over REST, and in the directory of specs.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{Dice, Scene, Tally, declared};
use crate::desk::{document, save};

const POWER_EVERY: Duration = Duration::from_secs(2);
const PUT_EVERY: Duration = Duration::from_secs(5);
const EDIT_EVERY: Duration = Duration::from_secs(1);
/// How long what is put runs, and what is stopped stays down.
const RUNS_FOR: Duration = Duration::from_secs(2);
const DOWN_FOR: Duration = Duration::from_millis(500);
/// Each so many edits, a file is added and another removed.
const ADDED_EACH: u64 = 5;
/// Added files that stay before the oldest of them goes. One goes at a time, far from the share of all that
/// would have to be confirmed.
const ADDED_COUNT: usize = 10;

/// A program that prints a line each second; if it is loud, 4 MiB at first, more than sockets hold for a
/// client that takes nothing, and 32 KiB each five seconds. It waits by reading its stdin, which says
/// nothing: no process has to be started to pass a second.
pub fn running(loud: bool) -> Value {
    let burst = |bytes: usize| format!(r#"printf "%0{bytes}d\n" $n"#);
    let (first, then) = if loud {
        (burst(4 << 20), format!("[ $((n % 5)) = 0 ] && {}", burst(32 << 10)))
    } else {
        (":".to_owned(), ":".to_owned())
    };
    let script =
        format!(r#"n=0; {first}; while :; do echo "line $((n++))"; {then}; read -t 1; done"#);
    json!({"command": ["bash", "-c", script], "state": "running",
        "limits": {"timeout_seconds": 0, "memory_mb": 64}})
}

pub async fn put(scene: &Scene, name: &str, spec: &Value) {
    let path = format!("/v1/sandboxes/{name}");
    let request = scene.http.put(scene.url(&path)).body(document(name, spec).to_string());
    scene.ask(request, &path).await;
}

async fn power(scene: &Scene, name: &str, verb: &str) {
    let path = format!("/v1/sandboxes/{name}/{verb}?wait=30s");
    scene.ask(scene.http.post(scene.url(&path)).body("{}"), &path).await;
    Tally::add(&scene.tally.changes, 1);
}

/// One of those that run is stopped, and started again.
pub async fn stops_and_starts(scene: Arc<Scene>, running: usize) {
    let mut dice = Dice::new(scene.seed, 1_000);
    let mut timer = timer(POWER_EVERY);
    while next(&scene, &mut timer).await {
        let name = format!("r{}", dice.roll(running));
        power(&scene, &name, "stop").await;
        // To the end in any case: in the end all are to run.
        tokio::time::sleep(DOWN_FOR).await;
        power(&scene, &name, "start").await;
    }
}

/// A sandbox is put, runs for a moment and is deleted, again and again under the same few names.
pub async fn puts_and_deletes(scene: Arc<Scene>) {
    let mut dice = Dice::new(scene.seed, 1_001);
    let mut timer = timer(PUT_EVERY);
    while next(&scene, &mut timer).await {
        let name = format!("t{}", dice.roll(5));
        put(&scene, &name, &running(false)).await;
        tokio::time::sleep(RUNS_FOR).await;
        let path = format!("/v1/sandboxes/{name}?wait=30s");
        scene.ask(scene.http.delete(scene.url(&path)), &path).await;
        Tally::add(&scene.tally.changes, 2);
    }
}

/// Files are edited, added and removed.
pub async fn edits(scene: Arc<Scene>, declared_count: usize) {
    let mut dice = Dice::new(scene.seed, 1_002);
    let mut timer = timer(EDIT_EVERY);
    let mut edit = 0;
    while next(&scene, &mut timer).await {
        edit += 1;
        let index = dice.roll(declared_count);
        let name = format!("s{index}");
        let text = declared(&name, index, edit);
        if dice.roll(4) == 0 {
            // In place, as a careless program does.
            let path = scene.desired.join(format!("{name}.yaml"));
            fs::write(path, text.to_string()).expect("the directory is ours");
        } else {
            save(&scene.desired, &name, &text);
        }
        scene.expected.lock().unwrap().edits.insert(index, edit);
        if edit % ADDED_EACH == 0 {
            add_and_remove(&scene, edit);
        }
        Tally::add(&scene.tally.edits, 1);
    }
}

fn add_and_remove(scene: &Scene, edit: u64) {
    let name = format!("x{edit}");
    save(&scene.desired, &name, &declared(&name, 0, edit));
    let mut expected = scene.expected.lock().unwrap();
    expected.added.push(name);
    if expected.added.len() > ADDED_COUNT {
        let oldest = expected.added.remove(0);
        fs::remove_file(scene.desired.join(format!("{oldest}.yaml"))).expect("it was added");
    }
}

fn timer(every: Duration) -> tokio::time::Interval {
    let mut timer = interval(every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Waits for the next turn, if there is one.
async fn next(scene: &Scene, timer: &mut tokio::time::Interval) -> bool {
    // Both arms only wait.
    tokio::select! {
        () = scene.stop.cancelled() => false,
        _ = timer.tick() => true,
    }
}
