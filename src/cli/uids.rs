//! `sodiumd uids`: works on the tables of this machine, not through a daemon.

use clap::Subcommand;

use crate::cli::show;
use crate::config::Config;
use crate::daemon;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Reserve the host uids of the configuration in /etc/subuid and /etc/subgid, so that nobody is given any
    Reserve,
}

pub(super) fn run(verb: &Verb, config: &Config) -> anyhow::Result<()> {
    match verb {
        Verb::Reserve => {
            for file in daemon::ids::reserve(config.ids)? {
                show::complain(&format!("{file}: added {}", config.ids.reservation()));
            }
        }
    }
    Ok(())
}
