//! Sandboxes as clients see them: the seed's flat shape, and the full one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::Api;
use crate::reconcile::Usage;
use crate::store::{FileRecord, snapshot};
use sodium_model::instance::signal_number;
use sodium_model::{Checkpoint, ExitKind, ExitRecord, InstancePhase, Limits, Sandbox, draft};

/// The seed's six.
fn seed_limits(limits: &Limits) -> BTreeMap<&'static str, u64> {
    Limits::NAMES.into_iter().filter_map(|name| Some((name, limits.get(name)?))).collect()
}

/// The seed's shape, with ours beside it.
pub(super) fn seed(api: &Api, sandbox: &Sandbox) -> Value {
    let instance = sandbox.instance.as_deref();
    let mut value = json!({
        "uuid": sandbox.uid,
        "runtime": runtime(api, sandbox),
        "limits": seed_limits(&sandbox.spec.limits),
        "created_at": sandbox.created_at,
        "status": seed_status(sandbox),
        "name": sandbox.name,
        "image": sandbox.spec.image,
        "isolation": sandbox.spec.isolation,
        "owner": sandbox.owner,
        "phase": sandbox.status.phase,
        "generation": sandbox.generation,
        "conditions": sandbox.status.conditions,
    });
    let Some(instance) = instance else { return value };
    if instance.phase != InstancePhase::Dead {
        value["pid"] = json!(instance.pid);
    }
    if let Some(started_at) = instance.started_at.or_else(|| instance.exit.as_ref()?.started_at) {
        value["started_at"] = json!(started_at);
    }
    if let Some(exit) = &instance.exit {
        value["exit_code"] = json!(exit_code(exit));
        value["stopped_at"] = json!(exit.ended_at);
        value["exit"] = json!(exit);
    }
    value
}

fn runtime(api: &Api, sandbox: &Sandbox) -> Option<String> {
    let rules = api.rules.get();
    let image = rules.images.get(sandbox.spec.image.as_ref()?)?;
    Some(image.runtime.clone())
}

/// The three words that old clients switch on.
fn seed_status(sandbox: &Sandbox) -> &'static str {
    match sandbox.instance.as_deref().map(|instance| instance.phase) {
        None => "created",
        Some(InstancePhase::Dead) => "stopped",
        Some(InstancePhase::Starting | InstancePhase::Running | InstancePhase::Stopping) => {
            "running"
        }
    }
}

/// One number for an end, as a shell would have it. Only here is a signal turned into 128 + n.
pub(super) fn exit_code(exit: &ExitRecord) -> Option<i32> {
    let from = |code: Option<i32>, signal: Option<&String>| {
        code.or_else(|| signal.and_then(|name| signal_number(name)).map(|number| 128 + number))
    };
    match &exit.kind {
        ExitKind::Exited { code } => Some(*code),
        ExitKind::Signaled { signal } => from(None, Some(signal)),
        ExitKind::Oom { code, signal }
        | ExitKind::Timeout { code, signal }
        | ExitKind::Disk { code, signal } => from(*code, signal.as_ref()),
        // What a shell answers for a command it cannot run.
        ExitKind::StartFailed { .. } => Some(127),
        ExitKind::Lost { .. } => None,
    }
}

/// What a sandbox uses, in the seed's words and ours.
pub(super) fn stats(usage: &Usage) -> Value {
    json!({
        "memory_bytes": usage.memory_bytes,
        // A tick is a hundredth of a second.
        "cpu_ticks": usage.cpu_usec / 10_000,
        "disk_read_bytes": usage.read_bytes,
        "disk_write_bytes": usage.write_bytes,
        "memory_peak_bytes": usage.memory_peak_bytes,
        "cpu_usec": usage.cpu_usec,
        "throttled_usec": usage.throttled_usec,
        "processes": usage.pids,
        "oom_kills": usage.oom_kills,
    })
}

/// The full shape.
pub(super) fn full(epoch: &str, sandbox: &Sandbox) -> Value {
    let instance = sandbox.live().map(|instance| {
        json!({
            "iid": instance.iid,
            "phase": instance.phase,
            "generation": instance.generation,
            "runtime": instance.runtime,
            "pid": instance.pid,
            "created_at": instance.created_at,
            "started_at": instance.started_at,
            "stop_reason": instance.stop_reason,
        })
    });
    let status = &sandbox.status;
    json!({
        "apiVersion": draft::API_VERSION,
        "kind": draft::KIND,
        "metadata": {
            "name": sandbox.name,
            "labels": sandbox.labels,
            "uid": sandbox.uid,
            "generation": sandbox.generation,
            "resource_version": snapshot::version(epoch, sandbox.rv),
            "created_at": sandbox.created_at,
            "owner": sandbox.owner,
            "deletion_at": sandbox.deletion.map(|deletion| deletion.at),
        },
        "spec": *sandbox.spec,
        "power": sandbox.power,
        "status": {
            "phase": status.phase,
            "observed_generation": status.observed_generation,
            "observed_request": status.observed_request,
            "conditions": status.conditions,
            "instance": instance,
            "last_exit": sandbox.last_exit(),
            "failures": sandbox.history.failures,
            "restarts": sandbox.history.restarts,
            "asleep": sandbox.history.asleep.as_deref().map(checkpoint),
            "checkpoint": sandbox.history.saved.as_deref().map(checkpoint),
            "next_start_at": status.next_start_at,
            "limits": status.limits,
            "walls": status.walls,
            "breaches": sandbox.history.breaches,
        },
    })
}

fn checkpoint(kept: &Checkpoint) -> Value {
    json!({
        "iid": kept.iid,
        "taken_at": kept.taken_at,
        "runtime": kept.runtime,
        "bytes": kept.bytes,
        "has_workspace": kept.has_workspace,
    })
}

/// What a client may send back of the full shape, and what we do not read.
pub(super) const UNREAD_METADATA: &[&str] =
    &["uid", "generation", "resource_version", "created_at", "owner", "deletion_at"];

/// A file of specs.
pub(super) fn file(path: &str, record: &FileRecord) -> Value {
    json!({
        "path": path,
        "names": record.names,
        "faults": record.faults,
        "conflicts": record.conflicts,
        "missing": record.missing,
        "held": record.held,
    })
}
