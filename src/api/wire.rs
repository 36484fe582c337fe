//! From what the daemon knows to what clients see: the seed's flat shape, and the full one.

use axum::body::Bytes;
use serde::Serialize;

use crate::api::Api;
use crate::reconcile::Usage;
use crate::store::{FileRecord, snapshot};
use sodium_api::{
    ApiVersion, Kind, Metadata, SeedEnd, SeedLimits, SeedSandbox, SeedStatus, SpecFile, Stats,
    Stream,
};
use sodium_model::instance::signal_number;
use sodium_model::{Checkpoint, ExitKind, ExitRecord, Instance, InstancePhase, Limits, Sandbox};
use sodium_shim::spool;

/// As JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("every key of the wire's types is a text")
}

/// As a line of JSON.
pub(super) fn line(value: &impl Serialize) -> Bytes {
    (json(value) + "\n").into()
}

/// The seed's six.
fn seed_limits(limits: &Limits) -> SeedLimits {
    SeedLimits {
        memory_mb: limits.memory_mb,
        cpu_percent: limits.cpu_percent,
        disk_mb: limits.disk_mb,
        timeout_seconds: limits.timeout_seconds,
        max_processes: limits.max_processes,
        max_files: limits.max_files,
    }
}

/// The seed's shape, with ours beside it.
pub(super) fn seed(api: &Api, sandbox: &Sandbox) -> SeedSandbox {
    let instance = sandbox.instance.as_deref();
    let started_at = |one: &Instance| {
        one.started_at.or_else(|| one.exit.as_ref().and_then(|exit| exit.started_at))
    };
    SeedSandbox {
        uuid: sandbox.uid,
        runtime: runtime(api, sandbox),
        limits: seed_limits(&sandbox.spec.limits),
        created_at: sandbox.created_at,
        status: seed_status(sandbox),
        name: sandbox.name.clone(),
        image: sandbox.spec.image.clone(),
        isolation: sandbox.spec.isolation,
        owner: sandbox.owner.clone(),
        phase: sandbox.status.phase,
        generation: sandbox.generation,
        conditions: sandbox.status.conditions.clone(),
        pid: sandbox.live().and_then(|live| live.pid),
        started_at: instance.and_then(started_at),
        end: sandbox.last_exit().map(seed_end),
        stats: None,
    }
}

fn seed_end(exit: &ExitRecord) -> SeedEnd {
    SeedEnd { exit_code: exit_code(exit), stopped_at: exit.ended_at, exit: exit.clone() }
}

fn runtime(api: &Api, sandbox: &Sandbox) -> Option<String> {
    let rules = api.rules.get();
    let image = rules.images.get(sandbox.spec.image.as_ref()?)?;
    Some(image.runtime.clone())
}

/// The three words that old clients switch on.
fn seed_status(sandbox: &Sandbox) -> SeedStatus {
    match sandbox.instance.as_deref().map(|instance| instance.phase) {
        None => SeedStatus::Created,
        Some(InstancePhase::Dead) => SeedStatus::Stopped,
        Some(InstancePhase::Starting | InstancePhase::Running | InstancePhase::Stopping) => {
            SeedStatus::Running
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
pub(super) fn stats(usage: &Usage) -> Stats {
    Stats {
        memory_bytes: usage.memory_bytes,
        // A tick is a hundredth of a second.
        cpu_ticks: usage.cpu_usec / 10_000,
        disk_read_bytes: usage.read_bytes,
        disk_write_bytes: usage.write_bytes,
        memory_peak_bytes: usage.memory_peak_bytes,
        cpu_usec: usage.cpu_usec,
        throttled_usec: usage.throttled_usec,
        processes: usage.pids,
        oom_kills: usage.oom_kills,
    }
}

/// The full shape.
pub(super) fn full(epoch: &str, sandbox: &Sandbox) -> sodium_api::Sandbox {
    sodium_api::Sandbox {
        api_version: ApiVersion::V1,
        kind: Kind::Sandbox,
        metadata: Metadata {
            name: sandbox.name.clone(),
            labels: sandbox.labels.clone(),
            uid: sandbox.uid,
            generation: sandbox.generation,
            resource_version: snapshot::version(epoch, sandbox.rv),
            created_at: sandbox.created_at,
            owner: sandbox.owner.clone(),
            deletion_at: sandbox.deletion.map(|deletion| deletion.at),
        },
        spec: sandbox.spec.clone(),
        power: sandbox.power,
        status: status(sandbox),
    }
}

fn status(sandbox: &Sandbox) -> sodium_api::Status {
    let (status, history) = (&sandbox.status, &sandbox.history);
    sodium_api::Status {
        phase: status.phase,
        observed_generation: status.observed_generation,
        observed_request: status.observed_request,
        conditions: status.conditions.clone(),
        instance: sandbox.live().map(|live| instance(live)),
        last_exit: sandbox.last_exit().cloned(),
        failures: history.failures,
        restarts: history.restarts,
        asleep: history.asleep.as_deref().map(checkpoint),
        checkpoint: history.saved.as_deref().map(checkpoint),
        next_start_at: status.next_start_at,
        limits: status.limits.clone(),
        walls: status.walls.clone(),
        breaches: history.breaches.clone(),
    }
}

fn instance(instance: &Instance) -> sodium_api::Instance {
    sodium_api::Instance {
        iid: instance.iid.clone(),
        phase: instance.phase,
        generation: instance.generation,
        runtime: instance.runtime.clone(),
        pid: instance.pid,
        created_at: instance.created_at,
        started_at: instance.started_at,
        stop_reason: instance.stop_reason,
    }
}

fn checkpoint(kept: &Checkpoint) -> sodium_api::Checkpoint {
    sodium_api::Checkpoint {
        iid: kept.iid.clone(),
        taken_at: kept.taken_at,
        runtime: kept.runtime.clone(),
        bytes: kept.bytes,
        has_workspace: kept.has_workspace,
    }
}

/// What a client may send back of the full shape, and what we do not read.
pub(super) const UNREAD_METADATA: &[&str] =
    &["uid", "generation", "resource_version", "created_at", "owner", "deletion_at"];

/// A file of specs.
pub(super) fn file(path: String, record: &FileRecord) -> SpecFile {
    SpecFile {
        path,
        names: record.names.clone(),
        faults: record.faults.clone(),
        conflicts: record.conflicts.clone(),
        missing: record.missing.clone(),
        held: record.held.clone(),
    }
}

pub(super) fn stream(stream: spool::Stream) -> Stream {
    match stream {
        spool::Stream::Stdout => Stream::Stdout,
        spool::Stream::Stderr => Stream::Stderr,
        spool::Stream::System => Stream::System,
    }
}
