//! `sodiumd workspace`: the retained workspaces of this machine, on its files, not through a daemon.

use std::path::Path;

use clap::Subcommand;

use crate::cli::{Output, show};
use crate::config::Config;
use sodium_api::List;
use sodium_model::{Owner, Time};
use sodium_runtime::storage::workspace::retained;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List what removed sandboxes left, newest first
    Ls,
    /// Give a retained workspace to an owner, whose next new sandbox of that name begins with it
    Take {
        /// As `ls` has it
        id: String,
        /// `api` or `file:PATH`
        #[arg(long = "for", value_name = "OWNER")]
        owner: String,
    },
}

pub(super) fn run(verb: &Verb, config: &Config, output: Output) -> anyhow::Result<()> {
    let sandboxes = config.sandboxes_path.as_path();
    match verb {
        Verb::Ls => list(sandboxes, output),
        Verb::Take { id, owner } => {
            let owner = Owner::try_from(owner.clone()).map_err(anyhow::Error::msg)?;
            Ok(retained::give(sandboxes, id, &owner)?)
        }
    }
}

fn list(sandboxes: &Path, output: Output) -> anyhow::Result<()> {
    let all = retained::list(sandboxes)?.into_iter().map(|one| {
        let owner = one.owner.as_ref().map(ToString::to_string);
        let (name, since) = (one.name().to_owned(), Time(one.since_ms));
        show::Workspace { id: one.id, name, owner, since }
    });
    show::workspaces(&List { items: all.collect() }, output)
}
