//! The first daemon's REST contract, at its old paths.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::response::Response;
use uuid::Uuid;

use crate::api::audit::Act;
use crate::api::caller::Caller;
use crate::api::request::Path;
use crate::api::sandboxes::find;
use crate::api::{ApiError, Declare, Shared, declare, list, request, wait, wire};
use crate::reconcile::link::InputError;
use crate::store::Core;
use crate::store::edit::{self, Delete, Precondition, Put, Refusal, Verb};
use sodium_api::{Health, HealthStatus, SeedAnswer, Success};
use sodium_model::admission::{self, Rules};
use sodium_model::draft::{self, Draft};
use sodium_model::image::{Image, split_words};
use sodium_model::tree::{Faults, Node};
use sodium_model::violation::suggestion;
use sodium_model::{
    Isolation, Limits, RestartPolicy, Sandbox, SandboxName, Spec, State as Wanted, Violation,
    arguments,
};

type Done = Result<Json<Success>, ApiError>;

const DONE: Json<Success> = Json(Success::DONE);

pub(super) async fn health(State(api): State<Shared>) -> Json<Health> {
    let isolations = api.handle.isolations();
    let default = api.rules.get().default_isolation;
    let broken =
        isolations.iter().find(|(name, runtime)| *name == default.as_str() && runtime.is_err());
    let store = store_verdict(&api);
    let address = *api.about.address.get();
    let uptime = (api.about.boot_ms)().saturating_sub(api.about.started_at_ms);
    let is_well = broken.is_none() && store == "ok" && address.is_some();
    let verdict = |runtime: &Result<String, String>| match runtime {
        Ok(_) => "ok".to_owned(),
        Err(why) => why.clone(),
    };
    let all = isolations.iter().map(|(name, runtime)| ((*name).to_owned(), runtime));
    Json(Health {
        status: if is_well { HealthStatus::Ok } else { HealthStatus::Degraded },
        version: api.about.version.to_owned(),
        isolation: default,
        address,
        uptime: uptime as f64 / 1000.0,
        isolations: all.clone().map(|(name, runtime)| (name, verdict(runtime))).collect(),
        runtimes: all.filter_map(|(name, runtime)| Some((name, runtime.clone().ok()?))).collect(),
        warm: api.handle.warm(),
        store,
        drained: api.store.snapshot().drained,
    })
}

/// What is the matter with the store, in a sentence.
fn store_verdict(api: &Shared) -> String {
    let rescued = || api.store.snapshot().rescued.as_ref().map(ToString::to_string);
    let fault = api.store.fault().map(|fault| sodium_sys::error::chain(&fault));
    fault.or_else(rescued).unwrap_or_else(|| "ok".to_owned())
}

pub(super) async fn list(State(api): State<Shared>) -> Response {
    let all: Vec<Arc<Sandbox>> = api.store.snapshot().sandboxes.values().cloned().collect();
    list::answer("data", all.into_iter().map(move |one| wire::seed(&api, &one)), "")
}

