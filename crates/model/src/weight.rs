//! What specs take of memory, so that all of them together can be bounded: by what they say, and by what it costs to
//! hold each thing that they say.

use std::collections::BTreeMap;

use crate::sandbox::{Edit, Owner, Sandbox};
use crate::spec::Spec;

/// Of a string, beside its bytes: where it is, and what an allocation wastes.
const STRING_BYTES: usize = 40;
/// Of an entry of a map, beside its strings.
const ENTRY_BYTES: usize = 16;
/// Of a sandbox that says nothing: its rows and names, and the places where it is listed.
const SANDBOX_BYTES: usize = 2048;

/// Of what is declared.
pub fn of_declared(spec: &Spec, labels: &BTreeMap<String, String>) -> u64 {
    (SANDBOX_BYTES + of_spec(spec) + of_map(labels)) as u64
}

/// Of all that a sandbox holds: the declared spec, that of what runs, those of what was kept of it, and what is
/// remembered of its edits.
pub fn of_sandbox(sandbox: &Sandbox) -> u64 {
    let history = &sandbox.history;
    let kept = [&history.asleep, &history.saved].into_iter().flatten().map(|kept| &kept.spec);
    let run = sandbox.instance.iter().map(|instance| &instance.spec);
    let others: usize = run.chain(kept).map(of_spec).sum();
    let edits: usize = history.edits.iter().map(of_edit).sum();
    of_declared(&sandbox.spec, &sandbox.labels) + (others + edits) as u64
}

fn of_spec(spec: &Spec) -> usize {
    let words: usize = spec.command.iter().map(|word| of_text(word)).sum();
    let own = std::mem::size_of::<Spec>() + spec.image.as_deref().map_or(0, of_text);
    own + words + of_map(&spec.env) + of_map(&spec.files)
}

fn of_edit(edit: &Edit) -> usize {
    let by = match &edit.by {
        Owner::Api => 0,
        Owner::File(path) => path.len(),
    };
    let fields: usize = edit.fields.iter().map(|field| of_text(field)).sum();
    std::mem::size_of::<Edit>() + by + fields
}

fn of_map(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(key, value)| ENTRY_BYTES + of_text(key) + of_text(value)).sum()
}

fn of_text(text: &str) -> usize {
    STRING_BYTES + text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_and_in_how_many_pieces_both_weigh() {
        let weigh = |files: BTreeMap<String, String>| {
            let spec = serde_json::json!({"isolation": "process", "command": [], "state": "running",
                "restart": {"policy": "never", "backoff": {"initial": "1s", "max": "1s"}, "max_failures": 0},
                "stop": {"signal": "SIGTERM", "grace": "1s"}, "tty": false, "network": "none",
                "limits": crate::Limits::DEFAULT, "strict": false, "files": files});
            of_declared(&serde_json::from_value(spec).unwrap(), &BTreeMap::new())
        };
        let empty = weigh(BTreeMap::new());
        let large = weigh([("a".to_owned(), "x".repeat(1 << 20))].into()) - empty;
        assert!((1 << 20..(1 << 20) + 200).contains(&large), "{large}");
        let small = weigh((0..10_000).map(|n| (n.to_string(), String::new())).collect());
        assert!(small - empty > 900_000, "{small}");
    }
}
