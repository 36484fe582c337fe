//! `/metrics`, as Prometheus reads it: what runs, what it uses, and what became of its limits.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Units are base units, as its naming
//! rules want them.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::api::Shared;
use crate::reconcile::{Space, Usage};
use sodium_model::{Sandbox, SandboxName, WallStatus, WallVerdict};

const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(api): State<Shared>) -> impl IntoResponse {
    let snapshot = api.store.snapshot();
    let all: Vec<&Arc<Sandbox>> = snapshot.sandboxes.values().collect();
    let running: Vec<Arc<Sandbox>> =
        all.iter().filter(|one| one.live().is_some()).map(|one| Arc::clone(one)).collect();
    let names: Vec<SandboxName> = running.iter().map(|one| one.name.clone()).collect();
    let usages = api.handle.usages(running).await;
    let mut page = Page::default();
    counts(&mut page, &all);
    usage(&mut page, &names, &usages);
    ledger(&mut page, &all);
    ([(CONTENT_TYPE, FORMAT)], page.0)
}

/// The text, family by family.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Names of sandboxes, limits and phases have nothing in them that would have to be escaped.
    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "{name}{{");
        for (index, (label, text)) in labels.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(self.0, "{comma}{label}=\"{text}\"");
        }
        let _ = writeln!(self.0, "}} {value}");
    }
}

fn counts(page: &mut Page, all: &[&Arc<Sandbox>]) {
    let mut phases: BTreeMap<String, u64> = BTreeMap::new();
    for sandbox in all {
        *phases.entry(sandbox.status.phase.to_string()).or_default() += 1;
    }
    page.family("sodiumd_sandboxes", "gauge", "Sandboxes by phase.");
    for (phase, count) in phases {
        page.sample("sodiumd_sandboxes", &[("phase", &phase)], count);
    }
    page.family("sodiumd_sandbox_restarts_total", "counter", "Starts after the first.");
    for sandbox in all {
        let labels: [(&str, &dyn Display); 1] = [("name", &sandbox.name)];
        page.sample("sodiumd_sandbox_restarts_total", &labels, sandbox.history.restarts);
    }
}

/// One number of what runs; `None` where it is not known.
type Number = fn(&Usage, Option<&Space>) -> Option<f64>;

const NUMBERS: [(&str, &str, &str, Number); 10] = [
    ("memory_bytes", "gauge", "Working set: usage without inactive page cache.", |usage, _| {
        Some(float(usage.memory_used_bytes()))
    }),
    ("memory_peak_bytes", "gauge", "The most memory that was used.", |usage, _| {
        Some(float(usage.memory_peak_bytes))
    }),
    ("cpu_seconds_total", "counter", "Time on a cpu.", |usage, _| {
        Some(float(usage.cpu_usec) / 1e6)
    }),
    ("cpu_throttled_seconds_total", "counter", "Time stopped by the cpu limit.", |usage, _| {
        Some(float(usage.throttled_usec) / 1e6)
    }),
    ("processes", "gauge", "Processes, as the host counts them.", |usage, _| {
        Some(float(usage.pids))
    }),
    ("oom_kills_total", "counter", "OOM kills.", |usage, _| Some(float(usage.oom_kills))),
    ("io_read_bytes_total", "counter", "Read from disks.", |usage, _| {
        Some(float(usage.read_bytes))
    }),
    ("io_written_bytes_total", "counter", "Written to disks.", |usage, _| {
        Some(float(usage.write_bytes))
    }),
    ("disk_bytes", "gauge", "Held by the workspace and /tmp.", |_, space| {
        space.map(|space| float(space.used_bytes()))
    }),
    ("disk_limit_bytes", "gauge", "What they may hold.", |_, space| {
        space.map(|space| float(space.total_bytes))
    }),
];

#[expect(clippy::cast_precision_loss, reason = "what Prometheus has are 64-bit floats")]
fn float(value: u64) -> f64 {
    value as f64
}

fn usage(page: &mut Page, names: &[SandboxName], usages: &[(Usage, Option<Space>)]) {
    for (name, kind, help, number) in NUMBERS {
        let family = format!("sodiumd_sandbox_{name}");
        page.family(&family, kind, help);
        for (sandbox, (usage, space)) in names.iter().zip(usages) {
            if let Some(value) = number(usage, space.as_ref()) {
                page.sample(&family, &[("name", sandbox)], value);
            }
        }
    }
}

fn ledger(page: &mut Page, all: &[&Arc<Sandbox>]) {
    const REQUESTED: &str = "sodiumd_sandbox_limit";
    const VERDICT: &str = "sodiumd_sandbox_limit_verdict";
    const BREACHES: &str = "sodiumd_sandbox_limit_breaches_total";
    const WALL: &str = "sodiumd_sandbox_wall";
    page.family(REQUESTED, "gauge", "A limit as it was asked for, in the unit of its name.");
    for sandbox in all.iter().filter(|one| one.live().is_some()) {
        for limit in &sandbox.status.limits {
            let labels: [(&str, &dyn Display); 2] =
                [("name", &sandbox.name), ("limit", &limit.limit)];
            page.sample(REQUESTED, &labels, limit.requested);
        }
    }
    page.family(VERDICT, "gauge", "1 for what became of a limit.");
    for sandbox in all {
        for limit in &sandbox.status.limits {
            let verdict = limit.verdict.as_str();
            let labels: [(&str, &dyn Display); 3] =
                [("name", &sandbox.name), ("limit", &limit.limit), ("verdict", &verdict)];
            page.sample(VERDICT, &labels, 1);
        }
    }
    page.family(
        WALL,
        "gauge",
        "1 for a wall that stands, 0 for one that is promised and does not.",
    );
    for sandbox in all {
        let promised = |wall: &&WallStatus| wall.verdict != WallVerdict::None;
        for wall in sandbox.status.walls.iter().filter(promised) {
            let labels: [(&str, &dyn Display); 2] = [("name", &sandbox.name), ("wall", &wall.wall)];
            page.sample(WALL, &labels, u8::from(!wall.is_open()));
        }
    }
    page.family(BREACHES, "counter", "How often a limit was met, over all instances.");
    for sandbox in all {
        for (limit, met) in &sandbox.history.breaches {
            let labels: [(&str, &dyn Display); 2] = [("name", &sandbox.name), ("limit", limit)];
            page.sample(BREACHES, &labels, met.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_as_prometheus_reads_it() {
        let mut page = Page::default();
        let name = SandboxName::try_from("web").unwrap();
        let used = Usage { cpu_usec: 1_500_000, memory_bytes: 10, ..Usage::default() };
        usage(&mut page, &[name], &[(used, None)]);
        assert!(page.0.contains(
            "# HELP sodiumd_sandbox_cpu_seconds_total Time on a cpu.\n\
             # TYPE sodiumd_sandbox_cpu_seconds_total counter\n\
             sodiumd_sandbox_cpu_seconds_total{name=\"web\"} 1.5\n"
        ));
        assert!(page.0.contains("sodiumd_sandbox_memory_bytes{name=\"web\"} 10\n"));
        assert!(!page.0.contains("sodiumd_sandbox_disk_bytes{"), "{}", page.0);
        let sample = |line: &str| {
            let (name, rest) = line.split_once('{').unwrap();
            name.starts_with("sodiumd_") && rest.contains("\"} ")
        };
        assert!(page.0.lines().all(|line| line.starts_with("# ") || sample(line)));
    }
}
