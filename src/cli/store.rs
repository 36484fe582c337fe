//! `sodiumd store`: works on the files of this machine, not through a daemon.

use std::path::PathBuf;

use clap::Subcommand;

use crate::cli::show;
use crate::config::Config;
use crate::daemon;
use crate::store::{backup, database_path};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Copy everything that is committed into a new file; the daemon may run
    Backup { file: PathBuf },
    /// Put a copy in the place of the store, which is set aside; the daemon must not run
    Restore { file: PathBuf },
}

pub(super) fn run(verb: &Verb, config: &Config) -> anyhow::Result<()> {
    let database = database_path(&config.state_path);
    match verb {
        Verb::Backup { file } => backup::backup(&database, file)?,
        Verb::Restore { file } => {
            daemon::claim(&config.state_path, daemon::STATE_MODE, "state_path")?;
            let lock = daemon::take(&config.state_path, "state_path")?;
            let aside = backup::restore(file, &database)?;
            drop(lock);
            if let Some(aside) = aside {
                show::complain(&format!("the previous store is kept in {}", aside.display()));
            }
        }
    }
    Ok(())
}
