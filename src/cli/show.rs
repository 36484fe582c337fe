//! Printing: tables for people, JSON and YAML for programs. The only module that prints.
//!
//! What it prints was written by tenants and by whoever names files: nothing of it is left to the
//! terminal but what [`raw`] prints, which is a console.

use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cli::Output;
use crate::desired::yaml;
use sodium_model::ExitRecord;
use sodium_model::text::{escaped, escaped_json, escaped_lines};

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

/// Any value, for programs; people get YAML.
pub(super) fn value(value: &Value, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => line(&escaped_json(&serde_json::to_string_pretty(value)?)),
        Output::Yaml | Output::Table | Output::Wide => raw(yaml_of(value)?.as_bytes()),
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

type Column = (&'static str, fn(&Value) -> String);

fn table(rows: &[Value], columns: &[Column]) -> anyhow::Result<()> {
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

fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().cloned().unwrap_or_default()
}

fn listed(list: &Value, output: Output, columns: &[Column]) -> anyhow::Result<()> {
    match output {
        Output::Table | Output::Wide => table(&items(list), columns),
        Output::Json | Output::Yaml => value(list, output),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        // In one line, and in the columns of a table.
        Value::String(text) => escaped(text).into_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn condition<'v>(sandbox: &'v Value, kind: &str) -> Option<&'v Value> {
    sandbox["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind)
}

fn ready(sandbox: &Value) -> String {
    condition(sandbox, "Ready").map_or_else(|| "-".to_owned(), |one| text(&one["status"]))
}

/// What a person should know: a fault of the source first, then that it would not be started again, then why it is as
/// it is.
pub(super) fn about(sandbox: &Value) -> String {
    let false_one = |kind| condition(sandbox, kind).filter(|one| one["status"] == "False");
    let fault = false_one("SpecCurrent").or_else(|| false_one("Allowed"));
    let shown = fault.or_else(|| condition(sandbox, "Ready"));
    shown.map_or_else(String::new, |one| text(&one["message"]))
}

pub(super) fn sandboxes(list: &Value, output: Output) -> anyhow::Result<()> {
    const FIRST: [Column; 6] = [
        ("NAME", |row| text(&row["metadata"]["name"])),
        ("PHASE", |row| text(&row["status"]["phase"])),
        ("READY", ready),
        ("RESTARTS", |row| text(&row["status"]["restarts"])),
        ("PID", |row| text(&row["status"]["instance"]["pid"])),
        ("OWNER", |row| text(&row["metadata"]["owner"])),
    ];
    const WIDE: [Column; 4] = [
        ("ISOLATION", |row| text(&row["spec"]["isolation"])),
        ("WALLS", |row| standing_walls(&row["status"]["walls"])),
        ("LIMITS", kept_limits),
        ("MET", met_limits),
    ];
    let more = WIDE.into_iter().filter(|_| output == Output::Wide);
    let columns: Vec<Column> =
        FIRST.into_iter().chain(more).chain([("ABOUT", about as _)]).collect();
    listed(list, output, &columns)
}

pub(super) fn workspaces(list: &Value, output: Output) -> anyhow::Result<()> {
    const COLUMNS: [Column; 4] = [
        ("ID", |row| text(&row["id"])),
        ("NAME", |row| text(&row["name"])),
        ("OWNER", |row| text(&row["owner"])),
        ("SINCE", |row| text(&row["since"])),
    ];
    listed(list, output, &COLUMNS)
}

/// How many limits are kept, and which are not.
fn kept_limits(sandbox: &Value) -> String {
    let limits = sandbox["status"]["limits"].as_array().cloned().unwrap_or_default();
    let (kept, rest): (Vec<_>, Vec<_>) =
        limits.iter().partition(|limit| limit["verdict"] == "enforced");
    let mut words = Vec::new();
    // Of one that does not run, only what could not be kept is known.
    if !kept.is_empty() {
        words.push(format!("{} enforced", kept.len()));
    }
    words.extend(
        rest.iter().map(|one| format!("{} {}", text(&one["limit"]), text(&one["verdict"]))),
    );
    words.join(", ")
}

/// How many walls stand, and which do not.
fn standing_walls(walls: &Value) -> String {
    let of = |verdict: &'static str| {
        walls.as_array().into_iter().flatten().filter(move |wall| wall["verdict"] == verdict)
    };
    let standing = of("enforced").count();
    let kept = (standing > 0).then(|| format!("{standing} enforced"));
    let open = of("not_enforced").map(|wall| format!("{} not enforced", text(&wall["wall"])));
    kept.into_iter().chain(open).collect::<Vec<_>>().join(", ")
}

/// Which limits were met, and how often.
fn met_limits(sandbox: &Value) -> String {
    let met = sandbox["status"]["breaches"].as_object().cloned().unwrap_or_default();
    let words = met.iter().map(|(limit, met)| format!("{limit} {}", text(&met["count"])));
    let words = words.collect::<Vec<_>>().join(", ");
    if words.is_empty() { "-".to_owned() } else { words }
}

pub(super) fn sandbox(sandbox: &Value, output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(sandbox, output);
    }
    let status = &sandbox["status"];
    line(&format!(
        "{} ({})   {}",
        text(&sandbox["metadata"]["name"]),
        text(&sandbox["metadata"]["uid"]),
        text(&status["phase"])
    ))?;
    line(&format!(
        "owner {}   generation {}",
        text(&sandbox["metadata"]["owner"]),
        text(&sandbox["metadata"]["generation"])
    ))?;
    if let Ok(exit) = serde_json::from_value::<ExitRecord>(status["last_exit"].clone()) {
        let at = text(&status["last_exit"]["ended_at"]);
        line(&format!("last exit: {}, at {at}", escaped(&exit.summary())))?;
    }
    line("")?;
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    table(
        &conditions,
        &[
            ("CONDITION", |row| text(&row["type"])),
            ("STATUS", |row| text(&row["status"])),
            ("REASON", |row| text(&row["reason"])),
            ("MESSAGE", |row| text(&row["message"])),
        ],
    )?;
    line("")?;
    let limits = status["limits"].as_array().cloned().unwrap_or_default();
    table(
        &limits,
        &[
            ("LIMIT", |row| text(&row["limit"])),
            ("REQUESTED", |row| text(&row["requested"])),
            ("READ BACK", |row| text(&row["read_back"])),
            ("VERDICT", |row| text(&row["verdict"])),
            ("USED", |row| text(&row["usage"])),
            ("PEAK", |row| text(&row["peak"])),
            ("MET", |row| text(&row["breaches"]["count"])),
            ("BY", mechanism_or_reason),
        ],
    )?;
    let walls = status["walls"].as_array().cloned().unwrap_or_default();
    if walls.is_empty() {
        return Ok(());
    }
    line("")?;
    table(
        &walls,
        &[
            ("WALL", |row| text(&row["wall"])),
            ("REQUESTED", |row| text(&row["requested"])),
            ("EFFECTIVE", |row| text(&row["effective"])),
            ("VERDICT", |row| text(&row["verdict"])),
            ("BY", mechanism_or_reason),
        ],
    )
}

fn mechanism_or_reason(row: &Value) -> String {
    let why = row["reason"].as_str().filter(|why| !why.is_empty());
    why.map_or_else(|| text(&row["mechanism"]), str::to_owned)
}

/// The chain from who wanted what to what comes next.
pub(super) fn explained(said: &Value, output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(said, output);
    }
    let observed = &said["observed"];
    line(&format!("{} is {}", text(&said["name"]), text(&observed["phase"])))?;
    let (owner, generation) = (text(&said["owner"]), text(&said["generation"]));
    line(&format!("declared  by {owner}, generation {generation}"))?;
    for edit in said["edits"].as_array().into_iter().flatten() {
        let fields = edit["fields"].as_array().cloned().unwrap_or_default();
        let fields = fields.iter().map(text).collect::<Vec<_>>().join(", ");
        let (at, generation) = (text(&edit["at"]), text(&edit["generation"]));
        line(&format!(
            "set       {at}  generation {generation} by {}: {fields}",
            text(&edit["by"])
        ))?;
    }
    for event in said["events"].as_array().into_iter().flatten() {
        let (at, reason) = (text(&event["time"]), text(&event["reason"]));
        line(&format!("happened  {at}  {reason}: {}", text(&event["message"])))?;
    }
    for condition in observed["conditions"].as_array().into_iter().flatten() {
        let (kind, status) = (text(&condition["type"]), text(&condition["status"]));
        let (reason, message) = (text(&condition["reason"]), text(&condition["message"]));
        let since = text(&condition["last_transition_time"]);
        line(&format!("seen      {kind} {status} since {since}: {reason} {message}"))?;
    }
    let walls = standing_walls(&observed["walls"]);
    if !walls.is_empty() {
        line(&format!("walls     {walls}"))?;
    }
    let exit = &observed["last_exit"];
    if !exit.is_null() {
        let asked = exit["asked_by"].as_str().map(|by| format!(", asked for by {by}"));
        let generation = text(&exit["generation"]);
        line(&format!(
            "ended     {}: {}, generation {generation}{}",
            text(&exit["ended_at"]),
            text(&exit["kind"]),
            asked.unwrap_or_default()
        ))?;
        let peak = exit["memory_peak_bytes"].as_u64().unwrap_or_default() >> 20;
        let seconds = |key: &str| exit[key].as_f64().unwrap_or_default() / 1e6;
        line(&format!(
            "evidence  {} OOM kills, {} processes refused, at most {peak} MiB, {:.2} s of cpu, {:.2} s throttled",
            text(&exit["oom_kills"]),
            text(&exit["processes_refused"]),
            seconds("cpu_usec"),
            seconds("throttled_usec")
        ))?;
    }
    for said in observed["last_output"].as_str().unwrap_or_default().lines() {
        line(&format!("said      {said}"))?;
    }
    let decided = &said["decided"];
    line(&format!("decided   {}: {}", text(&decided["next"]), text(&decided["why"])))?;
    if let Some(at) = decided["due_at"].as_str() {
        line(&format!("due       {at}"))?;
    }
    Ok(())
}

