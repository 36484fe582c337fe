//! Talking to the local daemon over its socket.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use reqwest::{Method, Response};
use serde_json::Value;

use crate::sys::own_ids;

/// A connection to the local daemon. The socket belongs to whoever started it, so no token is needed.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let Ok(found) = std::fs::metadata(&socket) else {
            bail!(
                "no daemon at {}; start one with \"sodiumd run\", or say which with --config or --socket",
                socket.display()
            );
        };
        let (owner, own) = (found.uid(), own_ids().0);
        if own != 0 && owner != own {
            bail!(
                "the daemon at {} is that of uid {owner}, and serves it and root alone; use sudo, or the API with its token",
                socket.display()
            );
        }
        let http = reqwest::Client::builder().unix_socket(socket.clone()).build();
        Ok(Self { http: http.context("make an HTTP client")?, socket })
    }

    /// The bare connection.
    pub(super) async fn connect(&self) -> anyhow::Result<tokio::net::UnixStream> {
        let connected = tokio::net::UnixStream::connect(&self.socket).await;
        connected.with_context(|| self.silent())
    }

    fn silent(&self) -> String {
        format!("the daemon at {} does not answer; is it running?", self.socket.display())
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(Method::GET, path, "").await
    }

    pub(super) async fn post(&self, path: &str, body: &str) -> anyhow::Result<Value> {
        self.json(Method::POST, path, body).await
    }

    pub(super) async fn put(&self, path: &str, body: &str) -> anyhow::Result<Value> {
        self.json(Method::PUT, path, body).await
    }

    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(Method::DELETE, path, "").await
    }

    /// Hands over a body piece by piece, until it ends.
    pub(super) async fn stream(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut response = self.send(Method::GET, path, "").await?;
        while let Some(bytes) = response.chunk().await.context("read from the daemon")? {
            each(&bytes)?;
        }
        Ok(())
    }

    async fn json(&self, method: Method, path: &str, body: &str) -> anyhow::Result<Value> {
        self.send(method, path, body).await?.json().await.context("read the daemon's answer")
    }

    async fn send(&self, method: Method, path: &str, body: &str) -> anyhow::Result<Response> {
        let url = format!("http://sodiumd{path}");
        let sent = self.http.request(method, url).body(body.to_owned()).send().await;
        let response = sent.with_context(|| self.silent())?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let answer: Value = response.json().await.unwrap_or_default();
        let violations = answer["violations"].as_array().cloned().unwrap_or_default();
        if violations.is_empty() {
            bail!("{}", answer["error"].as_str().unwrap_or(status.as_str()));
        }
        let texts: Vec<String> = violations
            .into_iter()
            .filter_map(|one| serde_json::from_value::<crate::model::Violation>(one).ok())
            .map(|violation| violation.to_string())
            .collect();
        bail!("{}", texts.join("\n"))
    }
}

/// A name as part of a path: what is no name must not become another path.
pub(super) fn part(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    name.bytes()
        .map(
            |byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") },
        )
        .collect()
}
