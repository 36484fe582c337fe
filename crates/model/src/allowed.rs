//! What this host allows of any spec, as config.json says it. Asked when a spec is taken, and again at each start:
//! what was taken under other rules is not started under these.

use serde::{Deserialize, Serialize};

use crate::instance::Instance;
use crate::sandbox::Sandbox;
use crate::spec::{Isolation, Limits, Network, Spec};
use crate::time::Span;
use crate::violation::Violation;

/// What becomes of something that runs and is not allowed any more: the key `enforce` of config.json.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforce {
    /// It goes on until it ends for another reason, and is not started again.
    #[default]
    #[serde(rename = "at restart")]
    AtRestart,
    /// It is stopped.
    #[serde(rename = "now")]
    Now,
}

/// The most that one spec may ask for: the key `maximum_limits` of config.json. 0: no ceiling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ceilings {
    pub memory_mb: u64,
    pub cpu_percent: u64,
    pub disk_mb: u64,
    pub timeout_seconds: u64,
    pub max_processes: u64,
    pub max_files: u64,
    /// Bytes a second.
    pub io: u64,
    /// Bytes a second.
    pub output: u64,
    /// How long what is asked to end may take for that.
    pub stop_grace: Span,
}

/// What a machine has is its operator's to divide; but nothing takes longer to end than this.
impl Default for Ceilings {
    fn default() -> Self {
        Self { stop_grace: Span::seconds(3_600), ..Self::NONE }
    }
}

impl Ceilings {
    pub const NONE: Self = Self {
        memory_mb: 0,
        cpu_percent: 0,
        disk_mb: 0,
        timeout_seconds: 0,
        max_processes: 0,
        max_files: 0,
        io: 0,
        output: 0,
        stop_grace: Span(0),
    };

    fn limits(&self) -> Limits {
        let Self {
            memory_mb,
            cpu_percent,
            disk_mb,
            timeout_seconds,
            max_processes,
            max_files,
            io,
            output,
            stop_grace: _,
        } = *self;
        Limits {
            memory_mb,
            cpu_percent,
            disk_mb,
            timeout_seconds,
            max_processes,
            max_files,
            io,
            output,
        }
    }

    /// As long as may be waited, of what was asked for.
    pub fn grace(&self, asked: Span) -> Span {
        if self.stop_grace.0 == 0 { asked } else { asked.min(self.stop_grace) }
    }
}

/// The most that all sandboxes together may be promised: the key `totals` of config.json. 0: no such bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Totals {
    pub sandboxes: u64,
    pub memory_mb: u64,
    pub cpu_percent: u64,
    pub disk_mb: u64,
}

impl Totals {
    /// Why the promise `old` may not become `new` beside those to `others`; `None`: it may. Less is always fine.
    pub fn refusal(&self, others: &Promised, old: &Promised, new: &Promised) -> Option<String> {
        let Self { sandboxes, memory_mb, cpu_percent, disk_mb } = *self;
        let totals = [sandboxes, memory_mb, cpu_percent, disk_mb];
        let promises = others.parts().into_iter().zip(old.parts()).zip(new.parts());
        for (total, (((name, others), (_, old)), (_, new))) in totals.into_iter().zip(promises) {
            let all = others.saturating_add(new);
            if total > 0 && new > old && all > total {
                return Some(format!(
                    "{name}: {all} would be promised in all, and \"totals.{name}\" in config.json is {total}"
                ));
            }
        }
        None
    }
}

/// What is promised to some sandboxes, added up. What is unlimited is no number, and none while there is a total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promised {
    sandboxes: u64,
    memory_mb: u64,
    cpu_percent: u64,
    disk_mb: u64,
}

impl Promised {
    /// To one instance with these limits.
    pub fn by(limits: &Limits) -> Self {
        let Limits { memory_mb, cpu_percent, disk_mb, .. } = *limits;
        Self { sandboxes: 1, memory_mb, cpu_percent, disk_mb }
    }

    /// To one that is declared: its disk, whether it runs or not, and the rest if it is to run.
    pub fn declared(spec: &Spec, wanted: bool) -> Self {
        let all = Self::by(&spec.limits);
        if wanted { all } else { Self { memory_mb: 0, cpu_percent: 0, ..all } }
    }

    /// To what runs of a sandbox, or may.
    pub fn held(sandbox: &Sandbox) -> Self {
        sandbox.live().map(|live| Self::held_by(live)).unwrap_or_default()
    }

    /// To one that runs, or may; of what it has and what it is to have, the more.
    pub fn held_by(live: &Instance) -> Self {
        let reserved = live.reserved.as_ref().map(Self::by).unwrap_or_default();
        Self::by(&live.spec.limits).with(reserved, u64::max)
    }