pub(super) fn files(list: &Value, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("FILE", |row| text(&row["path"])),
            ("SANDBOXES", |row| {
                let names = row["names"].as_array().cloned().unwrap_or_default();
                names.iter().map(text).collect::<Vec<_>>().join(" ")
            }),
            ("STATE", |row| {
                let faulty = row["faults"].as_array().is_some_and(|faults| !faults.is_empty());
                let conflicts = row["conflicts"].as_object().is_some_and(|one| !one.is_empty());
                let missing = row["missing"].as_object().is_some_and(|one| !one.is_empty());
                let words = [
                    (faulty, "Invalid"),
                    (conflicts, "Conflict"),
                    (!row["held"].is_null(), "Held"),
                    (missing, "Missing"),
                ];
                words.iter().find(|(holds, _)| *holds).map_or("Ok", |(_, word)| *word).to_owned()
            }),
            ("ABOUT", |row| {
                let faults = row["faults"].as_array().cloned().unwrap_or_default();
                let faults = faults
                    .into_iter()
                    .filter_map(|one| serde_json::from_value::<sodium_model::Violation>(one).ok())
                    .map(|fault| escaped(&fault.to_string()).into_owned());
                let conflicts = row["conflicts"].as_object().cloned().unwrap_or_default();
                let conflicts =
                    conflicts.iter().map(|(name, why)| format!("{name}: {}", text(why)));
                let held = row["held"]
                    .as_str()
                    .map(|why| format!("{why}; run \"sodiumd confirm\" to let them go"));
                faults.chain(conflicts).chain(held).collect::<Vec<_>>().join("; ")
            }),
        ],
    )
}

