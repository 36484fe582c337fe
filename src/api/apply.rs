//! `/v1/apply`: many documents at once, for real or dry; and `/v1/plan`: what the loop is about to do.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use serde_json::{Value, json};

use crate::api::caller::Caller;
use crate::api::sandboxes::{Pairs, flag};
use crate::api::{ApiError, Shared, declare, request};
use crate::desired::parse::parse;
use crate::store::edit::{Precondition, Put};
use sodium_model::admission::Admitted;
use sodium_model::plan::diff::{self, Effect};
use sodium_model::plan::{Next, Step};
use sodium_model::text::escaped;
use sodium_model::{ConditionType, Owner, Sandbox, Spec, Truth, Violation};

/// Creates or changes every document of a YAML text, or says what would happen.
pub(super) async fn apply(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    pairs: Pairs,
    body: request::Given,
) -> Result<Json<Value>, ApiError> {
    let bytes = request::bytes(body)?;
    let rules = api.rules.get();
    let parsed = request::take_apart(bytes.len(), move || parse(&bytes, &rules));
    let documents = parsed.await.map_err(ApiError::Invalid)?;
    let dry = flag(&pairs, "dry_run");
    // Only what is said, and not done, can be what a file would say.
    let file = pairs.get("as").filter(|_| dry).cloned().map(Owner::File);
    // All are checked before any is written.
    let mut results: Vec<Value> = Vec::new();
    for document in &documents {
        let owner = file.clone().unwrap_or_else(|| declare::owner(&api, &document.name));
        results.push(preview(&api, document, &owner).await);
    }
    let conflicts: Vec<Violation> = results
        .iter()
        .filter(|result| result["action"] == "conflict")
        .map(|result| {
            let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
            Violation::new(text("name"), text("why"))
        })
        .collect();
    if !dry {
        if !conflicts.is_empty() {
            let texts: Vec<String> = conflicts.iter().map(ToString::to_string).collect();
            return Err(ApiError::Conflict(texts.join("; ")));
        }
        for (document, result) in documents.into_iter().zip(&mut results) {
            let edited = declare::put(
                &api,
                &caller,
                Put {
                    owner: declare::owner(&api, &document.name),
                    name: document.name,
                    labels: document.labels,
                    spec: document.spec,
                    uid: None,
                    precondition: Precondition::None,
                },
            )
            .await?;
            result["action"] = json!(edited.word());
            result["generation"] = json!(edited.sandbox().generation);
        }
    }
    Ok(Json(json!({"dry_run": dry, "results": results})))
}

/// What a document would do: the same classification that the planner uses.
async fn preview(api: &Shared, document: &Admitted, owner: &Owner) -> Value {
    let snapshot = api.store.snapshot();
    let name = &document.name;
    let Some(old) = snapshot.sandboxes.get(name) else {
        return json!({"name": name, "action": "create", "effect": "start", "fields": []});
    };
    if let Some(why) = in_the_way(owner, old) {
        return json!({"name": name, "action": "conflict", "why": escaped(&why)});
    }
    let in_use = api.handle.in_use(old).await;
    let change = diff::classify(&old.spec, &document.spec, &in_use);
    let action = match change.effect {
        Effect::Same if old.labels == document.labels => "unchanged",
        Effect::Same | Effect::InPlace | Effect::Refused | Effect::Restart | Effect::Recreate => {
            "change"
        }
    };
    // A change that needs a restart needs none while nothing runs.
    let effect = if old.live().is_some() { change.effect.word() } else { "next start" };
    let fields: Vec<&str> = change.fields.iter().map(|(name, _)| *name).collect();
    let effects: BTreeMap<&str, &str> = change
        .fields
        .iter()
        .filter(|_| old.live().is_some())
        .map(|(name, effect)| (*name, effect.word()))
        .collect();
    let changes = values(&old.spec, &document.spec, &fields);
    json!({"name": name, "action": action, "effect": effect, "fields": fields, "effects": effects,
        "changes": changes})
}

/// What each of these fields is, and would be.
fn values(old: &Spec, new: &Spec, fields: &[&str]) -> BTreeMap<String, Value> {
    if fields.is_empty() {
        return BTreeMap::new();
    }
    let [old, new] = [old, new].map(|spec| serde_json::to_value(spec).unwrap_or_default());
    // Limits are named as if there were nothing else.
    let at =
        |spec: &Value, name: &str| spec.get(name).or_else(|| spec["limits"].get(name)).cloned();
    let both = |name: &&str| json!({"from": at(&old, name), "to": at(&new, name)});
    fields.iter().map(|name| ((*name).to_owned(), both(name))).collect()
}

fn in_the_way(asker: &Owner, old: &Sandbox) -> Option<String> {
    if old.deletion.is_some() {
        return Some("it is being deleted".to_owned());
    }
    match &old.owner {
        owner if owner == asker => None,
        Owner::File(path) => Some(format!("it is owned by the file {path}; edit that")),
        Owner::Api => Some("it is owned by the api".to_owned()),
    }
}

/// What the loop would do next for each sandbox that is not settled, and why; and which it would not start.
pub(super) async fn plan(State(api): State<Shared>) -> Json<Value> {
    let snapshot = api.store.snapshot();
    let (mut steps, mut refused) = (Vec::new(), BTreeMap::new());
    for sandbox in snapshot.sandboxes.values() {
        let Some(plan) = api.handle.explain(sandbox.name.clone(), api.now()).await else {
            continue;
        };
        let allowed = plan.status.conditions.iter().find(|one| one.kind == ConditionType::Allowed);
        if let Some(not) = allowed.filter(|one| one.status == Truth::False) {
            refused.insert(&sandbox.name, not.message.clone());
        }
        let (step, at) = match &plan.next {
            Next::Settled => continue,
            // It runs, and is only watched for its health.
            Next::Wait(_) if sandbox.live().is_some() => continue,
            Next::Wait(at) => (Step::Start.word(), Some(*at)),
            Next::Do(step) => (step.word(), None),
        };
        steps.push(json!({"name": sandbox.name, "step": step, "at": at, "why": plan.why}));
    }
    let faults: BTreeMap<&String, &Vec<Violation>> = snapshot
        .files
        .iter()
        .filter(|(_, file)| !file.faults.is_empty())
        .map(|(path, file)| (path, &file.faults))
        .collect();
    Json(json!({"steps": steps, "faults": faults, "refused": refused}))
}
