//! Whether a limit or a wall held, from what the probe said, how it ended and what the ledger has.

use serde::Serialize;
use serde_json::Value;

use crate::cli::prove::order::{LINKED, Order, What};
use crate::cli::prove::{Evidence, Host};
use sodium_model::Time;
use sodium_sys::attack;

/// A scheduler's periods and the reading of clocks are not exact.
const CPU_SLACK_PERCENT: u64 = 15;
/// What gVisor computes until the guest runs counts, and that time does not.
const CPU_SLACK_PERCENT_GVISOR: u64 = 50;
/// Of processes and files, so many may be the runtime's.
const FEW: u64 = 4;
/// From the time limit to the end: the grace, and a busy machine.
const TIME_SLACK_MS: u64 = 5_000;
/// What may come through in gVisor, whose kernel is the sandbox's own: beside namespaces, what it has of its own of these.
const OF_GVISOR: &[&str] =
    &["setns", "netlink", "key ring", "userfaultfd", "io_uring", "perf events", "terminal input"];
/// Output that a second of it may be over.
const OUTPUT_SLACK_PERCENT: u64 = 40;

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// It held.
    Held,
    /// It did not.
    Passed,
    /// There is no such limit, or no such wall by this isolation.
    #[serde(rename = "not applicable")]
    NotApplicable,
}

/// One try, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub limit: String,
    pub asked: Option<u64>,
    pub verdict: Verdict,
    /// What keeps it.
    pub mechanism: String,
    /// What the kernel answered.
    pub answer: String,
}

impl Row {
    pub(super) fn line(&self) -> String {
        let mark = match self.verdict {
            Verdict::Held => '✓',
            Verdict::Passed => '✗',
            Verdict::NotApplicable => '–',
        };
        let asked = self.asked.map_or_else(String::new, |asked| asked.to_string());
        let mechanism = match self.mechanism.as_str() {
            "" => String::new(),
            mechanism => format!(" ({mechanism})"),
        };
        format!("{mark} {:<23} {asked:>10}  {}{mechanism}", self.limit, self.answer)
    }
}

/// Judges one probe, by one row or several.
pub(super) fn judge(order: &Order, evidence: &Evidence, host: &Host) -> Vec<Row> {
    let (verdict, answer) = match order.what {
        What::Memory => memory(order, evidence),
        What::Cpu => cpu(order, evidence),
        What::Disk => disk(order, evidence),
        What::Inodes => inodes(order, evidence),
        What::Processes => counted(order, evidence, "processes"),
        What::Files => counted(order, evidence, "files"),
        What::Time => time(order, evidence),
        What::Output => output(order, evidence),
        What::Io => io(order, evidence),
        What::Host => walls(order, evidence),
        What::Network => network(order, evidence),
        What::Attacks => return attacks(order, evidence),
        // It is followed by the next one.
        What::Link => return Vec::new(),
        What::LinkFollowed => followed(evidence, host),
    };
    let limits = evidence.limits["items"].as_array().cloned().unwrap_or_default();
    let name =
        if order.what == What::Inodes { "disk_mb".to_owned() } else { order.what.to_string() };
    let entry = limits.into_iter().find(|limit| limit["limit"] == name).unwrap_or_default();
    vec![Row {
        limit: order.what.to_string(),
        asked: (order.limit > 0 && order.what != What::Inodes).then_some(order.limit),
        verdict,
        mechanism: entry["mechanism"].as_str().unwrap_or_default().to_owned(),
        answer,
    }]
}

/// The walls of the ledger: none of them is a try, but one that is promised and does not stand was passed already.
pub(super) fn standing(ledger: &Value) -> Vec<Row> {
    let walls = ledger["walls"].as_array().cloned().unwrap_or_default();
    let row = |wall: &Value| {
        let of = |key: &str| wall[key].as_str().unwrap_or_default().to_owned();
        let effective = wall["effective"].as_str().unwrap_or("not for the kernel to tell");
        let reason = of("reason");
        let answer = match reason.as_str() {
            "" => effective.to_owned(),
            reason => format!("{effective}: {reason}"),
        };
        let verdict = match wall["verdict"].as_str() {
            Some("enforced") => Verdict::Held,
            Some("none") => Verdict::NotApplicable,
            Some(_) | None => Verdict::Passed,
        };
        Row {
            limit: format!("wall {}", of("wall")),
            asked: None,
            verdict,
            mechanism: of("mechanism"),
            answer,
        }
    };
    walls.iter().map(row).collect()
}

type Judged = (Verdict, String);

fn held(holds: bool) -> Verdict {
    if holds { Verdict::Held } else { Verdict::Passed }
}

/// The last line that has this.
fn last<'e>(evidence: &'e Evidence, key: &str) -> Option<&'e Value> {
    evidence.said.iter().rev().find(|line| !line[key].is_null())
}

