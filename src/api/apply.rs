//! `/v1/apply`: many documents at once, for real or dry; and `/v1/plan`: what the loop is about to do.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use serde_json::Value;

use crate::api::caller::Caller;
use crate::api::request::Query;
use crate::api::{ApiError, Shared, declare, request};
use crate::desired::parse::parse;
use crate::store::edit::{Edited, Precondition, Put};
use sodium_api::{Action, Applied, Apply, ApplyQuery, Plan, PlannedStep, ValueChange};
use sodium_model::admission::Admitted;
use sodium_model::plan::diff::{self, Effect};
use sodium_model::plan::{Next, Step};
use sodium_model::text::escaped;
use sodium_model::{ConditionType, Owner, Sandbox, Spec, Truth, Violation};

/// Creates or changes every document of a YAML text, or says what would happen.
pub(super) async fn apply(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ApplyQuery>,
    body: request::Given,
) -> Result<Json<Apply>, ApiError> {
    let bytes = request::bytes(body)?;
    let rules = api.rules.get();
    let parsed = request::take_apart(bytes.len(), move || parse(&bytes, &rules));
    let documents = parsed.await.map_err(ApiError::Invalid)?;
    let dry_run = query.dry_run.0;
    // Only what is said, and not done, can be what a file would say.
    let file = query.as_file.filter(|_| dry_run).map(Owner::File);
    // All are checked before any is written.
    let mut results: Vec<Applied> = Vec::new();
    for document in &documents {
        let owner = file.clone().unwrap_or_else(|| declare::owner(&api, &document.name));
        results.push(preview(&api, document, &owner).await);
    }
    if !dry_run {
        let conflicts: Vec<String> = results.iter().filter_map(conflict).collect();
        if !conflicts.is_empty() {
            return Err(ApiError::Conflict(conflicts.join("; ")));
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
            result.action = match &edited {
                Edited::Created(_) => Action::Created,
                Edited::Changed(_) => Action::Changed,
                Edited::Unchanged(_) => Action::Unchanged,
            };
            result.generation = Some(edited.sandbox().generation);
        }
    }
    Ok(Json(Apply { dry_run, results }))
}

/// What keeps a document from being applied.
fn conflict(result: &Applied) -> Option<String> {
    let why = result.why.as_deref().filter(|_| result.action == Action::Conflict)?;
    Some(Violation::new(result.name.as_str(), why).to_string())
}

/// What a document would do: the same classification that the planner uses.
async fn preview(api: &Shared, document: &Admitted, owner: &Owner) -> Applied {
    let snapshot = api.store.snapshot();
    let applied = |action| Applied::new(document.name.clone(), action);
    let Some(old) = snapshot.sandboxes.get(&document.name) else {
        let effect = Some("start".to_owned());
        return Applied { effect, fields: Some(Vec::new()), ..applied(Action::Create) };
    };
    if let Some(why) = in_the_way(owner, old) {
        return Applied { why: Some(escaped(&why).into_owned()), ..applied(Action::Conflict) };
    }
    let in_use = api.handle.in_use(old).await;
    let change = diff::classify(&old.spec, &document.spec, &in_use);
    let action = match change.effect {
        Effect::Same if old.labels == document.labels => Action::Unchanged,
        Effect::Same | Effect::InPlace | Effect::Refused | Effect::Restart | Effect::Recreate => {
            Action::Change
        }
    };
    // A change that needs a restart needs none while nothing runs.
    let effect = if old.live().is_some() { change.effect.word() } else { "next start" };
    let fields: Vec<String> = change.fields.iter().map(|(name, _)| (*name).to_owned()).collect();
    let effects: BTreeMap<String, String> = change
        .fields
        .iter()
        .filter(|_| old.live().is_some())
        .map(|(name, effect)| ((*name).to_owned(), effect.word().to_owned()))
        .collect();
    Applied {
        effect: Some(effect.to_owned()),
        changes: Some(values(&old.spec, &document.spec, &fields)),
        fields: Some(fields),
        effects: Some(effects),
        ..applied(action)
    }
}

/// What each of these fields is, and would be.
fn values(old: &Spec, new: &Spec, fields: &[String]) -> BTreeMap<String, ValueChange> {
    if fields.is_empty() {
        return BTreeMap::new();
    }
    let [old, new] = [old, new].map(|spec| serde_json::to_value(spec).unwrap_or_default());
    // Limits are named as if there were nothing else.
    let at =
        |spec: &Value, name: &str| spec.get(name).or_else(|| spec["limits"].get(name)).cloned();
    let at = |spec: &Value, name: &str| at(spec, name).unwrap_or_default();
    let both = |name: &String| ValueChange { from: at(&old, name), to: at(&new, name) };
    fields.iter().map(|name| (name.clone(), both(name))).collect()
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
pub(super) async fn plan(State(api): State<Shared>) -> Json<Plan> {
    let snapshot = api.store.snapshot();
    let (mut steps, mut refused) = (Vec::new(), BTreeMap::new());
    for sandbox in snapshot.sandboxes.values() {
        let Some(plan) = api.handle.explain(sandbox.name.clone(), api.now()).await else {
            continue;
        };
        let allowed = plan.status.conditions.iter().find(|one| one.kind == ConditionType::Allowed);
        if let Some(not) = allowed.filter(|one| one.status == Truth::False) {
            refused.insert(sandbox.name.clone(), not.message.clone());
        }
        let (step, at) = match &plan.next {
            Next::Settled => continue,
            // It runs, and is only watched for its health.
            Next::Wait(_) if sandbox.live().is_some() => continue,
            Next::Wait(at) => (Step::Start.word(), Some(*at)),
            Next::Do(step) => (step.word(), None),
        };
        let (name, step) = (sandbox.name.clone(), step.to_owned());
        steps.push(PlannedStep { name, step, at, why: plan.why });
    }
    let faults: BTreeMap<String, Vec<Violation>> = snapshot
        .files
        .iter()
        .filter(|(_, file)| !file.faults.is_empty())
        .map(|(path, file)| (path.clone(), file.faults.clone()))
        .collect();
    Json(Plan { steps, faults, refused })
}
