//! `/v1/sandboxes`: list, get, put, delete, transfer.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::api::caller::Caller;
use crate::api::request::{Path, Query};
use crate::api::{ApiError, Shared, declare, list, request, wait, watch, wire};
use crate::store::edit::{self, Delete, Edited, Precondition, Put};
use sodium_api::{DeleteQuery, ListQuery, Success};
use sodium_model::admission::{self, Admitted, Rules};
use sodium_model::tree::{Faults, Node};
use sodium_model::{Owner, Sandbox, SandboxName, Violation};

pub(super) async fn list(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ApiError> {
    if query.watch.0 {
        return watch::watch(&api, &caller, query.resource_version.as_deref());
    }
    let snapshot = api.store.snapshot();
    let pair = |label: &str| {
        let pair = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| ApiError::BadRequest(format!("label is {label:?}, not KEY=VALUE")))
    };
    let label = query.label.as_deref().map(pair).transpose()?;
    let fits = |sandbox: &&Arc<Sandbox>| {
        label.as_ref().is_none_or(|(key, value)| sandbox.labels.get(key) == Some(value))
    };
    let items: Vec<Arc<Sandbox>> = snapshot.sandboxes.values().filter(fits).cloned().collect();
    let rest = format!(r#","resource_version":{}"#, wire::json(&snapshot.resource_version()));
    let epoch = Arc::clone(&snapshot.epoch);
    let items = items.into_iter().map(move |sandbox| wire::full(&epoch, &sandbox));
    Ok(list::answer("items", items, &rest))
}

pub(super) async fn show(
    State(api): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let snapshot = api.store.snapshot();
    let sandbox = snapshot.find(&id).ok_or(ApiError::NotFound)?;
    Ok(shown(&snapshot.epoch, sandbox, StatusCode::OK))
}

/// The full shape, with its version as ETag.
pub(super) fn shown(epoch: &str, sandbox: &Sandbox, status: StatusCode) -> Response {
    let version = crate::store::snapshot::version(epoch, sandbox.rv);
    let etag = [(ETAG, format!("\"{version}\""))];
    (status, etag, Json(wire::full(epoch, sandbox))).into_response()
}

pub(super) async fn put(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: request::Given,
) -> Result<Response, ApiError> {
    let length = body.as_ref().map_or(0, Bytes::len);
    let mut json = request::json(body).await?;
    let precondition = precondition(&headers, &mut json)?;
    let rules = api.rules.get();
    let declared = request::take_apart(length, move || declared(&json.into(), &name, &rules));
    let Admitted { name, labels, spec } = declared.await?;
    let edited = declare::put(
        &api,
        &caller,
        Put { owner: declare::owner(&api, &name), name, labels, spec, uid: None, precondition },
    )
    .await?;
    let status =
        if matches!(edited, Edited::Created(_)) { StatusCode::CREATED } else { StatusCode::OK };
    Ok(shown(&api.store.snapshot().epoch, edited.sandbox(), status))
}

/// What a body declares at a path.
fn declared(node: &Node, name: &str, rules: &Rules) -> Result<Admitted, ApiError> {
    let other = |found: &SandboxName| {
        (found.as_str() != name).then(|| format!("is {found}, but the path says {name}"))
    };
    let admitted = admission::admit_document(node, rules, other);
    admitted.map_err(|faults| ApiError::Invalid(faults.into_list()))
}

/// What the client expects to find, from the headers or from the document it read before. Removes
/// from the document what a client may send back and may not set.
fn precondition(headers: &HeaderMap, json: &mut Value) -> Result<Precondition, ApiError> {
    let mut read_at = None;
    if let Some(object) = json.as_object_mut() {
        object.remove("status");
        object.remove("power");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            read_at = match metadata.get("resource_version") {
                None | Some(Value::Null) => None,
                Some(Value::String(version)) => Some(version.clone()),
                Some(_) => {
                    let fault = Violation::new("metadata.resource_version", "expected a text");
                    return Err(ApiError::Invalid(vec![fault]));
                }
            };
            for field in wire::UNREAD_METADATA {
                metadata.remove(*field);
            }
        }
    }
    let header = |name| {
        let text = headers.get(name).map(|value| value.to_str());
        text.transpose().map_err(|_| ApiError::BadRequest("a precondition is not text".to_owned()))
    };
    if let Some(text) = header(IF_NONE_MATCH)? {
        let only_new = text.trim() == "*";
        let hint = || ApiError::BadRequest(format!("If-None-Match is {text:?}; only * is known"));
        return only_new.then_some(Precondition::Absent).ok_or_else(hint);
    }
    let given = header(IF_MATCH)?.map(|text| text.trim().trim_matches('"').to_owned());
    Ok(given.or(read_at).map_or(Precondition::None, Precondition::Unchanged))
}

