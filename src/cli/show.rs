//! Printing: tables for people, JSON and YAML for programs. The only module that prints.
//!
//! What it prints was written by tenants and by whoever names files: nothing of it is left to the
//! terminal but what [`raw`] prints, which is a console.

use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::cli::Output;
use crate::cli::client::Said;
use crate::desired::yaml;
use sodium_api::{
    Action, Applied, Explained, Ledger, List, Plan, PlannedStep, Sandbox, SandboxList, SpecFile,
};
use sodium_model::image::Image;
use sodium_model::text::{escaped, escaped_json, escaped_lines};
use sodium_model::{
    Breaches, Condition, ConditionType, Event, ExitRecord, LimitStatus, Truth, Verdict, WallStatus,
    WallVerdict,
};

/// A line of data, or several.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    raw(format!("{}\n", escaped_lines(text)).as_bytes())
}

/// What a console says, as it is.
pub(super) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("write to standard output")
}

/// Something for people, beside the data.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{}", escaped_lines(text));
}

/// Anything, for programs; people get YAML.
pub(super) fn value(value: &impl Serialize, output: Output) -> anyhow::Result<()> {
    // With its keys in order, as a diff wants them.
    let value = serde_json::to_value(value)?;
    match output {
        Output::Json => line(&escaped_json(&serde_json::to_string_pretty(&value)?)),
        Output::Yaml | Output::Table | Output::Wide => raw(yaml_of(&value)?.as_bytes()),
    }
}

/// As YAML, or as JSON, which is YAML too, if there is something in it that only that can escape.
fn yaml_of(value: &Value) -> anyhow::Result<String> {
    let text = yaml::write(value);
    if escaped_lines(&text) == text {
        return Ok(text);
    }
    Ok(format!("{}\n", escaped_json(&serde_json::to_string_pretty(value)?)))
}

type Column<T> = (&'static str, fn(&T) -> String);

fn table<T>(rows: &[T], columns: &[Column<T>]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(head, _)| *head));
    for row in rows {
        table.add_row(columns.iter().map(|(_, cell)| cell(row)));
    }
    let text = table.to_string();
    for row in text.lines() {
        line(row.trim())?;
    }
    Ok(())
}

fn listed<T>(list: &Said<List<T>>, output: Output, columns: &[Column<T>]) -> anyhow::Result<()> {
    if output.is_for_people() { table(&list.items, columns) } else { value(list, output) }
}

