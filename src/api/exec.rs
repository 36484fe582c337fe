//! Programs inside what runs: asked for and answered at once over POST, or followed over a WebSocket,
//! with a terminal or without.
//!
//! ```text
//!   client: {"command":["sh"],"tty":true,"cols":80,"rows":24}   bytes (stdin)   {"type":"resize"|"eof"}
//!   daemon: {"type":"started"}   1 or 2, then bytes (stdout, stderr)   {"type":"exit"} | {"type":"error"}
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::extract::{Extension, State};
use axum::http::Uri;
use axum::response::Response;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::api::audit::{self, Act};
use crate::api::caller::{Caller, GONE_WITHIN, REVOKED, REVOKED_CLOSE};
use crate::api::request::Path;
use crate::api::sandboxes::find;
use crate::api::upgrade::{self, Upgrade};
use crate::api::{ApiError, Kind, Shared, console, request, wire};
use crate::reconcile::exec::{Event, Program, Session, Share};
use sodium_api::{ErrorCode, ExecAnswer, ExecFrame, ExecInput};
use sodium_model::draft::{read_command, read_env, read_word};
use sodium_model::instance::signal_name;
use sodium_model::tree::{Faults, Node};
use sodium_model::{Sandbox, Violation, arguments};

/// What POST keeps of each output; the rest is read away and the answer says so.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const SECONDS_DEFAULT: u64 = 60;
const SECONDS_MAX: u64 = 3600;
/// A client says what it wants at once, or wants nothing.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// How often a client is asked whether it is there; nobody may be, while its input waits.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A client that has heard the end leaves, and is not waited for long.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// A peer that takes nothing for this long is gone.
const SEND_WITHIN: Duration = Duration::from_secs(60);

const FIELDS: &[&str] = &["command", "env", "work_dir", "tty", "cols", "rows"];
const POST_FIELDS: &[&str] = &["command", "env", "work_dir", "stdin", "timeout_seconds"];

/// The program of a request, with what is particular to one way of asking.
#[derive(Debug, Default)]
struct Asked {
    program: Program,
    stdin: String,
    seconds: Option<u64>,
}

fn read(node: &Node, known: &[&str]) -> Result<Asked, ApiError> {
    let (mut asked, mut tty, mut size) = (Asked::default(), false, [80, 24]);
    request::read(node, known, |faults: &mut Faults, key, path, value| match key {
        "command" => asked.program.command = read_command(faults, path, value),
        "env" => asked.program.env = read_env(faults, path, value),
        "work_dir" => {
            asked.program.work_dir = read_word(faults, path, value);
            if asked.program.work_dir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
                faults.add(path, value, "is not an absolute path");
            }
        }
        "tty" => tty = faults.bool(path, value).unwrap_or(false),
        "stdin" => asked.stdin = faults.text(path, value).unwrap_or_default(),
        "timeout_seconds" => asked.seconds = faults.count(path, value, SECONDS_MAX),
        _ => {
            let count = faults.count(path, value, 10_000).and_then(|count| count.try_into().ok());
            size[usize::from(key == "rows")] = count.unwrap_or(0);
        }
    })?;
    if asked.program.command.is_empty() {
        return Err(ApiError::Invalid(vec![Violation::new("command", "names no program")]));
    }
    if let Some(fault) = arguments::plain_fault(&asked.program.command, &asked.program.env) {
        return Err(ApiError::Invalid(vec![fault]));
    }
    asked.program.tty = tty.then_some((size[0], size[1]));
    Ok(asked)
}

/// Runs a program to its end, or to the end of its time, and answers with all of it.
pub(super) async fn run(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: request::Given,
) -> Result<Json<ExecAnswer>, ApiError> {
    let sandbox = find(&api, &id)?;
    let asked = read(&request::json(body).await?.into(), POST_FIELDS)?;
    let seconds = asked.seconds.filter(|seconds| *seconds > 0).unwrap_or(SECONDS_DEFAULT);
    let session = start(&api, (sandbox, &caller), asked.program).await?;
    // Dropped with the request, the session takes the program along.
    let collected = collect(session, asked.stdin.into_bytes());
    match timeout(Duration::from_secs(seconds), collected).await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(ApiError::Overran(seconds)),
    }
}

/// Starts it, and has it noted who did, even if he does not wait for it.
async fn start(
    api: &Shared,
    (sandbox, caller): (Arc<Sandbox>, &Caller),
    program: Program,
) -> Result<Session, ApiError> {
    let (name, what) = (sandbox.name.clone(), audit::program(&program.command));
    let (api, by, share) = (Arc::clone(api), caller.to_string(), share_of(caller));
    let started = api.running.clone().spawn(async move {
        let session = api.handle.exec(sandbox, program, share).await?;
        api.audit.note(&name, Act::Exec, &by, format!("{what} was run by exec"));
        Ok(session)
    });
    started.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => ApiError::Failed("the daemon ends".to_owned()),
    })?
}

fn share_of(caller: &Caller) -> Share {
    if caller.is_local() { Share::Owner } else { Share::Clients }
}

