//! The documents that are made of the types: what they say, and that it is all there is.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::desk::Desk;
use crate::{contract, golden};
use sodium_api::{Method, ROUTES};

/// Whoever changes a type or a route sees here what clients will see.
#[test]
fn the_document_is_the_one_that_was_looked_at() {
    golden::compare("openapi.json", &sodium_api::openapi::document());
}

/// `sodiumd init` puts it beside the specs, whose first lines name it.
#[test]
fn the_schema_for_editors_is_the_one_that_was_looked_at() {
    golden::compare_at("sandbox.schema.json".as_ref(), &sodium_api::editor());
}

#[test]
fn the_table_has_every_route_of_the_router_and_no_other() {
    let source = std::fs::read_to_string("src/api.rs").unwrap();
    let (v1, rest) = source.split_once("let v1 =").unwrap().1.split_once("let seed =").unwrap();
    let mut routed = Vec::new();
    for (prefix, text) in [("/v1", v1), ("", rest)] {
        for call in text.split(".route(").skip(1) {
            let path = call.split('"').nth(1).unwrap();
            for method in ["get", "post", "put", "delete", "any"] {
                // A WebSocket is opened by a GET.
                let asked = if method == "any" { "get" } else { method };
                if call.contains(&format!("{method}(")) && path != "/console/" {
                    let prefix = if path.starts_with("/v1") { "" } else { prefix };
                    routed.push(format!("{asked} {prefix}{path}"));
                }
            }
        }
    }
    let named = |(method, path): (Method, &str)| format!("{} {path}", method.as_str());
    let mut known: Vec<String> =
        ROUTES.iter().map(|route| named((route.method, route.path))).collect();
    routed.sort();
    known.sort();
    assert_eq!(known, routed);
    let ids: BTreeSet<&str> = ROUTES.iter().map(|route| route.id).collect();
    assert_eq!(ids.len(), ROUTES.len());
}

#[tokio::test]
async fn anybody_may_read_the_document() {
    let desk = Desk::new().await;
    let served = desk.ask_as(None, "GET", "/v1/openapi.json", "").await;
    assert!(served.status == 200 && served.json == sodium_api::openapi::document());
    assert!(served.json["openapi"].as_str().unwrap().starts_with("3.1"));
}

/// Whether a schema for a spec takes it, beside the daemon.
#[track_caller]
fn check(spec: Value, want: bool) {
    let schema = json!({"$ref": "#/components/schemas/SpecDraft"});
    let fault = contract::mismatch(&schema, &spec, "spec");
    assert_eq!(fault.is_none(), want, "{fault:?}");
    let mut faults = sodium_model::tree::Faults::default();
    let draft = sodium_model::draft::read_spec(&mut faults, "spec", &spec.into());
    let is_whole = draft.image.is_some()
        || draft.command.as_ref().is_some_and(|command| !command.is_empty())
        || draft.state.is_some_and(|state| state != sodium_model::State::Running);
    assert_eq!(faults.is_empty() && is_whole, want, "{faults:?}");
}

#[test]
fn a_spec_that_the_schema_takes_is_one_that_can_be_read_and_no_other() {
    check(json!({"image": "bash"}), true);
    check(json!({"command": ["sh"], "tty": true, "stop": {"grace": "1m 30s"}}), true);
    check(json!({"state": "stopped"}), true);
    check(json!({}), false);
    check(json!({"command": []}), false);
    check(json!({"image": null, "command": ["sh"]}), false);
    check(json!({"image": "bash", "tty": null}), false);
    check(json!({"image": "bash", "comand": ["sh"]}), false);
    check(json!({"image": "bash", "isolation": "chroot"}), false);
    check(json!({"image": "bash", "env": {"A": 1}}), false);
    check(json!({"image": "bash", "stop": {"signal": "SIGSEGV"}}), false);
    check(json!({"image": "bash", "restart": {"backoff": {"initial": 5}}}), false);
    check(json!({"image": "bash", "restart": {"max_failures": 1_000_001}}), false);
    for name in sodium_model::Limits::ALL {
        let most = sodium_model::Limits::max_of(name);
        check(json!({"image": "bash", "limits": {name: most}}), true);
        check(json!({"image": "bash", "limits": {name: most + 1}}), false);
        check(json!({"image": "bash", "limits": {name: -1}}), false);
    }
}