/// As the API says it, in one line and in the columns of a table; `-` for null.
fn text(value: &impl Serialize) -> String {
    match serde_json::to_value(value).unwrap_or_default() {
        Value::Null => "-".to_owned(),
        Value::String(text) => escaped(&text).into_owned(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    }
}

fn condition(sandbox: &Sandbox, kind: ConditionType) -> Option<&Condition> {
    sandbox.status.conditions.iter().find(|one| one.kind == kind)
}

fn ready(sandbox: &Sandbox) -> String {
    text(&condition(sandbox, ConditionType::Ready).map(|one| one.status))
}

/// What a person should know: a fault of the source first, then that it would not be started again, then why it is as
/// it is.
pub(super) fn about(sandbox: &Sandbox) -> String {
    let false_one = |kind| condition(sandbox, kind).filter(|one| one.status == Truth::False);
    let fault = false_one(ConditionType::SpecCurrent).or_else(|| false_one(ConditionType::Allowed));
    let shown = fault.or_else(|| condition(sandbox, ConditionType::Ready));
    shown.map_or_else(String::new, |one| text(&one.message))
}

pub(super) fn sandboxes(list: &Said<SandboxList>, output: Output) -> anyhow::Result<()> {
    const FIRST: [Column<Sandbox>; 6] = [
        ("NAME", |row| text(&row.metadata.name)),
        ("PHASE", |row| text(&row.status.phase)),
        ("READY", ready),
        ("RESTARTS", |row| text(&row.status.restarts)),
        ("PID", |row| text(&row.status.instance.as_ref().map(|one| one.pid))),
        ("OWNER", |row| text(&row.metadata.owner)),
    ];
    const WIDE: [Column<Sandbox>; 4] = [
        ("ISOLATION", |row| text(&row.spec.isolation)),
        ("WALLS", |row| standing_walls(&row.status.walls)),
        ("LIMITS", |row| kept_limits(&row.status.limits)),
        ("BREACHES", met_limits),
    ];
    if !output.is_for_people() {
        return value(list, output);
    }
    let more = WIDE.into_iter().filter(|_| output == Output::Wide);
    let columns: Vec<Column<Sandbox>> =
        FIRST.into_iter().chain(more).chain([("MESSAGE", about as _)]).collect();
    table(&list.items, &columns)
}

/// A retained workspace of this machine.
#[derive(Debug, Serialize)]
pub(super) struct Workspace {
    pub id: String,
    pub name: String,
    pub owner: Option<String>,
    pub since: sodium_model::Time,
}

pub(super) fn workspaces(list: &List<Workspace>, output: Output) -> anyhow::Result<()> {
    const COLUMNS: [Column<Workspace>; 4] = [
        ("ID", |row| text(&row.id)),
        ("NAME", |row| text(&row.name)),
        ("OWNER", |row| text(&row.owner)),
        ("SINCE", |row| text(&row.since)),
    ];
    if output.is_for_people() { table(&list.items, &COLUMNS) } else { value(list, output) }
}

/// How many limits are kept, and which are not.
fn kept_limits(limits: &[LimitStatus]) -> String {
    let kept = limits.iter().filter(|limit| limit.verdict == Verdict::Enforced).count();
    let rest = limits.iter().filter(|limit| limit.verdict != Verdict::Enforced);
    // Of one that does not run, only what could not be kept is known.
    let kept = (kept > 0).then(|| format!("{kept} enforced"));
    let rest = rest.map(|one| format!("{} {}", text(&one.limit), one.verdict.as_str()));
    kept.into_iter().chain(rest).collect::<Vec<_>>().join(", ")
}

/// How many walls stand, and which do not.
fn standing_walls(walls: &[WallStatus]) -> String {
    let standing = walls.iter().filter(|wall| wall.verdict == WallVerdict::Enforced).count();
    let kept = (standing > 0).then(|| format!("{standing} enforced"));
    let open = walls.iter().filter(|wall| wall.verdict == WallVerdict::NotEnforced);
    let open = open.map(|wall| format!("{} not enforced", wall.wall));
    kept.into_iter().chain(open).collect::<Vec<_>>().join(", ")
}

/// Which limits were met, and how often.
fn met_limits(sandbox: &Sandbox) -> String {
    let word = |(limit, met): (&String, &Breaches)| format!("{} {}", text(limit), met.count);
    let words = sandbox.status.breaches.iter().map(word).collect::<Vec<_>>().join(", ");
    if words.is_empty() { "-".to_owned() } else { words }
}

/// One sandbox, for people.
pub(super) fn sandbox(sandbox: &Sandbox, ledger: &Ledger) -> anyhow::Result<()> {
    let (metadata, status) = (&sandbox.metadata, &sandbox.status);
    line(&format!("{} ({})   {}", metadata.name, metadata.uid, status.phase))?;
    line(&format!("owner {}   generation {}", text(&metadata.owner), metadata.generation))?;
    if let Some(exit) = &status.last_exit {
        line(&format!("last exit: {}, at {}", escaped(&exit.summary()), exit.ended_at))?;
    }
    line("")?;
    table(
        &status.conditions,
        &[
            ("CONDITION", |row| text(&row.kind)),
            ("STATUS", |row| text(&row.status)),
            ("REASON", |row| text(&row.reason)),
            ("MESSAGE", |row| text(&row.message)),
        ],
    )?;
    line("")?;
    table(
        &ledger.items,
        &[
            ("LIMIT", |row| text(&row.limit)),
            ("REQUESTED", |row| text(&row.requested)),
            ("EFFECTIVE", |row| text(&row.read_back)),
            ("VERDICT", |row| text(&row.verdict)),
            ("USED", |row| text(&row.usage)),
            ("PEAK", |row| text(&row.peak)),
            ("MET", |row| text(&row.breaches.count)),
            ("BY", |row| mechanism_or_reason(&row.mechanism, &row.reason)),
        ],
    )?;
    if status.walls.is_empty() {
        return Ok(());
    }
    line("")?;
    table(
        &status.walls,
        &[
            ("WALL", |row| text(&row.wall)),
            ("REQUESTED", |row| text(&row.requested)),
            ("EFFECTIVE", |row| text(&row.effective)),
            ("VERDICT", |row| text(&row.verdict)),
            ("BY", |row| mechanism_or_reason(&row.mechanism, &row.reason)),
        ],
    )
}

fn mechanism_or_reason(mechanism: &String, reason: &String) -> String {
    text(if reason.is_empty() { mechanism } else { reason })
}

/// The chain from who wanted what to what comes next.
pub(super) fn explained(said: &Said<Explained>, output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(said, output);
    }
    let observed = &said.observed;
    line(&format!("{} is {}", said.name, observed.phase))?;
    line(&format!("declared  by {}, generation {}", text(&said.owner), said.generation))?;
    for edit in &said.edits {
        let fields = edit.fields.iter().map(text).collect::<Vec<_>>().join(", ");
        let (at, generation, by) = (edit.at, edit.generation, text(&edit.by));
        line(&format!("set       {at}  generation {generation} by {by}: {fields}"))?;
    }
    for event in &said.events {
        let (reason, message) = (text(&event.reason), text(&event.message));
        line(&format!("happened  {}  {reason}: {message}", event.time))?;
    }
    for one in &observed.conditions {
        let (kind, status, since) = (text(&one.kind), text(&one.status), one.last_transition_time);
        let (reason, message) = (text(&one.reason), text(&one.message));
        line(&format!("seen      {kind} {status} since {since}: {reason} {message}"))?;
    }
    let walls = standing_walls(&observed.walls);
    if !walls.is_empty() {
        line(&format!("walls     {walls}"))?;
    }
    if let Some(exit) = &observed.last_exit {
        ended(exit)?;
    }
    for said in observed.last_output.as_deref().unwrap_or_default().lines() {
        line(&format!("said      {said}"))?;
    }
    let decided = &said.decided;
    line(&format!("decided   {}: {}", text(&decided.next), text(&decided.why)))?;
    if let Some(at) = decided.due_at {
        line(&format!("due       {at}"))?;
    }
    Ok(())
}

