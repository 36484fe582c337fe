//! `sodiumd doctor`: says what works here, what does not and what mends it, and leaves nothing behind.

use std::fs;

use serde_json::{Value, json};

use crate::desk::Desk;

fn examine(desk: &Desk) -> (i32, Vec<Value>) {
    let (code, said, error) = desk.cli(&["doctor", "-o", "json"]);
    let said: Value =
        serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}{error}"));
    (code, said["findings"].as_array().unwrap().clone())
}

#[track_caller]
fn finding<'f>(findings: &'f [Value], name: &str) -> &'f Value {
    findings
        .iter()
        .find(|one| one["name"] == name)
        .unwrap_or_else(|| panic!("{name}: {findings:#?}"))
}

#[tokio::test]
async fn what_works_is_tried_and_what_does_not_has_a_remedy() {
    let runsc = concat!(env!("CARGO_MANIFEST_DIR"), "/target/runsc/bookworm-backports");
    let desk = Desk::prepared(json!({"gvisor": {"program": runsc}}));
    let (code, findings) = examine(&desk);
    // All of it works on a machine that builds this; but nobody has reserved the ids of a test.
    let (uids, rest): (Vec<_>, Vec<_>) = findings.iter().partition(|one| one["name"] == "uids");
    assert_eq!((code, &uids[0]["severity"]), (1, &json!("degraded")), "{findings:#?}");
    assert!(uids[0]["fix"].as_str().unwrap().starts_with("echo sodiumd:"), "{uids:#?}");
    assert!(rest.iter().all(|one| one["severity"] == "fine"), "{findings:#?}");
    for name in [
        "cgroups",
        "memory_mb",
        "cpu_percent",
        "disk_mb",
        "process",
        "bubblewrap",
        "gvisor, systrap",
        "token",
    ] {
        assert_eq!(finding(&findings, name)["severity"], "fine", "{findings:#?}");
    }
    for one in &findings {
        let fine = one["severity"] == "fine";
        assert_eq!(fine, one["means"] == "", "{one}");
        assert!(fine || one["fix"] != "", "{one}");
    }
    let left: Vec<_> = fs::read_dir(desk.dir.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "config.json and desired alone: {left:?}");
    let table = desk.cli(&["doctor"]).1;
    assert!(table.contains("✓ bubblewrap") && table.contains("✓ disk_mb"), "{table}");
}

#[tokio::test]
async fn what_is_missing_weighs_as_much_as_it_is_needed() {
    let nowhere = json!({"program": "/nowhere/runsc"});
    let desk = Desk::prepared(json!({"gvisor": nowhere}));
    let (code, findings) = examine(&desk);
    assert_eq!((code, &finding(&findings, "gvisor")["severity"]), (1, &json!("degraded")));
    let desk = Desk::prepared(json!({"gvisor": nowhere, "isolation": "gvisor"}));
    let (code, findings) = examine(&desk);
    assert_eq!((code, &finding(&findings, "gvisor")["severity"]), (2, &json!("broken")));
    assert!(finding(&findings, "gvisor")["fix"].as_str().unwrap().contains("runsc"));
    let desk = Desk::prepared(json!({"host": "0.0.0.0", "token": "short"}));
    let (_, findings) = examine(&desk);
    assert_eq!(finding(&findings, "token")["severity"], "degraded");
}