    pub fn and(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    pub fn without(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    fn with(self, other: Self, both: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sandboxes: both(self.sandboxes, other.sandboxes),
            memory_mb: both(self.memory_mb, other.memory_mb),
            cpu_percent: both(self.cpu_percent, other.cpu_percent),
            disk_mb: both(self.disk_mb, other.disk_mb),
        }
    }

    fn parts(&self) -> [(&'static str, u64); 4] {
        let Self { sandboxes, memory_mb, cpu_percent, disk_mb } = *self;
        [
            ("sandboxes", sandboxes),
            ("memory_mb", memory_mb),
            ("cpu_percent", cpu_percent),
            ("disk_mb", disk_mb),
        ]
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The weakest isolation.
    pub floor: Isolation,
    /// Whether a sandbox may have the host's network.
    pub network_enabled: bool,
    pub ceilings: Ceilings,
    pub totals: Totals,
    pub enforce: Enforce,
}

/// All that a spec can say, but for the host's network. config.json says less by itself.
impl Default for Allowed {
    fn default() -> Self {
        Self {
            floor: Isolation::Process,
            network_enabled: false,
            ceilings: Ceilings::NONE,
            totals: Totals::default(),
            enforce: Enforce::AtRestart,
        }
    }
}

impl Allowed {
    /// Each rule that a spec breaks, with the key of config.json that sets it.
    pub fn violations(&self, spec: &Spec) -> Vec<Violation> {
        let mut faults = Vec::new();
        if !spec.isolation.satisfies(self.floor) {
            let (asked, floor) = (spec.isolation.as_str(), self.floor.as_str());
            let message = format!(
                "{asked} is weaker than {floor}, the floor set by \"isolation_floor\" in config.json"
            );
            faults.push(Violation::new("spec.isolation", message));
        }
        if spec.network == Network::Host && !self.network_enabled {
            let message = "host needs \"network\": {\"enabled\": true} in config.json";
            faults.push(Violation::new("spec.network", message));
        }
        for name in Limits::ALL {
            let asked = spec.limits.get(name).unwrap_or(0);
            let Some((most, key)) = self.ceiling(name) else { continue };
            if asked == 0 || asked > most {
                let unlimited = if asked == 0 { " (unlimited)" } else { "" };
                let message = format!(
                    "{asked}{unlimited} is above {most}, the ceiling set by \"{key}.{name}\" in config.json"
                );
                faults.push(Violation::new(format!("spec.limits.{name}"), message));
            }
        }
        let (grace, most) = (spec.stop.grace, self.ceilings.grace(spec.stop.grace));
        if grace > most {
            let message = format!(
                "{grace} is above {most}, the ceiling set by \"maximum_limits.stop_grace\" in config.json"
            );
            faults.push(Violation::new("spec.stop.grace", message));
        }
        faults
    }

    /// The most that one spec may ask for of a limit, and the key that says so: nobody is promised more than all.
    fn ceiling(&self, name: &str) -> Option<(u64, &'static str)> {
        let all = match name {
            "memory_mb" => self.totals.memory_mb,
            "cpu_percent" => self.totals.cpu_percent,
            "disk_mb" => self.totals.disk_mb,
            _ => 0,
        };
        let each = self.ceilings.limits().get(name).unwrap_or(0);
        let set = [(each, "maximum_limits"), (all, "totals")].into_iter();
        set.filter(|(most, _)| *most > 0).min_by_key(|(most, _)| *most)
    }

    /// A limit that nobody asked for: as it is by default, and never above its ceiling.
    pub fn default_limit(&self, name: &str, default: u64) -> u64 {
        match self.ceiling(name) {
            Some((most, _)) if default == 0 || default > most => most,
            Some(_) | None => default,
        }
    }

    /// Why a spec is not allowed, in one sentence; `None`: it is.
    pub fn refusal(&self, spec: &Spec) -> Option<String> {
        let faults = self.violations(spec);
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| format!("not allowed here: {}", texts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(sandboxes: u64, memory_mb: u64) -> Promised {
        Promised { sandboxes, memory_mb, ..Promised::default() }
    }

    #[test]
    fn a_total_is_met_by_all_together_and_less_is_always_fine() {
        let totals = Totals { sandboxes: 3, memory_mb: 1000, ..Totals::default() };
        let none = Promised::default();
        assert_eq!(totals.refusal(&promised(2, 600), &none, &promised(1, 400)), None);
        let why = totals.refusal(&promised(2, 600), &none, &promised(1, 401)).unwrap();
        assert!(why.starts_with("memory_mb: 1001 would be promised in all"), "{why}");
        let why = totals.refusal(&promised(3, 0), &none, &promised(1, 1)).unwrap();
        assert!(why.contains("\"totals.sandboxes\" in config.json is 3"), "{why}");
        // Above it already, since it was lowered: only growth is refused.
        assert_eq!(totals.refusal(&promised(9, 2000), &promised(1, 500), &promised(1, 400)), None);
        assert!(totals.refusal(&promised(9, 2000), &promised(1, 500), &promised(1, 501)).is_some());
        assert_eq!(Totals::default().refusal(&promised(9, 2000), &none, &promised(1, 1)), None);
    }

    #[test]
    fn a_ceiling_is_the_lower_of_what_one_and_what_all_may_have() {
        let ceilings = Ceilings { memory_mb: 512, ..Ceilings::NONE };
        let totals = Totals { memory_mb: 256, ..Totals::default() };
        let allowed = Allowed { ceilings, totals, ..Allowed::default() };
        assert_eq!(allowed.ceiling("memory_mb"), Some((256, "totals")));
        assert_eq!(allowed.ceiling("max_files"), None);
        let defaults = [0, 64, 512].map(|default| allowed.default_limit("memory_mb", default));
        assert_eq!(defaults, [256, 64, 256]);
        assert_eq!(allowed.default_limit("max_files", 0), 0);
        let grace = |most, asked| {
            Ceilings { stop_grace: Span(most), ..Ceilings::NONE }.grace(Span(asked)).0
        };
        assert_eq!((grace(0, 9), grace(5, 9), grace(5, 4)), (9, 5, 4));
    }
}