pub(super) async fn show(
    State(api): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<SeedAnswer>, ApiError> {
    let sandbox = find(&api, &id)?;
    let mut data = wire::seed(&api, &sandbox);
    data.stats = Some(wire::stats(&api.handle.usage(&sandbox).await));
    Ok(Json(SeedAnswer { data }))
}

const CREATE_FIELDS: &[&str] = &[
    "runtime",
    "image",
    "name",
    "isolation",
    "env",
    "startup",
    "memory_mb",
    "cpu_percent",
    "disk_mb",
    "timeout_seconds",
    "max_processes",
    "max_files",
];

pub(super) async fn create(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: request::Given,
) -> Result<Json<SeedAnswer>, ApiError> {
    let node: Node = request::json(body).await?.into();
    let (name, spec) = declared(&node, &api.rules.get())?;
    let uid = Uuid::now_v7();
    let name = match name {
        Some(name) => name,
        None => SandboxName::try_from(format!("sb-{}", uid.simple())).expect("hex is a DNS label"),
    };
    let edited = declare::put(
        &api,
        &caller,
        Put {
            owner: declare::owner(&api, &name),
            name,
            labels: BTreeMap::new(),
            spec,
            uid: Some(uid),
            precondition: Precondition::Absent,
        },
    )
    .await?;
    Ok(Json(SeedAnswer { data: wire::seed(&api, edited.sandbox()) }))
}

/// What a body declares: the name, if it says one, and the spec.
fn declared(node: &Node, rules: &Rules) -> Result<(Option<SandboxName>, Spec), ApiError> {
    let mut draft = Draft {
        state: Some(Wanted::Stopped),
        restart_policy: Some(RestartPolicy::Never),
        ..Draft::default()
    };
    let (mut name, mut runtime, mut faults) = (None, None, Faults::default());
    faults.fields("", node, CREATE_FIELDS, |faults, key, path, value| match key {
        "runtime" => runtime = read_runtime(faults, path, value, &rules.images),
        "image" => draft.image = faults.text(path, value),
        "name" => name = draft::read_name(faults, path, value),
        "isolation" => draft.isolation = faults.choice(path, value, Isolation::WORDS),
        "env" => draft.env = draft::read_env(faults, path, value),
        "startup" => draft.command = read_startup(faults, path, value),
        limit => read_limit(faults, limit, path, value, &mut draft),
    });
    let is_by_runtime = draft.image.is_none();
    if is_by_runtime && !faults.touch("image") && !faults.touch("runtime") {
        draft.image = runtime.or_else(|| image_of("node", &rules.images));
    }
    let unread = |path: &str| {
        let is_image = path == "spec.image" && is_by_runtime;
        faults.touch(&flat(path)) || (is_image && faults.touch("runtime"))
    };
    let (spec, found) = admission::judge(&draft, rules, &unread);
    let found = found.into_iter().map(|fault| Violation { path: flat(&fault.path), ..fault });
    let faults = faults.and_later(found, node);
    if faults.is_empty() { Ok((name, spec)) } else { Err(ApiError::Invalid(faults.into_list())) }
}

/// The field of the flat body that a path in a spec stands for.
fn flat(path: &str) -> String {
    let field = path.strip_prefix("spec.").unwrap_or(path);
    let field = field.strip_prefix("limits.").unwrap_or(field);
    // It is one text there: its words have no paths.
    if field.starts_with("command") { "startup".to_owned() } else { field.to_owned() }
}

fn image_of(runtime: &str, images: &BTreeMap<String, Image>) -> Option<String> {
    images.values().find(|image| image.runtime == runtime).map(|image| image.id.clone())
}

fn read_runtime(
    faults: &mut Faults,
    path: &str,
    node: &Node,
    images: &BTreeMap<String, Image>,
) -> Option<String> {
    let word = faults.text(path, node)?;
    let found = image_of(&word, images);
    if found.is_none() {
        let known: Vec<&str> = images.values().map(|image| image.runtime.as_str()).collect();
        let hint = suggestion(&word, known.iter().copied());
        faults.add(path, node, format!("{word:?} is not one of {}{hint}", known.join(", ")));
    }
    found
}

fn read_startup(faults: &mut Faults, path: &str, node: &Node) -> Option<Vec<String>> {
    let words = split_words(&draft::read_word(faults, path, node)?);
    if words.first().is_some_and(String::is_empty) {
        faults.add(path, node, "names an empty program");
    }
    Some(words)
}

fn read_limit(faults: &mut Faults, key: &str, path: &str, node: &Node, draft: &mut Draft) {
    let name = Limits::NAMES.iter().find(|name| **name == key);
    if let (Some(name), Some(count)) = (name, faults.count(path, node, Limits::max_of(key))) {
        draft.limits.insert(*name, count);
    }
}

pub(super) async fn start(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: request::Given,
) -> Done {
    let sandbox = find(&api, &id)?;
    let node: Node = request::json(body).await?.into();
    let (mut command, mut args) = (None, Vec::new());
    request::read(&node, &["command", "args"], |faults, key, path, value| {
        if key == "command" {
            command = draft::read_word(faults, path, value);
        } else {
            args = draft::read_words(faults, path, value);
        }
    })?;
    let command = command.filter(|command| !command.is_empty());
    run(&api, &caller, &sandbox, command.map(|command| [vec![command], args].concat())).await?;
    Ok(DONE)
}

/// Asks for a run, with a new command if one is given, and waits until it runs.
pub(super) async fn run(
    api: &Shared,
    caller: &Caller,
    sandbox: &Arc<Sandbox>,
    command: Option<Vec<String>>,
) -> Result<(), ApiError> {
    let oversize = command.as_ref().and_then(|words| arguments::fault(words, &sandbox.spec.env));
    if let Some(fault) = oversize {
        return Err(ApiError::Invalid(vec![fault]));
    }
    let up = |now: &Sandbox| now.wants_to_run() && now.live().is_some();
    if let (Some(command), Declare::Files(_)) = (&command, &api.declare)
        && !up(sandbox)
    {
        let spec = Spec { command: command.clone(), ..Spec::clone(&sandbox.spec) };
        change_file(api, caller, sandbox, spec).await?;
    }
    let (name, now, owner) = (sandbox.name.clone(), api.now(), declare::owner(api, &sandbox.name));
    let uid = sandbox.uid;
    let wish = api
        .write_for(caller, move |core| {
            let current = core.get(name.as_str()).filter(|found| found.uid == uid);
            let Some(current) = current else { return Ok(Err(Refusal::NotFound)) };
            if up(&current) {
                return Ok(Err(Refusal::Running { name }));
            }
            // The edit and the request are one transaction: no run of the old command in between.
            if let Some(command) = command.filter(|command| *command != current.spec.command) {
                if current.owner != owner {
                    let owner = current.owner.clone();
                    return Ok(Err(Refusal::Owned { name, owner }));
                }
                let spec = Spec { command, ..Spec::clone(&current.spec) };
                edit::change(core, &current, current.labels.clone(), spec, now)?;
            }
            edit::power(core, name.as_str(), Verb::Start, now)
        })
        .await??;
    wait::started(api, &wish, wait::START_WITHIN).await
}

/// Edits a sandbox whose spec the API keeps in a file.
async fn change_file(
    api: &Shared,
    caller: &Caller,
    sandbox: &Sandbox,
    spec: Spec,
) -> Result<(), ApiError> {
    let put = Put {
        owner: declare::owner(api, &sandbox.name),
        name: sandbox.name.clone(),
        labels: sandbox.labels.clone(),
        spec,
        uid: None,
        precondition: Precondition::Uid(sandbox.uid),
    };
    declare::put(api, caller, put).await.map(drop)
}

pub(super) async fn stop(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Done {
    let sandbox = find(&api, &id)?;
    end(&api, &caller, &sandbox, Verb::Stop).await?;
    Ok(DONE)
}

pub(super) async fn kill(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Done {
    let sandbox = find(&api, &id)?;
    end(&api, &caller, &sandbox, Verb::Kill).await?;
    Ok(DONE)
}

/// Asks for the end and waits for it.
pub(super) async fn end(
    api: &Shared,
    caller: &Caller,
    sandbox: &Sandbox,
    verb: Verb,
) -> Result<(), ApiError> {
    let (name, uid, now) = (sandbox.name.clone(), sandbox.uid, api.now());
    let ask = move |core: &mut Core| edit::power_of(core, (name.as_str(), uid), verb, now);
    let wish = api.write_for(caller, ask).await??;
    wait::stopped(api, &wish, wait::stop_within(&wish)).await
}

pub(super) async fn delete(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Done {
    let sandbox = find(&api, &id)?;
    let how = Delete { uid: None, keep_workspace: false, force: true };
    declare::delete(&api, &caller, &sandbox, how).await?;
    wait::deleted(&api, &sandbox, wait::stop_within(&sandbox)).await?;
    Ok(DONE)
}

pub(super) async fn input(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: request::Given,
) -> Done {
    let sandbox = find(&api, &id)?;
    send_input(&api, &caller, &sandbox, body).await
}

/// Whether the program has any of it, or will.
pub(super) fn was_taken(sent: &Result<(), InputError>) -> bool {
    match sent {
        Ok(()) => true,
        Err(InputError::Full { taken, .. }) => *taken > 0,
        Err(InputError::NotRunning | InputError::Closed) => false,
    }
}

pub(super) async fn send_input(
    api: &Shared,
    caller: &Caller,
    sandbox: &Sandbox,
    body: request::Given,
) -> Done {
    let node: Node = request::json(body).await?.into();
    let mut input = None;
    request::read(&node, &["input"], |faults, _, path, value| input = faults.text(path, value))?;
    let missing = || ApiError::Invalid(vec![Violation::new("input", "is missing")]);
    let line = format!("{}\n", input.ok_or_else(missing)?);
    let sent = api.handle.input(sandbox, line.into_bytes()).await;
    if was_taken(&sent) {
        let what = "input was sent by a request".to_owned();
        api.audit.note(&sandbox.name, Act::Input, caller, what);
    }
    sent?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(body: Value, want: &[&str]) {
        let Err(ApiError::Invalid(faults)) = declared(&body.into(), &Rules::strict()) else {
            panic!("it is not invalid");
        };
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, want);
    }

    #[test]
    fn faults_of_the_form_and_of_the_rules_are_told_together_by_the_fields_of_the_body() {
        check(
            json!({"image": "rubby", "isolation": "process", "max_files": "many", "memory_mb": 129,
                "tty": 1}),
            &["image", "isolation", "max_files", "memory_mb", "tty"],
        );
        check(json!({"image": "rubby", "memory_mb": "lots"}), &["image", "memory_mb"]);
        check(json!({"image": "rubby", "runtime": "ruby"}), &["image", "runtime"]);
        check(json!({"runtime": "ruby"}), &["runtime"]);
        check(json!({"startup": 1, "env": {"A": 1}}), &["env.A", "startup"]);
        check(json!({"startup": "x".repeat(200_000), "tty": 1}), &["startup", "tty"]);
    }
}
