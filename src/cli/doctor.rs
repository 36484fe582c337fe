//! `sodiumd doctor`: tries everything on this host, and says what mends what does not work.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::cli::{Output, show};
use crate::config::{self, ConfigError};
use crate::doctor::{self, Finding, Severity};
use sodium_sys as sys;

/// Exit 0: all works. 1: something is degraded. 2: something is broken.
pub(super) fn doctor(path: &Path, output: Output) -> anyhow::Result<ExitCode> {
    // What a daemon does, a trial does.
    sys::spawn::forget_umask();
    let findings = match config::load(path) {
        Ok(config) => doctor::examine(&config),
        // Nothing that such a file names is tried.
        Err(ConfigError::Distrusted(why)) => vec![doctor::distrusted(&why)],
        Err(error) => {
            return Err(error).with_context(|| format!("configuration {}", path.display()));
        }
    };
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
