//! What a changed spec means for an instance that runs the old one.

use crate::model::{Isolation, Limits, Spec};

/// How far a change reaches, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    Same,
    /// Applied to what runs.
    InPlace,
    /// The workload is stopped and started; bundle and workspace stay.
    Restart,
    /// The bundle is made anew as well; the workspace stays.
    Recreate,
}

impl Effect {
    pub fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::InPlace => "in place",
            Self::Restart => "restart",
            Self::Recreate => "recreate",
        }
    }
}

/// The farthest effect of all fields that differ, and their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub effect: Effect,
    pub fields: Vec<&'static str>,
}

/// Compares two specs. A field added to [`Spec`] does not compile until it is classified here.
pub fn classify(old: &Spec, new: &Spec) -> Change {
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
            change.fields.push(field);
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
        // A process keeps the limit on open files that it was born with, and a guest of gVisor's that on
        // processes too.
        let born_with =
            name == "max_files" || name == "max_processes" && old.isolation == Isolation::Gvisor;
        let effect = if born_with { Effect::Restart } else { Effect::InPlace };
        note(name, limits.get(name) != old.limits.get(name), effect);
    }
    change
}