pub(super) fn images(list: &Value, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("ID", |row| text(&row["id"])),
            ("NAME", |row| text(&row["name"])),
            ("RUNTIME", |row| text(&row["runtime"])),
            ("STARTUP", |row| text(&row["startup"])),
        ],
    )
}

pub(super) fn events(list: &Value, output: Output) -> anyhow::Result<()> {
    listed(
        list,
        output,
        &[
            ("TIME", |row| text(&row["time"])),
            ("LEVEL", |row| text(&row["level"])),
            ("SANDBOX", |row| text(&row["name"])),
            ("REASON", |row| text(&row["reason"])),
            ("MESSAGE", |row| text(&row["message"])),
        ],
    )
}

/// One event as it happens.
pub(super) fn event_line(json: &[u8], output: Output) -> anyhow::Result<()> {
    let event: Value = serde_json::from_slice(json).context("read an event")?;
    match output {
        Output::Json => line(&escaped_json(&event.to_string())),
        Output::Yaml => raw(format!("---\n{}", yaml_of(&event)?).as_bytes()),
        Output::Table | Output::Wide => {
            let fields =
                ["time", "level", "name", "reason", "message"].map(|key| text(&event[key]));
            line(&fields.join("  "))
        }
    }
}

pub(super) fn applied(results: &[Value], output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(&Value::Array(results.to_vec()), output);
    }
    table(
        results,
        &[
            ("NAME", |row| text(&row["name"])),
            ("ACTION", |row| text(&row["action"])),
            ("EFFECT", |row| text(&row["effect"])),
            ("FIELDS", |row| {
                let fields = row["fields"].as_array().cloned().unwrap_or_default();
                let why = row["why"].as_str().map(str::to_owned);
                // Each with how it is changed, where something runs that it changes.
                let named = |field: &Value| match row["effects"][text(field)].as_str() {
                    Some(effect) => format!("{} ({effect})", text(field)),
                    None => text(field),
                };
                why.unwrap_or_else(|| fields.iter().map(named).collect::<Vec<_>>().join(", "))
            }),
        ],
    )
}