/// How it ended, and what the kernel says of that.
fn ended(exit: &ExitRecord) -> anyhow::Result<()> {
    let asked = exit.asked_by.as_deref().map(|by| format!(", asked for by {by}"));
    let kind = serde_json::to_value(&exit.kind)?;
    line(&format!(
        "ended     {}: {}, generation {}{}",
        exit.ended_at,
        text(&kind["kind"]),
        exit.generation,
        asked.unwrap_or_default()
    ))?;
    let peak = exit.memory_peak_bytes >> 20;
    let seconds = |usec: u64| usec as f64 / 1e6;
    line(&format!(
        "evidence  {} OOM kills, {} processes refused, at most {peak} MiB, {:.2} s of cpu, {:.2} s throttled",
        exit.oom_kills,
        exit.processes_refused,
        seconds(exit.cpu_usec),
        seconds(exit.throttled_usec)
    ))
}

pub(super) fn files(list: &Said<List<SpecFile>>, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("FILE", |row| text(&row.path)),
            ("SANDBOXES", |row| row.names.iter().map(text).collect::<Vec<_>>().join(" ")),
            ("STATE", |row| {
                let words = [
                    (!row.faults.is_empty(), "Invalid"),
                    (!row.conflicts.is_empty(), "Conflict"),
                    (row.held.is_some(), "Held"),
                    (!row.missing.is_empty(), "Missing"),
                ];
                words.iter().find(|(holds, _)| *holds).map_or("Ok", |(_, word)| *word).to_owned()
            }),
            ("MESSAGE", |row| {
                let faults = row.faults.iter();
                let faults = faults.map(|fault| escaped(&fault.to_string()).into_owned());
                let conflicts = row.conflicts.iter();
                let conflicts = conflicts.map(|(name, why)| format!("{name}: {}", text(why)));
                let held = row
                    .held
                    .as_ref()
                    .map(|why| format!("{why}; run \"sodiumd confirm\" to let them go"));
                faults.chain(conflicts).chain(held).collect::<Vec<_>>().join("; ")
            }),
        ],
    )
}