fn number(evidence: &Evidence, key: &str) -> u64 {
    last(evidence, key).and_then(|line| line[key].as_u64()).unwrap_or(0)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("nothing refused it").to_owned()
}

/// Without a limit there is nothing to be kept.
fn unlimited(order: &Order) -> Option<Judged> {
    (order.limit == 0).then(|| (Verdict::NotApplicable, "no limit was asked for".to_owned()))
}

fn kind(evidence: &Evidence) -> String {
    let exit = &evidence.exit;
    let how = exit["signal"].as_str().map(str::to_owned);
    let code = exit["code"].as_i64().map(|code| format!("code {code}"));
    let how = how.or(code).map_or_else(String::new, |how| format!(" ({how})"));
    format!("{}{how}", exit["kind"].as_str().unwrap_or("no end"))
}

fn ran_ms(evidence: &Evidence) -> u64 {
    let at = |key: &str| serde_json::from_value::<Time>(evidence.exit[key].clone()).ok();
    at("started_at").zip(at("ended_at")).map_or(u64::MAX, |(from, to)| from.until(to).0)
}

fn memory(order: &Order, evidence: &Evidence) -> Judged {
    unlimited(order).unwrap_or_else(|| {
        let reached = number(evidence, "held_mb");
        let killed = evidence.exit["oom_kills"].as_u64().unwrap_or(0);
        let refused = last(evidence, "answer").is_some();
        let passed = last(evidence, "passed").is_some();
        // Ended before it had tried anything, it has proved nothing.
        let tried = reached >= order.limit / 4;
        let holds = tried && !passed && (killed > 0 || refused) && reached <= order.limit;
        let answer = format!("{}, {killed} OOM kills, at {reached} MiB", kind(evidence));
        (held(holds), answer)
    })
}

fn cpu(order: &Order, evidence: &Evidence) -> Judged {
    unlimited(order).unwrap_or_else(|| {
        // As the host counts it: a guest of gVisor's believes that it has what it was promised.
        let used = evidence.exit["cpu_usec"].as_u64().unwrap_or(0);
        let percent = used / 10 / ran_ms(evidence).max(1);
        let cpus = number(evidence, "cpus");
        let gvisor = order.isolation == "gvisor";
        let slack = if gvisor { CPU_SLACK_PERCENT_GVISOR } else { CPU_SLACK_PERCENT };
        let most = order.limit * (100 + slack) / 100 + 2;
        let throttled = evidence.exit["throttled_usec"].as_u64().unwrap_or(0) / 1000;
        let there = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let right = cpus == order.limit.div_ceil(100).min(there.max(1));
        let answer = format!(
            "{percent} % with all cpus busy, {cpus} to be seen, throttled for {throttled} ms"
        );
        (held((1..=most).contains(&percent) && right), answer)
    })
}

fn disk(order: &Order, evidence: &Evidence) -> Judged {
    unlimited(order).unwrap_or_else(|| {
        let (home, tmp) = (number(evidence, "home_mb"), number(evidence, "tmp_mb"));
        let line = last(evidence, "home_mb").cloned().unwrap_or_default();
        let lives = line["then"].is_null() && evidence.exit["kind"] == "exited";
        let refused = !line["answer"].is_null() && !line["tmp_answer"].is_null();
        let answer = format!(
            "{} after {home} MiB; /tmp: {} after {tmp} MiB more; then it went on",
            word(&line["answer"]),
            word(&line["tmp_answer"])
        );
        (held(refused && home + tmp <= order.limit && lives), answer)
    })
}

fn inodes(order: &Order, evidence: &Evidence) -> Judged {
    unlimited(order).unwrap_or_else(|| {
        let line = last(evidence, "inodes").cloned().unwrap_or_default();
        let answer =
            format!("{} after {} files", word(&line["answer"]), number(evidence, "inodes"));
        // btrfs counts bytes alone.
        let verdict = if line["answer"].is_null() { Verdict::NotApplicable } else { Verdict::Held };
        (verdict, answer)
    })
}

fn counted(order: &Order, evidence: &Evidence, what: &str) -> Judged {
    unlimited(order).unwrap_or_else(|| {
        let line = last(evidence, what).cloned().unwrap_or_default();
        let count = number(evidence, what);
        let least = order.limit.saturating_sub(FEW);
        let holds = !line["answer"].is_null() && (least..=order.limit).contains(&count);
        (held(holds), format!("{} after {count} {what}", word(&line["answer"])))
    })
}

