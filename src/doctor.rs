//! What this host can do for sandboxes: each thing is tried, not looked up, with the very code that the daemon
//! uses; and for what does not work, what that means and the command that mends it.
//!
//! ```text
//!   config --> trial.rs  one short sandbox of each isolation, in directories of its own --\
//!          --> host.rs   kernel, limits, paths, disks, secrets ----------------------------> findings
//!          --> ids.rs    who else has host uids of ours ------------------------------------/
//! ```

mod host;
mod ids;
mod trial;

use serde::Serialize;

use crate::config::Config;
use sodium_sys::trust::Distrust;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Fine,
    /// Something works less well than it could, or a limit is not kept.
    Degraded,
    /// Sandboxes that ask for it do not run.
    Broken,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub severity: Severity,
    /// What was seen.
    pub found: String,
    /// What follows from it; empty where all is well.
    pub means: String,
    /// What mends it, to be pasted into a shell.
    pub fix: String,
}

impl Finding {
    fn fine(name: &'static str, found: impl Into<String>) -> Self {
        let (means, fix) = (String::new(), String::new());
        Self { name, severity: Severity::Fine, found: found.into(), means, fix }
    }

    fn bad(
        name: &'static str,
        severity: Severity,
        found: impl Into<String>,
        (means, fix): (&str, &str),
    ) -> Self {
        let (means, fix) = (means.to_owned(), fix.to_owned());
        Self { name, severity, found: found.into(), means, fix }
    }
}

/// Tries everything. Takes a few seconds, leaves nothing behind, and needs no daemon; one may run.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = host::kernel();
    findings.extend(trial::isolations(config));
    findings.extend(host::paths(config));
    findings.extend(host::secrets(config));
    findings.extend(host::port(config));
    findings.push(host::daemon(config));
    findings.push(host::sockets(config));
    findings.push(ids::range(config));
    findings
}

/// All that there is to say of a configuration that is not believed.
pub fn distrusted(why: &Distrust) -> Finding {
    let found = format!("{} {}", why.path.display(), why.why);
    let means =
        "sodiumd does not start with it: somebody else might say what it runs, or use its token";
    Finding::bad("config", Severity::Broken, found, (means, why.remedy.as_str()))
}

/// The worst of all.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Fine)
}
