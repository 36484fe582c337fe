//! `sodiumd uninstall`: works on this machine, not through a daemon.

use std::io::{BufRead, IsTerminal};

use anyhow::bail;

use crate::cli::show;
use crate::config::Config;
use crate::daemon::uninstall;

/// What has to be typed before anything is lost.
const WORD: &str = "purge";

pub(super) fn run(config: &Config, purge: bool, yes: bool) -> anyhow::Result<()> {
    if purge && !yes {
        confirm(config)?;
    }
    let mut say = |what: &str| show::complain(what);
    let ended = uninstall::uninstall(config, &mut say)?;
    if purge {
        ended.purge(config, &mut say)?;
    } else {
        show::complain(&format!(
            "kept {} and {}; \"sodiumd uninstall --purge\" removes them",
            config.state_path.display(),
            config.sandboxes_path.display()
        ));
    }
    Ok(())
}

fn confirm(config: &Config) -> anyhow::Result<()> {
    let (state, files) = (config.state_path.display(), config.sandboxes_path.display());
    let lost = format!(
        "removes {state} and {files}: what is declared over the API, and the files of every sandbox"
    );
    if !std::io::stdin().is_terminal() {
        bail!("--purge {lost}; add --yes if that is meant");
    }
    show::complain(&format!("This {lost}. Type {WORD} to continue:"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != WORD {
        bail!("nothing was removed");
    }
    Ok(())
}
