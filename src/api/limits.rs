//! `/v1/sandboxes/NAME/limits`: the ledger. For each limit what was asked for, what keeps it, what the kernel
//! says it is, how often it was met, and how much of it is used. For each wall what is promised, what puts it up, and
//! what the kernel says.

use axum::Json;
use axum::extract::State;

use crate::api::request::Path;
use crate::api::sandboxes::find;
use crate::api::{ApiError, Shared};
use crate::reconcile::{Space, Usage};
use sodium_api::{Ledger, LedgerLimit};
use sodium_model::{Instance, Isolation, Limits, Sandbox, Time};

pub(super) async fn limits(
    State(api): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Ledger>, ApiError> {
    let sandbox = find(&api, &id)?;
    let usage = api.handle.usage(&sandbox).await;
    let disk = api.handle.disk(&sandbox).await;
    let seen = Seen { usage, disk, now: api.now() };
    let asked =
        |name: &&str| Limits::NAMES.contains(name) || sandbox.spec.limits.get(name) > Some(0);
    let items = Limits::ALL.into_iter().filter(asked);
    Ok(Json(Ledger {
        name: sandbox.name.clone(),
        strict: sandbox.spec.strict,
        items: items.map(|name| entry(name, &sandbox, &seen)).collect(),
        walls: sandbox.status.walls.clone(),
    }))
}

/// What is used at the moment.
struct Seen {
    usage: Usage,
    disk: Option<Space>,
    now: Time,
}

fn entry(name: &str, sandbox: &Sandbox, seen: &Seen) -> LedgerLimit {
    let (usage, now) = (&seen.usage, seen.now);
    let live = sandbox.live();
    let (mut used, peak) = live.map_or((None, None), |live| used(name, live, usage, now));
    if name == "disk_mb" {
        // Running or not.
        used = seen.disk.map(|disk| disk.used_bytes().div_ceil(1 << 20));
    }
    let peak = peak.or_else(|| peak_before(name, sandbox));
    let mut breaches = sandbox.history.breaches.get(name).copied().unwrap_or_default();
    // What the kernel has counted for the instance that runs is recorded when that ends.
    let counted = match name {
        "memory_mb" => usage.oom_kills,
        "max_processes" => usage.pids_refused,
        _ => 0,
    };
    breaches.add(counted, now);
    let known = sandbox.status.limits.iter().find(|limit| limit.limit == name);
    // Where nothing runs, and nothing is known that would keep it from being kept.
    let unset = || "it is set and read back when the sandbox starts".to_owned();
    LedgerLimit {
        limit: name.to_owned(),
        requested: known
            .map_or_else(|| sandbox.spec.limits.get(name).unwrap_or(0), |known| known.requested),
        mechanism: known.map_or_else(String::new, |known| known.mechanism.clone()),
        read_back: known.and_then(|known| known.read_back),
        verdict: known.map(|known| known.verdict),
        reason: known.map_or_else(unset, |known| known.reason.clone()),
        usage: used,
        peak,
        breaches,
    }
}

/// What is used now, and was at most, in the unit of the limit.
fn used(limit: &str, live: &Instance, usage: &Usage, now: Time) -> (Option<u64>, Option<u64>) {
    let ran_ms = live.started_at.map_or(0, |started| started.until(now).0);
    let mib = |bytes: u64| Some(bytes.div_ceil(1 << 20));
    match limit {
        "memory_mb" => (mib(usage.memory_used_bytes()), mib(usage.memory_peak_bytes)),
        // On the average since it was started.
        "cpu_percent" => ((usage.cpu_usec / 10).checked_div(ran_ms), None),
        // gVisor's guests have processes that the host does not see.
        "max_processes" if live.spec.isolation != Isolation::Gvisor => {
            (Some(usage.pids), Some(usage.pids_peak))
        }
        "timeout_seconds" => (Some(ran_ms / 1_000), None),
        _ => (None, None),
    }
}

/// What the last instance had come to when it ended.
fn peak_before(limit: &str, sandbox: &Sandbox) -> Option<u64> {
    let exit = sandbox.last_exit()?;
    match limit {
        "memory_mb" => Some(exit.memory_peak_bytes.div_ceil(1 << 20)),
        "max_processes" => Some(exit.processes_peak),
        _ => None,
    }
}
