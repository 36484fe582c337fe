//! `sodiumd prove`: runs a probe inside the isolation and the limits of a sandbox, or of an image, that really tries
//! to pass each of them, and prints what the kernel answered. In a sandbox of its own, which is gone afterwards; the
//! one that is named goes on undisturbed.

mod judge;
mod order;

use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::cli::client::{self, Client};
use crate::cli::{Output, show};
use crate::config::{self, Config};
use judge::{Row, Verdict};
use order::Order;
use sodium_api::{Health, List, Sandbox};
use sodium_model::image::Image;
use sodium_model::{ExitKind, Phase};

/// How often a sandbox is looked at that will have ended in a moment.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// No probe takes this long.
const PROBE_WITHIN: Duration = Duration::from_secs(180);

const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What a probe left behind.
pub(super) struct Evidence {
    /// What it said, line by line.
    pub said: Vec<Value>,
    pub exit: Value,
    /// The ledger while one of them ran.
    pub limits: Value,
}

/// What the probes are told of this host.
pub(super) struct Host {
    /// Files that are no sandbox's business.
    pub files: Vec<String>,
    /// Where a link out of the workspace leads.
    pub outside: PathBuf,
    /// The daemon's own address, of which nobody in a sandbox should hear.
    pub daemon: Option<SocketAddr>,
    /// A socket of the host's that has a name and no file.
    pub abstract_socket: String,
}

impl Host {
    fn of(config: &Config) -> Self {
        let state = &config.state_path;
        let files =
            [state.join("sodiumd.db"), state.join("token"), config.sandboxes_path.join(".")];
        Self {
            files: files.iter().map(|path| path.display().to_string()).collect(),
            outside: state.clone(),
            daemon: None,
            abstract_socket: format!("sodium-prove-{}", std::process::id()),
        }
    }
}

/// Exit 0: everything held. 1: something did not.
pub(super) async fn prove(
    client: &Client,
    config: &Path,
    subject: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let config = config::load(config).context("find out where the daemon keeps its files")?;
    let mut host = Host::of(&config);
    host.daemon = client.get::<Health>("/health").await?.address;
    let address = net::SocketAddr::from_abstract_name(&host.abstract_socket)?;
    // Whoever connects to it has come through; nobody needs to answer.
    let _listener = UnixListener::bind_addr(&address).context("listen on an abstract socket")?;
    let spec = spec_of(client, subject).await?;
    let name = format!("prove-{:08x}", std::process::id());
    let proof = Proof { client, name: &name };
    let rows = proof.all(&spec, &host, output).await;
    // Whatever became of it.
    let gone = proof.remove().await;
    let rows = rows?;
    if rows.is_empty() {
        bail!("nothing was tried");
    }
    gone.context("delete the sandbox of the probe")?;
    if !output.is_for_people() {
        show::value(&json!({"subject": subject, "items": rows}), output)?;
    }
    let held = rows.iter().all(|row| row.verdict != Verdict::Passed);
    Ok(ExitCode::from(u8::from(!held)))
}

/// Of the sandbox of this name, or of one that only names the image.
async fn spec_of(client: &Client, subject: &str) -> anyhow::Result<Value> {
    let images: List<Image> = client.get("/v1/images").await?;
    let is_image = images.items.iter().any(|image| image.id == subject);
    match client.get::<Value>(&format!("/v1/sandboxes/{}", client::part(subject))).await {
        Ok(sandbox) => Ok(sandbox["spec"].clone()),
        Err(_) if is_image => Ok(json!({"image": subject})),
        Err(error) => Err(error.context(format!("{subject} is neither a sandbox nor an image"))),
    }
}

/// The sandbox of the probe.
struct Proof<'a> {
    client: &'a Client,
    name: &'a str,
}

impl Proof<'_> {
    async fn all(&self, spec: &Value, host: &Host, output: Output) -> anyhow::Result<Vec<Row>> {
        // Once, so that every default is filled in; it does not run yet.
        let declared = self.declare(&order::stopped(spec)).await?;
        let filled = declared["spec"].clone();
        let mut rows = Vec::new();
        let mut ledger = Value::Null;
        for order in order::all(&filled, host) {
            let evidence = self.run(&order, &mut ledger).await?;
            let mut found = judge::judge(&order, &evidence, host);
            let passed = found.iter().any(|row| row.verdict == Verdict::Passed);
            if let Some(order) = passed.then(|| order.longer()).flatten() {
                let evidence = self.run(&order, &mut ledger).await?;
                found = judge::judge(&order, &evidence, host);
            }
            for row in found {
                if output.is_for_people() {
                    show::line(&row.line())?;
                }
                rows.push(row);
            }
        }
        // Beside what was tried from inside, what the kernel says from outside.
        for row in judge::standing(&ledger) {
            if output.is_for_people() {
                show::line(&row.line())?;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let path = format!("/v1/sandboxes/{}", self.name);
        self.client.delete::<IgnoredAny>(&path).await?;
        let deadline = Instant::now() + GONE_WITHIN;
        while self.client.get::<IgnoredAny>(&path).await.is_ok() {
            if Instant::now() > deadline {
                bail!("{} is deleted and stays", self.name);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn declare(&self, spec: &Value) -> anyhow::Result<Value> {
        let name = self.name;
        let document = json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
            "metadata": {"name": name}, "spec": spec});
        self.client.put(&format!("/v1/sandboxes/{name}"), &document.to_string()).await
    }

    /// Runs one probe to its end.
    async fn run(&self, order: &Order, ledger: &mut Value) -> anyhow::Result<Evidence> {
        let declared = self.declare(&order.spec).await?;
        let generation = declared["metadata"]["generation"].as_u64();
        let path = format!("/v1/sandboxes/{}", self.name);
        let deadline = Instant::now() + PROBE_WITHIN;
        let exit = loop {
            let now: Sandbox = self.client.get(&path).await?;
            let phase = now.status.phase;
            if ledger.is_null() && phase == Phase::Running {
                *ledger = self.client.get(&format!("{path}/limits")).await?;
            }
            let is_over = !matches!(phase, Phase::Running | Phase::Starting);
            let exit = now.status.last_exit.as_ref().filter(|_| is_over);
            let failed = exit.is_some_and(|exit| matches!(exit.kind, ExitKind::StartFailed { .. }));
            if let Some(exit) = exit
                && (failed && order.may_not_start || Some(exit.generation) == generation)
            {
                break exit.clone();
            }
            if failed || phase == Phase::Failed && now.status.last_exit.is_none() {
                bail!("the probe could not start: {}", show::about(&now));
            }
            if Instant::now() > deadline {
                bail!("{}: the probe did not end: {}", order.what, show::about(&now));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let said = self.said(exit.console_from).await?;
        Ok(Evidence { said, exit: serde_json::to_value(exit)?, limits: ledger.clone() })
    }

    async fn said(&self, from: u64) -> anyhow::Result<Vec<Value>> {
        let path = format!("/v1/sandboxes/{}/logs?offset={from}", self.name);
        let mut bytes = Vec::new();
        let gather = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.client.stream(&path, gather).await?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}
