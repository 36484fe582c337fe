//! Talking to the local daemon over its socket.

use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tokio::net::UnixStream;

use sodium_model::Violation;
use sodium_model::violation::suggestion;
use sodium_sys::{self as sys, own_ids};

/// An answer as it is read, and as it was said: programs are shown all of it, also what only a newer daemon says.
#[derive(Debug)]
pub(super) struct Said<T> {
    read: T,
    raw: Value,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Said<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let raw = Value::deserialize(input)?;
        let read = T::deserialize(&raw).map_err(D::Error::custom)?;
        Ok(Self { read, raw })
    }
}

impl<T> Serialize for Said<T> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(output)
    }
}

impl<T> Deref for Said<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.read
    }
}

/// Why not, as much of it as is of use: its code may be one that only a newer daemon has.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    pub error: String,
    #[serde(default)]
    violations: Vec<Violation>,
}

/// A connection to the local daemon. The socket belongs to whoever started it, so no token is needed.
#[derive(Debug)]
pub(super) struct Client {
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
        Ok(Self { socket })
    }

    /// The bare connection.
    pub(super) async fn connect(&self) -> anyhow::Result<UnixStream> {
        let stream = sys::socket::connect(&self.socket).with_context(|| self.silent())?;
        stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream))
            .with_context(|| self.silent())
    }

    fn silent(&self) -> String {
        format!("the daemon at {} does not answer; is it running?", self.socket.display())
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(self.send(Method::GET, path, "").await?).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
    ) -> anyhow::Result<T> {
        read(self.send(Method::POST, path, body).await?).await
    }

    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
    ) -> anyhow::Result<T> {
        read(self.send(Method::PUT, path, body).await?).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(self.send(Method::DELETE, path, "").await?).await
    }

    /// Hands over a body piece by piece, until it ends.
    pub(super) async fn stream(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut body = self.send(Method::GET, path, "").await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.context("read from the daemon")?.into_data() {
                each(&bytes)?;
            }
        }
        Ok(())
    }

    /// That there is no sandbox of this name, and which might be meant; or what else was not found, if there is one.
    async fn nobody(&self, name: &str, said: String) -> String {
        let Ok(all) = Box::pin(self.get::<Value>("/v1/sandboxes")).await else { return said };
        let all = all["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> =
            all.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
        if names.contains(&name) {
            return said;
        }
        let meant = suggestion(name, names);
        format!("there is no sandbox \"{name}\"{meant}; \"sodiumd get\" lists those there are")
    }

    /// On a connection of its own: it costs less than to keep one.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) =
            http1::handshake(stream).await.with_context(|| self.silent())?;
        // What it ends with, the answer or its body ends with too.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("Host", "sodiumd");
        let request = request.body(body.to_owned()).context("make a request")?;
        let response = sender.send_request(request).await.with_context(|| self.silent())?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let Ok(answer) = read::<Refusal>(response).await else {
            bail!("the daemon answers with status {status}");
        };
        if status == StatusCode::NOT_FOUND
            && let Some(name) = sandbox_of(path)
        {
            bail!("{}", self.nobody(name, answer.error).await);
        }
        if answer.violations.is_empty() {
            bail!("{}", answer.error);
        }
        let texts: Vec<String> = answer.violations.iter().map(ToString::to_string).collect();
        bail!("{}", texts.join("\n"))
    }
}

/// Whose the path is.
fn sandbox_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v1/sandboxes/")?;
    rest.split(['/', '?']).next().filter(|name| !name.is_empty())
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> anyhow::Result<T> {
    let body = response.into_body().collect().await.context("read the daemon's answer")?;
    serde_json::from_slice(&body.to_bytes()).context("read the daemon's answer")
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
