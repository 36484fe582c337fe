//! The command line. Tables for people, `-o json|yaml` for programs; data on standard output,
//! everything else on standard error. It finds the local daemon by itself.

mod about;
mod check;
mod client;
mod doctor;
mod exec;
mod init;
mod prove;
mod show;
mod store;
mod uids;
mod uninstall;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::config;
use crate::desired::scan::is_spec;
use client::{Client, Said};
use sodium_api::{Action, Applied, Apply, Plan, Sandbox, SandboxList, Transfer};
use sodium_model::{Event, Owner};

/// Runs other people's code: declared, confined, crash-proof.
#[derive(Debug, Parser)]
#[command(name = "sodiumd", version, arg_required_else_help = true)]
struct Cli {
    /// The daemon's configuration, which nobody but root and you may write to. Default: ./config.json, then
    /// /etc/sodium/config.json
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The local daemon's socket. Default: found by the configuration
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print data
    #[arg(long, short = 'o', global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    /// A table with more columns
    Wide,
    Json,
    Yaml,
}

impl Output {
    fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Here(Here),
    #[command(flatten)]
    Asked(Asked),
}

/// What works on this machine, and not through a daemon.
#[derive(Debug, Subcommand)]
enum Here {
    /// Run the daemon
    Run,
    /// Write a first config.json, images, examples, and a schema for editors; what is there already stays as it is
    Init {
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Check spec files, or directories of them, without a daemon; exit 2 when one has a fault
    Check {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the JSON Schema of a sandbox document, for editors of spec files
    Schema,
    /// Try on this host everything that sandboxes need; exit 1 if something is degraded, 2 if broken
    Doctor,
    /// Copy what the daemon knows of its sandboxes, or put a copy back
    #[command(subcommand)]
    Store(store::Verb),
    /// List the workspaces that removed sandboxes left, or take one over
    #[command(subcommand)]
    Workspace(workspace::Verb),
    /// Say to the host which uids are for sandboxes
    #[command(subcommand)]
    Uids(uids::Verb),
    /// End what runs and take away every mount, cgroup and device of it; the daemon must not run
    Uninstall {
        /// Remove what is declared over the API and the files of all sandboxes, too
        #[arg(long)]
        purge: bool,
        /// Do not ask
        #[arg(long, requires = "purge")]
        yes: bool,
    },
    /// Print what a shell needs to complete commands, such as `source <(sodiumd completions bash)`
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man { dir: PathBuf },
}

/// What the daemon is asked for.
#[derive(Debug, Clone, Subcommand)]
enum Asked {
    /// Verify limits and walls by trying to exceed each in a disposable copy; exit 1 if any does not hold
    Prove { subject: String },
    /// Say what would be done and why; exit 2 when something would change
    Plan {
        /// What these files, or directories of them, would change if they were applied; - is standard input
        #[arg(long = "file", short = 'f', value_name = "FILE", num_args = 1..)]
        files: Vec<PathBuf>,
    },
    /// Say which fields of sandboxes would change from what to what; exit 2 when any would
    Diff {
        /// Files, or directories of them; - is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Create or change sandboxes from files
    Apply {
        /// Files, or directories of them; - is standard input
        #[arg(long = "file", short = 'f', required = true, value_name = "FILE", num_args = 1..)]
        files: Vec<PathBuf>,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
        /// Delete what was declared over the API and is in none of the files; not what is a file's, as all is with
        /// "store": "files"
        #[arg(long)]
        prune: bool,
    },
    /// List sandboxes, or show one; `get files` and `get images` list those
    Get { name: Option<String> },
    /// Say why a sandbox is as it is: who set what, what was seen, what was decided, what is next
    Explain(Named),
    /// Print a sandbox's console
    Logs {
        name: String,
        /// Follow output as it is written
        #[arg(long, short = 'f')]
        follow: bool,
        /// Only so many bytes from the end
        #[arg(long, value_name = "BYTES")]
        tail: Option<u64>,
    },
    /// Run a program inside a sandbox that runs, and end with its code
    Exec(exec::Exec),
    /// Start a sandbox and wait until it runs
    Start(Named),
    /// Stop a sandbox; it stays stopped until it is started
    Stop(Named),
    /// Kill a sandbox at once; it stays stopped until it is started
    Kill(Named),
    /// Stop a sandbox and start it again
    Restart(Named),
    /// Pause a sandbox: freeze its processes until it is resumed
    Pause(Named),
    /// Let a paused sandbox go on
    Resume(Named),
    /// Keep a sandbox's memory and files, and have it go on
    Checkpoint(Named),
    /// Have a sandbox go back to its checkpoint
    Restore {
        name: String,
        /// Make a new sandbox of it instead
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
    },
    /// Delete a sandbox and its files
    Delete {
        name: String,
        /// Keep the workspace for the undo period
        #[arg(long)]
        keep_workspace: bool,
    },
    /// Give a sandbox another owner: `api` or `file:PATH`
    Transfer { name: String, owner: String },
    /// Print what happened
    Events {
        /// Only to this sandbox
        name: Option<String>,
        /// Go on as it happens
        #[arg(long, short = 'f')]
        follow: bool,
    },
    /// Stop every sandbox and start none, until `undrain`; waits until all have ended
    Drain {
        /// How long to wait
        #[arg(long, default_value = "5m", value_name = "TIME")]
        wait: String,
    },
    /// Let everything run again that is declared to
    Undrain,
    /// Confirm deletions held back by the mass-deletion guard
    Confirm,
}

#[derive(Debug, Clone, Args)]
struct Named {
    name: String,
}

/// Exit 0: done. 1: failed. 2: bad usage, bad input, or a plan that would change something.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, faults to standard error, as clap knows best.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        // Whoever read us, such as `head`, has enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            show::complain(&format!("sodiumd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let asked = match &cli.command {
        Command::Here(here) => return work_here(&cli, here),
        Command::Asked(asked) => asked.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let done = runtime.block_on(ask(&cli, asked));
    // Not waiting for a thread that reads standard input.
    runtime.shutdown_background();
    done
}

fn work_here(cli: &Cli, command: &Here) -> anyhow::Result<ExitCode> {
    match command {
        Here::Run => {
            crate::telemetry::start();
            crate::daemon::run(load_config(cli)?, config_path(cli))?;
        }
        Here::Init { dir } => init::init(dir)?,
        Here::Check { files } => return check::check(files, &load_config(cli)?),
        Here::Schema => show::value(&sodium_api::editor(), Output::Json)?,
        Here::Doctor => return doctor::doctor(&config_path(cli), cli.output),
        Here::Store(verb) => store::run(verb, &load_config(cli)?)?,
        Here::Workspace(verb) => workspace::run(verb, &load_config(cli)?, cli.output)?,
        Here::Uids(verb) => uids::run(verb, &load_config(cli)?)?,
        Here::Uninstall { purge, yes } => uninstall::run(&load_config(cli)?, *purge, *yes)?,
        Here::Completions { shell } => about::completions(*shell)?,
        Here::Man { dir } => about::manual(dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whatever lies there: what is not to be believed is refused, not passed over.
fn config_path(cli: &Cli) -> PathBuf {
    let usual = ["config.json", "/etc/sodium/config.json"].map(PathBuf::from);
    let is_there = |path: &&PathBuf| path.symlink_metadata().is_ok();
    let found = usual.iter().find(is_there).unwrap_or(&usual[0]).clone();
    cli.config.clone().unwrap_or(found)
}

fn load_config(cli: &Cli) -> anyhow::Result<config::Config> {
    let path = config_path(cli);
    if cli.config.is_none() && path.symlink_metadata().is_err() {
        bail!(
            "there is no config.json here and none in /etc/sodium: \"sodiumd init\" writes one, or say which with --config"
        );
    }
    config::load(&path).with_context(|| format!("configuration {}", path.display()))
}

fn client(cli: &Cli) -> anyhow::Result<Client> {
    let socket = match &cli.socket {
        Some(socket) => socket.clone(),
        None => load_config(cli)?.socket(),
    };
    Client::new(socket)
}

async fn ask(cli: &Cli, command: Asked) -> anyhow::Result<ExitCode> {
    let client = client(cli)?;
    let output = cli.output;
    let config = config_path(cli);
    match command {
        Asked::Plan { files } => plan(&client, &files, &config, output).await,
        Asked::Diff { files } => diff(&client, &files, &config, output).await,
        Asked::Apply { files, dry_run, prune } => {
            // As the command itself, not as the files.
            let dry = dry_run.then_some(&Desired(None));
            let mut results = apply(&client, &files, dry).await?;
            if prune {
                self::prune(&client, dry_run, &mut results).await?;
            }
            show::applied(&results, output)?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Prove { subject } => prove::prove(&client, &config, &subject, output).await,
        Asked::Get { name } => get(&client, name.as_deref(), output).await,
        Asked::Logs { name, follow, tail } => {
            let tail = tail.map(|bytes| format!("&tail={bytes}")).unwrap_or_default();
            let follow = u8::from(follow);
            let path = format!("/v1/sandboxes/{}/logs?follow={follow}{tail}", client::part(&name));
            client.stream(&path, show::raw).await?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Explain(named) => {
            let path = format!("/v1/sandboxes/{}/explain", client::part(&named.name));
            show::explained(&client.get(&path).await?, output)?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Exec(exec) => exec::exec(&client, exec).await,
        Asked::Start(named) => power(&client, &named.name, "start", output).await,
        Asked::Stop(named) => power(&client, &named.name, "stop", output).await,
        Asked::Kill(named) => power(&client, &named.name, "kill", output).await,
        Asked::Restart(named) => power(&client, &named.name, "restart", output).await,
        Asked::Pause(named) => power(&client, &named.name, "pause", output).await,
        Asked::Resume(named) => power(&client, &named.name, "resume", output).await,
        Asked::Checkpoint(named) => power(&client, &named.name, "checkpoint", output).await,
        Asked::Restore { name, to } => restore(&client, &name, to, output).await,
        Asked::Delete { name, keep_workspace } => {
            let name = client::part(&name);
            let path = format!("/v1/sandboxes/{name}?wait=60s&keep_workspace={keep_workspace}");
            client.delete::<IgnoredAny>(&path).await?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Transfer { name, owner } => {
            let path = format!("/v1/sandboxes/{}/transfer", client::part(&name));
            let owner = Owner::try_from(owner).map_err(anyhow::Error::msg)?;
            client.post::<IgnoredAny>(&path, &serde_json::to_string(&Transfer { owner })?).await?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Events { name, follow } => events(&client, name, follow, output).await,
        Asked::Drain { wait } => {
            let path = format!("/v1/drain?wait={}", client::part(&wait));
            show::value(&client.post::<Value>(&path, "").await?, output)?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Undrain => {
            client.delete::<IgnoredAny>("/v1/drain").await?;
            Ok(ExitCode::SUCCESS)
        }
        Asked::Confirm => {
            show::value(&client.post::<Value>("/v1/files/confirm", "").await?, output)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn restore(
    client: &Client,
    name: &str,
    to: Option<String>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let to = to.map(|to| format!("?to={}", client::part(&to))).unwrap_or_default();
    power(client, name, &format!("restore{to}"), output).await
}

/// What the loop would do next; with files, what they would change.
async fn plan(
    client: &Client,
    files: &[PathBuf],
    config: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let changes = if files.is_empty() {
        let plan: Said<Plan> = client.get("/v1/plan").await?;
        show::plan(&plan, output)?;
        !plan.steps.is_empty()
    } else {
        let results = preview(client, files, config).await?;
        show::applied(&results, output)?;
        would_change(&results)
    };
    Ok(ExitCode::from(if changes { 2 } else { 0 }))
}

async fn diff(
    client: &Client,
    files: &[PathBuf],
    config: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let results = preview(client, files, config).await?;
    show::differences(&results, output)?;
    Ok(ExitCode::from(if would_change(&results) { 2 } else { 0 }))
}

/// What files would change, each as the file of specs that it is, if it is one.
async fn preview(
    client: &Client,
    files: &[PathBuf],
    config: &Path,
) -> anyhow::Result<Vec<Applied>> {
    let desired = Desired(config::load(config).ok().map(|config| config.desired_path));
    apply(client, files, Some(&desired)).await
}

fn would_change(results: &[Applied]) -> bool {
    results.iter().any(|result| result.action != Action::Unchanged)
}

/// Deletes what is the API's and in none of the files that were applied, and says so among the results.
async fn prune(client: &Client, dry_run: bool, results: &mut Vec<Applied>) -> anyhow::Result<()> {
    let all: SandboxList = client.get("/v1/sandboxes").await?;
    for Sandbox { metadata, .. } in all.items {
        let name = metadata.name;
        if metadata.owner != Owner::Api || results.iter().any(|result| result.name == name) {
            continue;
        }
        if !dry_run {
            let path = format!("/v1/sandboxes/{name}?keep_workspace=true");
            client.delete::<IgnoredAny>(&path).await?;
        }
        let effect = Some("stop".to_owned());
        results.push(Applied { effect, ..Applied::new(name, Action::Delete) });
    }
    Ok(())
}

/// The directory of specs, as far as it is known.
struct Desired(Option<PathBuf>);

impl Desired {
    /// The name of a file that lies in it: what that says is its own.
    fn name_of(&self, file: &Path) -> Option<String> {
        let above = Path::new(".").join(file.parent()?).canonicalize().ok()?;
        let name = file.file_name()?.to_str()?;
        let is_there = self.0.as_ref()?.canonicalize().ok()? == above && is_spec(name);
        is_there.then(|| name.to_owned())
    }
}

/// Applies them, or says what that would do: then as the file of specs that each is, if it is one.
async fn apply(
    client: &Client,
    files: &[PathBuf],
    dry: Option<&Desired>,
) -> anyhow::Result<Vec<Applied>> {
    let mut results = Vec::new();
    for file in &check::within(files)? {
        let bytes = check::read(file).with_context(|| format!("read {}", file.display()))?;
        let text =
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", file.display()))?;
        let own = dry.and_then(|desired| desired.name_of(file));
        let own = own.map(|name| format!("&as={}", client::part(&name))).unwrap_or_default();
        let path = format!("/v1/apply?dry_run={}{own}", u8::from(dry.is_some()));
        let answer = client.post::<Apply>(&path, &text).await;
        results.extend(answer.with_context(|| file.display().to_string())?.results);
    }
    Ok(results)
}

async fn get(client: &Client, name: Option<&str>, output: Output) -> anyhow::Result<ExitCode> {
    match name {
        None => {
            show::sandboxes(&client.get("/v1/sandboxes").await?, output)?;
            let health: Value = client.get("/health").await?;
            if let Some(fault) = health["store"].as_str().filter(|store| *store != "ok") {
                show::complain(&format!("sodiumd: {fault}"));
            }
        }
        Some("files") => show::files(&client.get("/v1/files").await?, output)?,
        Some("images") => show::images(&client.get("/v1/images").await?, output)?,
        Some(name) => {
            let path = format!("/v1/sandboxes/{}", client::part(name));
            let sandbox: Said<Sandbox> = client.get(&path).await?;
            if output.is_for_people() {
                show::sandbox(&sandbox, &client.get(&format!("{path}/limits")).await?)?;
            } else {
                show::value(&sandbox, output)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn power(
    client: &Client,
    name: &str,
    verb: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let and = if verb.contains('?') { '&' } else { '?' };
    let path = format!("/v1/sandboxes/{}/{verb}{and}wait=60s", client::part(name));
    let sandbox: Said<Sandbox> = client.post(&path, "").await?;
    if output.is_for_people() {
        show::complain(&format!("{}: {}", sandbox.metadata.name, sandbox.status.phase));
    } else {
        show::value(&sandbox, output)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn events(
    client: &Client,
    name: Option<String>,
    follow: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let about = name.map(|name| format!("sandbox={}", client::part(&name))).unwrap_or_default();
    if !follow {
        show::events(&client.get(&format!("/v1/events?{about}")).await?, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut pending = Vec::new();
    let each = |bytes: &[u8]| {
        pending.extend_from_slice(bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Said<Event> = serde_json::from_slice(&line).context("read an event")?;
            show::event_line(&event, output)?;
        }
        Ok(())
    };
    client.stream(&format!("/v1/events?follow=1&{about}"), each).await?;
    Ok(ExitCode::SUCCESS)
}