pub(super) async fn delete(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Json<Success>, ApiError> {
    let within = wait::parse(query.wait.as_deref())?;
    let sandbox = find(&api, &id)?;
    if let Some(uid) = query.uid
        && uid != sandbox.uid
    {
        let (name, uid) = (sandbox.name.clone(), sandbox.uid);
        return Err(edit::Refusal::Uid { name, uid }.into());
    }
    let DeleteQuery { uid, keep_workspace, force, .. } = query;
    let how = Delete { uid, keep_workspace: keep_workspace.0, force: force.0 };
    declare::delete(&api, &caller, &sandbox, how).await?;
    if let Some(within) = within {
        wait::deleted(&api, &sandbox, within).await?;
    }
    Ok(Json(Success::DONE))
}

pub(super) async fn transfer(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: request::Given,
) -> Result<Response, ApiError> {
    let node: Node = request::json(body).await?.into();
    let mut owner = None;
    request::read(&node, &["owner"], |faults: &mut Faults, _, path, value| {
        owner = faults.text(path, value).and_then(|text| match Owner::try_from(text) {
            Ok(owner) => Some(owner),
            Err(message) => {
                faults.add(path, value, message);
                None
            }
        });
    })?;
    let missing = || ApiError::Invalid(vec![Violation::new("owner", "is missing")]);
    let (owner, now) = (owner.ok_or_else(missing)?, api.now());
    let name = find(&api, &id)?.name.clone();
    let file = match &owner {
        Owner::File(path) => Some(path.clone()),
        Owner::Api => None,
    };
    let moved = api
        .write_for(&caller, move |core| edit::transfer(core, name.as_str(), owner, now))
        .await??;
    if let Some(file) = file {
        api.watch.reread_file(&file);
    }
    Ok(shown(&api.store.snapshot().epoch, &moved, StatusCode::OK))
}

/// A sandbox by name or uid. Anything else, paths included, is simply not one.
pub(super) fn find(api: &Shared, id: &str) -> Result<Arc<Sandbox>, ApiError> {
    api.store.snapshot().find(id).cloned().ok_or(ApiError::NotFound)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(document: Value, want: &[&str]) {
        let Err(ApiError::Invalid(faults)) = declared(&document.into(), "web", &Rules::strict())
        else {
            panic!("it is not invalid");
        };
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, want);
    }

    #[test]
    fn faults_of_the_name_the_form_and_the_rules_are_told_together() {
        check(
            json!({
                "apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "other"},
                "spec": {"image": "rubby", "isolation": "process", "tty": 1,
                    "limits": {"cpu": 1, "memory_mb": 129}}
            }),
            &[
                "metadata.name",
                "spec.image",
                "spec.isolation",
                "spec.limits.cpu",
                "spec.limits.memory_mb",
                "spec.tty",
            ],
        );
        // What is missing stands where it would be, and what could not be read is not missing.
        check(
            json!({"spec": {"tty": 1}}),
            &["apiVersion", "kind", "metadata.name", "spec.command", "spec.tty"],
        );
        check(
            json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": 1,
                "spec": {"command": "sh"}}),
            &["metadata", "spec.command"],
        );
    }
}
