//! What this host allows of any spec, as config.json says it. Asked when a spec is taken, and again at each start:
//! what was taken under other rules is not started under these.

use serde::{Deserialize, Serialize};

use crate::model::spec::{Isolation, Network, Spec};
use crate::model::violation::Violation;

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

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The weakest isolation.
    pub floor: Isolation,
    /// Whether a sandbox may have the host's network.
    pub network_enabled: bool,
    pub enforce: Enforce,
}

/// All that a spec can say, but for the host's network. config.json says less by itself.
impl Default for Allowed {
    fn default() -> Self {
        Self { floor: Isolation::Process, network_enabled: false, enforce: Enforce::AtRestart }
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
        faults
    }

    /// Why a spec is not allowed, in one sentence; `None`: it is.
    pub fn refusal(&self, spec: &Spec) -> Option<String> {
        let faults = self.violations(spec);
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| format!("not allowed here: {}", texts.join("; ")))
    }
}
