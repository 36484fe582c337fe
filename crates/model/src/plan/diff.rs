//! What a changed spec means for an instance that runs the old one.

use crate::{InUse, Isolation, Limits, Spec};

/// How far a change reaches, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    Same,
    /// Applied to what runs.
    InPlace,
    /// It would be applied to what runs, and that holds more than it would then be allowed.
    Refused,
    /// The workload is stopped and started; bundle and workspace stay.
    Restart,
    /// The bundle is made anew as well; the workspace stays.
    Recreate,
}

impl Effect {
    pub fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::InPlace => "live",
            Self::Refused => "refused: below current use",
            Self::Restart => "restart",
            Self::Recreate => "recreate",
        }
    }
}

/// The farthest effect of all fields that differ, and each with its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub effect: Effect,
    pub fields: Vec<(&'static str, Effect)>,
}

impl Change {
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// What is refused, and why.
    pub fn refused(&self, in_use: &InUse) -> String {
        let refused = self.fields.iter().filter(|(_, effect)| *effect == Effect::Refused);
        let texts: Vec<String> = refused
            .map(|(name, effect)| {
                let held = if *name == "disk_mb" { in_use.disk_bytes } else { in_use.memory_bytes };
                format!("{name} {} ({} MiB)", effect.word(), held.div_ceil(1 << 20))
            })
            .collect();
        texts.join(", ")
    }
}

/// Compares two specs. A field added to [`Spec`] does not compile until it is classified here.
pub fn classify(old: &Spec, new: &Spec, in_use: &InUse) -> Change {
    let Spec {
        image,
        isolation,
        command,
        env,
        state,
        restart,
        stop,
        tty,
        network,
        limits,
        strict,
        ephemeral,
        files,
    } = new;
    let mut change = Change { effect: Effect::Same, fields: Vec::new() };
    let mut note = |field, differs: bool, effect: Effect| {
        if differs {
            change.fields.push((field, effect));
            change.effect = change.effect.max(effect);
        }
    };
    note("image", *image != old.image, Effect::Recreate);
    note("isolation", *isolation != old.isolation, Effect::Recreate);
    note("command", *command != old.command, Effect::Restart);
    note("env", *env != old.env, Effect::Restart);
    note("files", *files != old.files, Effect::Restart);
    note("tty", *tty != old.tty, Effect::Restart);
    note("ephemeral", *ephemeral != old.ephemeral, Effect::Recreate);
    note("network", *network != old.network, Effect::Restart);
    // Whether it runs at all is decided before anything is compared.
    note("state", *state != old.state, Effect::InPlace);
    note("restart", *restart != old.restart, Effect::InPlace);
    note("stop", *stop != old.stop, Effect::InPlace);
    note("strict", *strict != old.strict, Effect::InPlace);
    for name in Limits::ALL {
        let (was, is) = (old.limits.get(name), new.limits.get(name));
        note(name, was != is, limit(name, old, limits, in_use));
    }
    change
}

fn limit(name: &str, old: &Spec, new: &Limits, in_use: &InUse) -> Effect {
    let below = |mb: u64, held: u64| mb > 0 && mb << 20 < held;
    match name {
        // A process keeps the limit on open files that it was born with, and a guest of gVisor's that on
        // processes too; how fast its output is taken is settled when that is opened.
        "max_files" | "output" => Effect::Restart,
        "max_processes" if old.isolation == Isolation::Gvisor => Effect::Restart,
        "memory_mb" if below(new.memory_mb, in_use.memory_bytes) => Effect::Refused,
        "disk_mb" if below(new.disk_mb, in_use.disk_bytes) => Effect::Refused,
        "disk_mb" => disk(old.limits.disk_mb, new.disk_mb, in_use),
        _ => Effect::InPlace,
    }
}

/// Without a limit, files lie where none can be kept.
fn disk(old: u64, new: u64, in_use: &InUse) -> Effect {
    let moves = (old == 0) != (new == 0);
    let can = if new > old { in_use.disk_grows } else { in_use.disk_shrinks };
    if moves || !can { Effect::Restart } else { Effect::InPlace }
}
