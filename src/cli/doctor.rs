//! `sodiumd doctor`: tries everything on this host, and says what mends what does not work.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Output, show};
use crate::config::Config;
use crate::doctor::{self, Finding, Severity};

/// Exit 0: all works. 1: something is degraded. 2: something is broken.
pub(super) fn doctor(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let findings = doctor::examine(config);
    let worst = doctor::worst(&findings);
    if output.is_for_people() {
        for finding in &findings {
            describe(finding)?;
        }
    } else {
        show::value(&json!({"severity": worst, "findings": findings}), output)?;
    }
    Ok(ExitCode::from(match worst {
        Severity::Fine => 0,
        Severity::Degraded => 1,
        Severity::Broken => 2,
    }))
}

fn describe(finding: &Finding) -> anyhow::Result<()> {
    let Finding { name, severity, found, means, fix } = finding;
    let mark = match severity {
        Severity::Fine => '✓',
        Severity::Degraded => '!',
        Severity::Broken => '✗',
    };
    show::line(&format!("{mark} {name:<16} {found}"))?;
    if !means.is_empty() {
        show::line(&format!("  {:<16} so: {means}", ""))?;
    }
    if !fix.is_empty() {
        show::line(&format!("  {:<16} mend: {fix}", ""))?;
    }
    Ok(())
}