async fn collect(mut session: Session, stdin: Vec<u8>) -> Result<ExecAnswer, ApiError> {
    let mut outputs = [Vec::new(), Vec::new()];
    let mut truncated = false;
    session.input(&stdin).await;
    session.end_input().await;
    loop {
        match session.next().await {
            Event::Output { is_stderr, bytes } => {
                let kept: &mut Vec<u8> = &mut outputs[usize::from(is_stderr)];
                let room = ANSWER_BYTES_MAX - kept.len();
                truncated |= bytes.len() > room;
                kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Event::Ended { code, signal } => {
                let [stdout, stderr] =
                    outputs.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                let (code, signal) = ended(code, signal);
                return Ok(ExecAnswer { code, signal, stdout, stderr, truncated });
            }
            Event::Failed { stage, message } => {
                return Err(ApiError::Failed(format!("could not start ({stage}): {message}")));
            }
            Event::Lost => return Err(ApiError::Failed(LOST.to_owned())),
            Event::Began | Event::Taken => session.push().await,
        }
    }
}

const LOST: &str = "the process behind the program was killed; the program was ended with it";

/// As a shell counts: 128 + n for a signal.
fn ended(code: Option<i32>, signal: Option<i32>) -> (Option<i32>, Option<String>) {
    let shell = code.or_else(|| signal.map(|signal| 128 + signal));
    (shell, signal.and_then(signal_name))
}

/// The WebSocket.
pub(super) async fn attach(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let (sandbox, read_only) = console::admit(&api, &caller, &id, &uri)?;
    if read_only {
        return Err(ApiError::Unauthorized);
    }
    let place = api.place(Kind::Exec, &caller)?;
    let upgrade = upgrade::bounded(upgrade, read_only)?;
    Ok(upgrade.on_upgrade(move |mut socket| async move {
        let talk = async {
            match begin(&api, (sandbox, &caller), &mut socket).await {
                Ok(session) => converse(session, &mut socket).await,
                Err(error) => {
                    let (message, code) = (error.told(), error.code());
                    Some(ExecFrame::Error { message, code })
                }
            }
        };
        let mut grant = caller.grant.clone();
        // Both arms only wait; the program ends with its session.
        let last = tokio::select! {
            last = talk => last,
            () = grant.revoked() => None,
        };
        if grant.is_revoked() {
            let _ = timeout(GONE_WITHIN, dismiss(&mut socket)).await;
        } else if let Some(last) = last {
            let _ = send(&mut socket, frame(&last)).await;
            let _ = send(&mut socket, Message::Close(None)).await;
            // Closed with input unread, the connection would break before the last word was read.
            let leave = async { while let Some(Ok(_)) = socket.recv().await {} };
            let _ = timeout(LEAVE_WITHIN, leave).await;
        }
        // With the seat of the connection, which was handed over by its upgrade.
        drop((place, caller));
    }))
}

/// Says to a client that is let in no longer why its program was ended, and reads away what it still says.
async fn dismiss(socket: &mut WebSocket) {
    let (message, code) = (REVOKED.to_owned(), ErrorCode::Unauthorized);
    let last = ExecFrame::Error { message, code };
    let close = CloseFrame { code: REVOKED_CLOSE, reason: REVOKED.into() };
    let _ = send(socket, frame(&last)).await;
    let _ = send(socket, Message::Close(Some(close))).await;
    while let Some(Ok(_)) = socket.recv().await {}
}

async fn begin(
    api: &Shared,
    who: (Arc<Sandbox>, &Caller),
    socket: &mut WebSocket,
) -> Result<Session, ApiError> {
    let asked = timeout(ASK_WITHIN, socket.recv()).await;
    let Ok(Some(Ok(Message::Text(text)))) = asked else {
        return Err(ApiError::BadRequest("the first frame says what to run, as JSON".to_owned()));
    };
    start(api, who, first_frame(text.as_str())?).await
}

/// Understands the first frame, which says what to run, or says what is wrong with it.
pub fn first_frame(text: &str) -> Result<Program, ApiError> {
    let json: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::BadRequest(format!("the frame is not JSON: {error}")))?;
    Ok(read(&json.into(), FIELDS)?.program)
}

/// Carries bytes both ways until one side is through. Returns the last word, if anybody is there to
/// hear it.
async fn converse(mut session: Session, socket: &mut WebSocket) -> Option<ExecFrame> {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Each arm only waits, and what an arm did not take stays where it is. Input that the program
        // does not read is not asked for, so that its sender feels it.
        tokio::select! {
            event = session.next() => match event {
                Event::Began => {
                    send(socket, frame(&ExecFrame::Started)).await?;
                }
                Event::Taken => session.push().await,
                Event::Output { is_stderr, mut bytes } => {
                    bytes.insert(0, 1 + u8::from(is_stderr));
                    send(socket, Message::Binary(bytes.into())).await?;
                }
                Event::Ended { code, signal } => {
                    let (code, signal) = ended(code, signal);
                    return Some(ExecFrame::Exit { code, signal });
                }
                Event::Failed { stage, message } => {
                    let message = format!("could not start ({stage}): {message}");
                    return Some(ExecFrame::Error { message, code: ErrorCode::Failed });
                }
                Event::Lost => {
                    let message = LOST.to_owned();
                    return Some(ExecFrame::Error { message, code: ErrorCode::Lost });
                }
            },
            message = socket.recv(), if session.takes_input() => {
                obey(&mut session, message?.ok()?).await?;
            }
            _ = pings.tick() => send(socket, Message::Ping(Vec::new().into())).await?,
        }
    }
}

/// `None`: the client has left, or says what nobody understands.
async fn obey(session: &mut Session, message: Message) -> Option<()> {
    let text = match message {
        Message::Binary(bytes) => {
            session.input(&bytes).await;
            return Some(());
        }
        Message::Text(text) => text,
        Message::Ping(_) | Message::Pong(_) => return Some(()),
        Message::Close(_) => return None,
    };
    match serde_json::from_str(text.as_str()).ok()? {
        ExecInput::Eof => session.end_input().await,
        ExecInput::Resize { cols, rows } => session.resize(cols, rows).await,
    }
    Some(())
}

fn frame(frame: &ExecFrame) -> Message {
    Message::Text(wire::json(frame).into())
}

async fn send(socket: &mut WebSocket, message: Message) -> Option<()> {
    timeout(SEND_WITHIN, socket.send(message)).await.ok()?.ok()
}