fn time(order: &Order, evidence: &Evidence) -> Judged {
    let limit = order.time_seconds();
    let ran = ran_ms(evidence);
    let tried = last(evidence, "tried").is_some() && last(evidence, "passed").is_none();
    let holds = evidence.exit["kind"] == "timeout" && ran < limit * 1000 + TIME_SLACK_MS && tried;
    (
        held(holds),
        format!(
            "{} after {ran} ms of a limit of {limit} s, though it ignored SIGTERM",
            kind(evidence)
        ),
    )
}

fn output(order: &Order, evidence: &Evidence) -> Judged {
    let (written, ms) = (number(evidence, "written"), number(evidence, "ms").max(1));
    let at = |key: &str| evidence.exit[key].as_u64().unwrap_or(0);
    let kept = at("console_to").saturating_sub(at("console_from"));
    if order.limit == 0 {
        let answer = format!("{} MiB in {ms} ms; the console is bounded", written >> 20);
        return (Verdict::NotApplicable, answer);
    }
    let rate = written * 1000 / ms;
    // What is in the pipe counts for written.
    let most = order.limit * (100 + OUTPUT_SLACK_PERCENT) / 100 + (64 << 10) * 1000 / ms;
    (held(rate <= most && kept > 0), format!("{rate} bytes a second came through"))
}

fn io(order: &Order, evidence: &Evidence) -> Judged {
    let (stored, ms) = (number(evidence, "stored"), number(evidence, "ms").max(1));
    let rate = stored * 1000 / ms;
    let answer = format!("{rate} bytes a second were stored");
    if order.limit == 0 {
        return (Verdict::NotApplicable, answer);
    }
    // A second's worth may go before the kernel has anything to hold back.
    let most = order.limit + order.limit * 1000 / ms;
    (held((1..=most).contains(&rate)), answer)
}

fn walls(order: &Order, evidence: &Evidence) -> Judged {
    let line = last(evidence, "read").cloned().unwrap_or_default();
    let list = |key: &str| {
        let items = line[key].as_array().cloned().unwrap_or_default();
        items.iter().map(word).collect::<Vec<String>>()
    };
    let (read, wrote) = (list("read"), list("wrote"));
    let (seen, signalled) = (number(evidence, "seen"), number(evidence, "signalled"));
    // A plain process sees that there are others; no more than that.
    let hidden = seen == 0 || order.isolation == "process";
    let holds = line.is_object() && read.is_empty() && wrote.is_empty() && signalled == 0 && hidden;
    let named = |paths: &[String]| match paths {
        [] => "none".to_owned(),
        paths => paths.join(" "),
    };
    let answer = format!(
        "files of the host read: {}, written: {}; processes seen: {seen}, to be signalled: {signalled}",
        named(&read),
        named(&wrote)
    );
    (held(holds), answer)
}

fn network(order: &Order, evidence: &Evidence) -> Judged {
    let line = last(evidence, "connections").cloned().unwrap_or_default();
    let connections = line["connections"].as_array().cloned().unwrap_or_default();
    let texts: Vec<String> = connections
        .iter()
        .map(|one| format!("{}: {}", word(&one["to"]), word(&one["answer"])))
        .collect();
    if shares_network(order) {
        return (Verdict::NotApplicable, "it has the host's network".to_owned());
    }
    let none = connections.iter().all(|one| !one["answer"].is_null());
    (held(none && !connections.is_empty()), texts.join(", "))
}

fn attacks(order: &Order, evidence: &Evidence) -> Vec<Row> {
    let wall = |name: &str, (verdict, answer): Judged| Row {
        limit: name.to_owned(),
        asked: None,
        verdict,
        mechanism: String::new(),
        answer,
    };
    let lines = evidence.said.iter();
    let tried = lines.filter_map(|line| Some((line["attack"].as_str()?, line)));
    let mut rows = vec![wall("privileges", privileges(order, evidence))];
    rows.extend(tried.map(|(name, line)| wall(name, attacked(order, name, line))));
    if order.isolation == "gvisor" {
        let answer = "gVisor's own kernel is in its place".to_owned();
        rows.push(wall(attack::FILTER, (Verdict::NotApplicable, answer)));
    }
    if last(evidence, "attacks").is_none() {
        let answer = format!("the probe did not come to its end: {}", kind(evidence));
        rows.push(wall("attacks", (Verdict::Passed, answer)));
    }
    rows
}

/// By what the kernel has written down of the probe.
fn privileges(order: &Order, evidence: &Evidence) -> Judged {
    let line = last(evidence, "users").cloned().unwrap_or_default();
    let field = |name: &str| line[name].as_str().unwrap_or("unknown").to_owned();
    let capabilities = field("capabilities");
    let none = !capabilities.is_empty() && capabilities.bytes().all(|digit| digit == b'0');
    let (confined, filter) = (field("no_new_privileges"), field("filter"));
    // In gVisor they are its own kernel's to give, and of no use outside.
    let kept = order.isolation == "gvisor" || confined == "1" && filter == "2";
    let answer = format!(
        "capabilities {capabilities}, no_new_privs {confined}, seccomp {filter}, users {}",
        field("users")
    );
    (held(none && kept), answer)
}

