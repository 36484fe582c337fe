//! `sodiumd exec`: this terminal, or these pipes, are those of a program inside a sandbox.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::cli::client::{Client, Refusal, part};
use sodium_api::{ErrorCode, ExecFrame, ExecInput, ExecSocketRequest};
use sodium_sys::pty;

/// Read from standard input at once.
const INPUT_BYTES: usize = 16 * 1024;
/// Pieces of input that wait for the daemon; the reader waits beyond that.
const INPUT_COUNT_MAX: usize = 4;
/// A program that could not be started, as shells say it.
const NOT_STARTED: u8 = 127;

/// What the command line says.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Exec {
    name: String,
    /// With a terminal; the default if this is one
    #[arg(long, short = 't', overrides_with = "no_tty")]
    tty: bool,
    /// Without a terminal
    #[arg(long)]
    no_tty: bool,
    /// One more variable of the environment
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Where to run it
    #[arg(long, short = 'w', value_name = "DIR")]
    work_dir: Option<String>,
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

type Socket = WebSocketStream<UnixStream>;

/// Runs it, and ends with its code.
pub(super) async fn exec(client: &Client, exec: Exec) -> anyhow::Result<ExitCode> {
    let own_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let tty = exec.tty || own_terminal && !exec.no_tty;
    let (cols, rows) = pty::size_of_own().unwrap_or((80, 24));
    let env = exec.env.iter().map(|pair| {
        let (name, value) = pair.split_once('=').with_context(|| format!("{pair}: no \"=\""))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    let mut env = env.collect::<anyhow::Result<BTreeMap<String, String>>>()?;
    if let Some(term) = std::env::var("TERM").ok().filter(|_| tty) {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    let order = ExecSocketRequest {
        command: exec.command,
        env,
        work_dir: exec.work_dir,
        tty,
        cols: tty.then_some(cols),
        rows: tty.then_some(rows),
    };
    let stream = client.connect().await?;
    let url = format!("ws://sodiumd/v1/sandboxes/{}/exec", part(&exec.name));
    let mut socket = match client_async(url, stream).await {
        Ok((socket, _)) => socket,
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap_or_default();
            match serde_json::from_slice::<Refusal>(body) {
                Ok(body) => bail!("{}", body.error),
                Err(_) => bail!("the daemon answers with status {}", answer.status()),
            }
        }
        Err(error) => return Err(error).context("talk to the daemon"),
    };
    socket.send(Message::Text(serde_json::to_string(&order)?.into())).await?;
    // Given back whichever way this ends.
    let _raw = (tty && own_terminal).then(pty::make_own_raw).transpose()?;
    converse(socket, tty).await
}

/// Output is read whether or not input can be sent: the daemon does not take input from somebody who
/// takes no output, and each would wait for the other.
async fn converse(socket: Socket, tty: bool) -> anyhow::Result<ExitCode> {
    let (mut sink, mut stream) = socket.split();
    let (frames, mut outbox) = mpsc::channel(INPUT_COUNT_MAX);
    tokio::spawn(async move {
        while let Some(frame) = outbox.recv().await {
            if sink.send(frame).await.is_err() {
                // The other direction says why.
                return;
            }
        }
    });
    let for_input = frames.clone();
    // A thread, since standard input cannot be waited for otherwise; it ends with the process.
    std::thread::spawn(move || send_input(&for_input));
    let mut resized = signal(SignalKind::window_change())?;
    loop {
        // Each arm only waits.
        tokio::select! {
            message = stream.next() => {
                let message = message.context("the daemon is gone")?.context("talk to the daemon")?;
                match message {
                    Message::Binary(bytes) => write_output(&bytes)?,
                    Message::Text(text) => {
                        if let Some(code) = last_word(text.as_str())? {
                            return Ok(code);
                        }
                    }
                    Message::Close(_) => bail!("the daemon hung up"),
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => (),
                }
            }
            _ = resized.recv(), if tty => {
                if let Some((cols, rows)) = pty::size_of_own() {
                    // Behind input that is not read, the size matters to nobody.
                    let _ = frames.try_send(frame(&ExecInput::Resize { cols, rows })?);
                }
            }
        }
    }
}

fn send_input(frames: &mpsc::Sender<Message>) {
    let mut buffer = vec![0; INPUT_BYTES];
    while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
        if frames.blocking_send(Message::Binary(buffer[..count].to_vec().into())).is_err() {
            return;
        }
    }
    // Nobody is left who waits for it, if this fails.
    let _ = frame(&ExecInput::Eof).map(|eof| frames.blocking_send(eof));
}

fn frame(frame: &ExecInput) -> anyhow::Result<Message> {
    Ok(Message::Text(serde_json::to_string(frame)?.into()))
}

fn write_output(bytes: &[u8]) -> anyhow::Result<()> {
    let Some((which, bytes)) = bytes.split_first() else { return Ok(()) };
    if *which == 2 {
        std::io::stderr().write_all(bytes)?;
        return Ok(());
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}

/// The exit code, if that is what is said.
fn last_word(text: &str) -> anyhow::Result<Option<ExitCode>> {
    // What only a newer daemon says is no last word, but for an error.
    let Ok(frame) = serde_json::from_str(text) else {
        let said: Value = serde_json::from_str(text).context("understand the daemon")?;
        if said["type"] == "error" {
            bail!("{}", said["message"].as_str().unwrap_or("it failed"));
        }
        return Ok(None);
    };
    match frame {
        ExecFrame::Started => Ok(None),
        ExecFrame::Exit { code, .. } => {
            let code = code.and_then(|code| u8::try_from(code & 0xFF).ok());
            Ok(Some(ExitCode::from(code.unwrap_or(1))))
        }
        ExecFrame::Error { message, code: ErrorCode::Failed } => {
            super::show::complain(&format!("sodiumd: {message}"));
            Ok(Some(ExitCode::from(NOT_STARTED)))
        }
        ExecFrame::Error { message, .. } => bail!("{message}"),
    }
}