/// Each field that would change, as it is and as it would be.
pub(super) fn differences(results: &[Value], output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(&Value::Array(results.to_vec()), output);
    }
    for result in results.iter().filter(|result| result["action"] != "unchanged") {
        let how = [&result["action"], &result["effect"], &result["why"]];
        let how: Vec<String> = how.into_iter().filter(|one| !one.is_null()).map(text).collect();
        line(&format!("{}: {}", text(&result["name"]), how.join(", ")))?;
        for (field, change) in result["changes"].as_object().into_iter().flatten() {
            for (mark, side) in [('-', "from"), ('+', "to")] {
                if !change[side].is_null() {
                    line(&format!("  {mark} {field}: {}", change[side]))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn plan(plan: &Value, output: Output) -> anyhow::Result<()> {
    if !output.is_for_people() {
        return value(plan, output);
    }
    let steps = plan["steps"].as_array().cloned().unwrap_or_default();
    if steps.is_empty() {
        line("nothing to do: the machine is as declared")?;
    } else {
        table(
            &steps,
            &[
                ("NAME", |row| text(&row["name"])),
                ("STEP", |row| text(&row["step"])),
                ("AT", |row| if row["at"].is_null() { "now".to_owned() } else { text(&row["at"]) }),
                ("WHY", |row| text(&row["why"])),
            ],
        )?;
    }
    for (path, faults) in plan["faults"].as_object().cloned().unwrap_or_default() {
        complain(&format!(
            "{path}: {} faults; its last good text is in force",
            faults.as_array().map_or(0, Vec::len)
        ));
    }
    for (name, why) in plan["refused"].as_object().cloned().unwrap_or_default() {
        complain(&format!("{name}: {}", text(&why)));
    }
    Ok(())
}