fn attacked(order: &Order, name: &str, line: &Value) -> Judged {
    if let Some(answer) = line["answer"].as_str() {
        return (Verdict::Held, answer.to_owned());
    }
    if let Some(why) = line["untried"].as_str() {
        return (Verdict::NotApplicable, format!("it could not be tried: {why}"));
    }
    let own = name.starts_with("unshare ") || OF_GVISOR.contains(&name);
    if order.isolation == "gvisor" && own {
        return (Verdict::Held, "gVisor's own kernel did it".to_owned());
    }
    if name == attack::ABSTRACT_SOCKET && shares_network(order) {
        return (Verdict::NotApplicable, "it has the host's network".to_owned());
    }
    let through = line["through"].as_array().cloned().unwrap_or_default();
    let through: Vec<String> = through.iter().map(word).collect();
    match through.as_slice() {
        [] => (Verdict::Passed, "nothing refused it".to_owned()),
        calls => (Verdict::Passed, format!("not refused: {}", calls.join(", "))),
    }
}

fn shares_network(order: &Order) -> bool {
    // A plain process has one of its own where the daemon is root.
    let own = order.isolation != "process" || sodium_sys::is_root();
    !own || order.spec["network"] == "host"
}

fn followed(evidence: &Evidence, host: &Host) -> Judged {
    let name = LINKED.rsplit('/').next().unwrap_or_default();
    let escaped = host.outside.join(name).exists();
    let said = evidence.exit["message"].as_str().unwrap_or("it was not followed");
    let answer = if escaped { "a file was written through a link" } else { said };
    (held(!escaped), answer.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(isolation: &str, lines: Value) -> Vec<(String, Verdict)> {
        let order = Order {
            what: What::Attacks,
            limit: 0,
            isolation: isolation.to_owned(),
            spec: json!({"network": "none"}),
            may_not_start: false,
        };
        let said = lines.as_array().unwrap().clone();
        let evidence = Evidence { said, exit: Value::Null, limits: Value::Null };
        attacks(&order, &evidence).into_iter().map(|row| (row.limit, row.verdict)).collect()
    }

    #[track_caller]
    fn check(isolation: &str, line: Value, verdict: Verdict) {
        let found = rows(isolation, json!([line, {"attacks": "over"}]));
        assert_eq!(found[1].1, verdict, "{isolation}: {line}");
    }

    #[test]
    fn what_came_through_is_passed_but_for_what_stays_in_gvisor() {
        let refused = json!({"attack": "mount", "answer": "Operation not permitted"});
        let came = |name: &str| json!({"attack": name, "answer": null});
        for isolation in ["bubblewrap", "process", "gvisor"] {
            check(isolation, refused.clone(), Verdict::Held);
            check(isolation, came("mount"), Verdict::Passed);
        }
        for name in ["unshare user", "key ring"] {
            check("bubblewrap", came(name), Verdict::Passed);
            check("gvisor", came(name), Verdict::Held);
        }
        check("bubblewrap", came("abstract socket"), Verdict::Passed);
        let of_process =
            if sodium_sys::is_root() { Verdict::Passed } else { Verdict::NotApplicable };
        check("process", came("abstract socket"), of_process);
        check("process", json!({"attack": "mount", "untried": "fork"}), Verdict::NotApplicable);
        let some = json!({"attack": "filter", "answer": null, "through": ["mount"]});
        check("process", some, Verdict::Passed);
    }

    #[test]
    fn privileges_are_what_the_kernel_has_written_down() {
        let standing = |capabilities: &str, filter: &str| {
            json!([{"capabilities": capabilities, "no_new_privileges": "1", "filter": filter,
                "users": "0 0 1"}, {"attacks": "over"}])
        };
        let verdict = |isolation, lines| rows(isolation, lines)[0].1;
        assert_eq!(verdict("process", standing("0000000000000000", "2")), Verdict::Held);
        assert_eq!(verdict("process", standing("0000000000000000", "0")), Verdict::Passed);
        assert_eq!(verdict("gvisor", standing("0000000000000000", "0")), Verdict::Held);
        assert_eq!(verdict("gvisor", standing("00000000a80425fb", "0")), Verdict::Passed);
        assert_eq!(verdict("bubblewrap", json!([])), Verdict::Passed);
    }

    #[test]
    fn a_probe_that_ended_early_has_proved_nothing() {
        let found = rows("bubblewrap", json!([{"attack": "mount", "answer": "refused"}]));
        assert_eq!(found.last().unwrap(), &("attacks".to_owned(), Verdict::Passed));
    }
}