pub(super) fn images(list: &Said<List<Image>>, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("ID", |row| text(&row.id)),
            ("NAME", |row| text(&row.name)),
            ("RUNTIME", |row| text(&row.runtime)),
            ("STARTUP", |row| text(&row.startup)),
        ],
    )
}

pub(super) fn events(list: &Said<List<Event>>, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("TIME", |row| text(&row.time)),
            ("LEVEL", |row| text(&row.level)),
            ("SANDBOX", |row| text(&row.name)),
            ("REASON", |row| text(&row.reason)),
            ("MESSAGE", |row| text(&row.message)),
        ],
    )
}

/// One event as it happens.
pub(super) fn event_line(event: &Said<Event>, output: Output) -> anyhow::Result<()> {
    let value = serde_json::to_value(event)?;
    match output {
        Output::Json => line(&escaped_json(&value.to_string())),
        Output::Yaml => raw(format!("---\n{}", yaml_of(&value)?).as_bytes()),
        Output::Table | Output::Wide => {
            let (level, name) = (text(&event.level), text(&event.name));
            let (reason, message) = (text(&event.reason), text(&event.message));
            line(&format!("{}  {level}  {name}  {reason}  {message}", event.time))
        }
    }
}

pub(super) fn applied(results: &[Applied], output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(&results, output);
    }
    table(
        results,
        &[
            ("NAME", |row| text(&row.name)),
            ("ACTION", |row| text(&row.action)),
            ("EFFECT", |row| text(&row.effect)),
            ("FIELDS", |row| {
                // Each with how it is changed, where something runs that it changes.
                let effect = |field: &String| row.effects.as_ref()?.get(field);
                let named = |field: &String| match effect(field) {
                    Some(effect) => format!("{} ({effect})", text(field)),
                    None => text(field),
                };
                let fields = row.fields.iter().flatten().map(named);
                row.why.clone().unwrap_or_else(|| fields.collect::<Vec<_>>().join(", "))
            }),
        ],
    )
}

/// Each field that would change, as it is and as it would be.
pub(super) fn differences(results: &[Applied], output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(&results, output);
    }
    for result in results.iter().filter(|result| result.action != Action::Unchanged) {
        let how = [Some(text(&result.action)), result.effect.clone(), result.why.clone()];
        let how: Vec<String> = how.into_iter().flatten().collect();
        line(&format!("{}: {}", result.name, how.join(", ")))?;
        for (field, change) in result.changes.iter().flatten() {
            for (mark, side) in [('-', &change.from), ('+', &change.to)] {
                if !side.is_null() {
                    line(&format!("  {mark} {field}: {side}"))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn plan(plan: &Said<Plan>, output: Output) -> anyhow::Result<()> {
    const COLUMNS: [Column<PlannedStep>; 4] = [
        ("NAME", |row| text(&row.name)),
        ("STEP", |row| text(&row.step)),
        ("AT", |row| row.at.map_or_else(|| "now".to_owned(), |at| at.to_string())),
        ("WHY", |row| text(&row.why)),
    ];
    if !output.is_for_people() {
        return value(plan, output);
    }
    if plan.steps.is_empty() {
        line("nothing to do: the machine is as declared")?;
    } else {
        table(&plan.steps, &COLUMNS)?;
    }
    for (path, faults) in &plan.faults {
        complain(&format!("{path}: {} faults; its last valid version stays applied", faults.len()));
    }
    for (name, why) in &plan.refused {
        complain(&format!("{name}: {}", text(why)));
    }
    Ok(())
}
