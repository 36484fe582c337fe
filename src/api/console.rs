//! The console over WebSocket, as the seed's clients speak it: `/console/ID?token=TOKEN`.
//!
//! One task reads what the client says, another writes what the program prints; so a client that
//! never reads holds up nobody, not even its own `stop`. The writer holds nothing but an offset.
//! With `format=binary`, output comes as binary frames, as it is; all else stays JSON.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::extract::{Extension, State};
use axum::http::Uri;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::api::audit::Act;
use crate::api::auth::query;
use crate::api::caller::{Caller, GONE_WITHIN, Grant, REVOKED, REVOKED_CLOSE, Who};
use crate::api::rate::Rate;
use crate::api::request::Path;
use crate::api::sandboxes::find;
use crate::api::text::Decoder;
use crate::api::upgrade::{self, Upgrade};
use crate::api::{ApiError, Kind, Shared, logs, request, seed, wire};
use crate::reconcile::link::{Command, Head};
use crate::store::edit::Verb;
use sodium_api::ConsoleFrame;
use sodium_model::draft;
use sodium_model::tree::Node;
use sodium_model::{Iid, InstancePhase, Sandbox};
use sodium_shim::spool::{Chunk, Reader};

/// A connection that names no sandbox is closed with this.
const NO_ID: u16 = 4001;
/// What a client sees of the past when it does not say what it wants.
const TAIL_BYTES: u64 = 64 * 1024;
/// Read at once, and sent as one frame.
const CHUNK_BYTES: usize = 256 * 1024;
/// Read at once from a console that says little,
const SMALL_BYTES: usize = 8 * 1024;
/// as one does that has said nothing for so long.
const QUIET: Duration = Duration::from_millis(500);
/// A peer that takes nothing for this long is gone.
const SEND_WITHIN: Duration = Duration::from_secs(60);
/// For our goodbye, all else having been sent, and then for the client's.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// Frames that one connection by a ticket may send, beside input, which is credited.
const FRAMES_PER_SECOND: u64 = 20;
/// Answers waiting for a client that does not read; then its errors are dropped.
const NOTICE_COUNT_MAX: usize = 16;

pub(super) async fn without_id(
    Extension(caller): Extension<Caller>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    Ok(upgrade::bounded(upgrade, true)?.on_upgrade(|mut socket| async move {
        let close = CloseFrame { code: NO_ID, reason: "no sandbox id".into() };
        // A peer that is gone, or takes nothing, needs no goodbye.
        let _ = timeout(LEAVE_WITHIN, socket.send(Message::Close(Some(close)))).await;
        drop(caller);
    }))
}

pub(super) async fn console(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let (sandbox, read_only) = admit(&api, &caller, &id, &uri)?;
    let place = api.place(Kind::Console, &caller)?;
    let upgrade = upgrade::bounded(upgrade, read_only)?;
    let number = |name| query(&uri, name).and_then(|text| text.parse().ok());
    let (offset, tail) = (number("offset"), number("tail").or(Some(TAIL_BYTES)));
    let binary = query(&uri, "format").is_some_and(|format| format == "binary");
    Ok(upgrade.on_upgrade(move |socket| async move {
        let Some(spool) = api.handle.spool(sandbox.uid) else { return };
        let (sink, stream) = socket.split();
        let (notices, inbox) = mpsc::channel(NOTICE_COUNT_MAX);
        let writer = Writer {
            reader: Reader::new(&spool, logs::start(&spool, offset, tail)),
            head: api.handle.watch_console(sandbox.uid),
            api: Arc::clone(&api),
            ended: ended_iid(&sandbox),
            sandbox: Arc::clone(&sandbox),
            sink,
            grant: caller.grant.clone(),
            binary,
            decoder: Decoder::default(),
            buffer: vec![0; SMALL_BYTES],
            text: String::new(),
        };
        let mut writing = tokio::spawn(writer.run(inbox));
        let mut grant = caller.grant.clone();
        let mut listening = pin!(listen(&api, (&sandbox, &caller), stream, (notices, read_only)));
        // Each arm only waits.
        tokio::select! {
            () = &mut listening => writing.abort(),
            // Deleted, or the client takes nothing, and then it does not take its leave either.
            _ = &mut writing => {
                let within = if grant.is_revoked() { GONE_WITHIN } else { LEAVE_WITHIN };
                let _ = timeout(within, listening).await;
            }
            // The writer says why, if the client takes that; what the client says is read away.
            () = grant.revoked() => {
                let leave = async { tokio::join!(&mut writing, listening) };
                let _ = timeout(GONE_WITHIN, leave).await;
                writing.abort();
            }
        }
        // The caller, and with it the seat of the connection that the upgrade has handed over, lasts as long.
        drop(place);
    }))
}

/// Lets in whoever has the token, or a ticket for this sandbox. True: to look only.
pub(super) fn admit(
    api: &Shared,
    caller: &Caller,
    id: &str,
    uri: &Uri,
) -> Result<(Arc<Sandbox>, bool), ApiError> {
    if caller.may_do_all() {
        return Ok((find(api, id)?, false));
    }
    // By their ticket they have their place, and go when its token does: whoever has neither is let in by nothing.
    if !matches!(caller.who, Who::Ticket { .. }) {
        return Err(ApiError::Unauthorized);
    }
    // Whether a name exists is a secret from who may not look at it, and a ticket for another sandbox is no ticket.
    let sandbox = find(api, id).map_err(|_| ApiError::Unauthorized)?;
    let ticket = query(uri, "ticket")
        .and_then(|text| api.tickets.redeem(&text, sandbox.uid, api.now()))
        .ok_or(ApiError::Unauthorized)?;
    let what = if ticket.read_only { "to read only" } else { "for everything" };
    let what = format!("a ticket made by {} was used, {what}", ticket.by);
    api.audit.note(&sandbox.name, Act::TicketUsed, caller, what);
    Ok((sandbox, ticket.read_only))
}

/// Carries out what the client says, until it leaves.
async fn listen(
    api: &Shared,
    (sandbox, caller): (&Arc<Sandbox>, &Caller),
    mut stream: SplitStream<WebSocket>,
    (notices, read_only): (mpsc::Sender<ConsoleFrame>, bool),
) {
    let (mut has_spoken, frames) = (false, Rate::default());
    while let Some(Ok(message)) = stream.next().await {
        if caller.grant.is_revoked() {
            continue;
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return,
            // Pongs are sent by the library; the rest has no meaning here.
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => continue,
        };
        let frame = if read_only { Err(ApiError::Unauthorized) } else { read_frame(text.as_str()) };
        if !matches!(frame, Ok(ClientFrame::Input(_))) {
            // What is not credited is counted; who is too fast is heard later, if he still may be.
            while let Err(ApiError::TooFast(wait)) = pace_frame(api, caller, &frames) {
                sleep(wait).await;
            }
            if caller.grant.is_revoked() {
                continue;
            }
        }
        let done = match frame {
            Ok(frame) => obey(api, (sandbox, caller), frame, &mut has_spoken).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            let notice = ConsoleFrame::Error { message: error.told() };
            // A client that reads none of its errors needs no more of them.
            let _ = notices.try_send(notice);
        }
    }
}

/// Who has the token spends what its requests may. A ticket's frames are its connection's alone: they use up nothing of
/// what others ask from the same place.
fn pace_frame(api: &Shared, caller: &Caller, frames: &Rate<()>) -> Result<(), ApiError> {
    match caller.who {
        Who::Local { .. } | Who::Token { .. } => api.pace(caller),
        Who::Ticket { .. } | Who::Stranger => {
            frames.ask((), FRAMES_PER_SECOND).map_err(ApiError::TooFast)
        }
    }
}

async fn obey(
    api: &Shared,
    (sandbox, caller): (&Arc<Sandbox>, &Caller),
    frame: ClientFrame,
    has_spoken: &mut bool,
) -> Result<(), ApiError> {
    match frame {
        ClientFrame::Input(line) => {
            let sent = api.handle.input(sandbox, line.into_bytes()).await;
            // One event for all of a session.
            if seed::was_taken(&sent) && !std::mem::replace(has_spoken, true) {
                let what = "input was sent over a console".to_owned();
                api.audit.note(&sandbox.name, Act::Input, caller, what);
            }
            Ok(sent?)
        }
        ClientFrame::Start(command) => {
            // Whoever has its name by now is none of theirs.
            let current = find(api, &sandbox.uid.to_string())?;
            seed::run(api, caller, &current, command).await
        }
        ClientFrame::Stop => seed::end(api, caller, sandbox, Verb::Stop).await,
        ClientFrame::Kill => seed::end(api, caller, sandbox, Verb::Kill).await,
        ClientFrame::Resize { cols, rows } => {
            Ok(api.handle.command(sandbox, Command::Resize { cols, rows })?)
        }
    }
}

/// What a client may say. Everything but what it says to the program is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// A line for the program, with its end.
    Input(String),
    /// Run; with another command from now on, if there is one.
    Start(Option<Vec<String>>),
    Stop,
    Kill,
    Resize {
        cols: u16,
        rows: u16,
    },
}

/// Understands a frame of text, or says what is wrong with it.
pub fn read_frame(text: &str) -> Result<ClientFrame, ApiError> {
    let json: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::BadRequest(format!("the frame is not JSON: {error}")))?;
    let kind = json.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let node: Node = json.into();
    match kind.as_str() {
        "input" => {
            let mut content = String::new();
            request::read(&node, &["type", "content"], |faults, key, path, value| {
                if key == "content" {
                    content = faults.text(path, value).unwrap_or_default();
                }
            })?;
            content.push('\n');
            Ok(ClientFrame::Input(content))
        }
        "start" => {
            let (mut command, mut args) = (None, Vec::new());
            request::read(
                &node,
                &["type", "command", "args"],
                |faults, key, path, value| match key {
                    "command" => command = draft::read_word(faults, path, value),
                    "args" => args = draft::read_words(faults, path, value),
                    _ => (),
                },
            )?;
            let command = command.filter(|command| !command.is_empty());
            Ok(ClientFrame::Start(command.map(|command| [vec![command], args].concat())))
        }
        "stop" => Ok(ClientFrame::Stop),
        "kill" => Ok(ClientFrame::Kill),
        "resize" => {
            let mut size = [80, 24];
            request::read(&node, &["type", "cols", "rows"], |faults, key, path, value| {
                if key != "type" {
                    let count = faults.count(path, value, 10_000).unwrap_or(0);
                    size[usize::from(key == "rows")] = u16::try_from(count).unwrap_or(0);
                }
            })?;
            let [cols, rows] = size;
            Ok(ClientFrame::Resize { cols, rows })
        }
        other => Err(ApiError::BadRequest(format!("no frame of type {other:?} is known"))),
    }
}

struct Writer {
    api: Shared,
    sandbox: Arc<Sandbox>,
    sink: SplitSink<WebSocket, Message>,
    grant: Grant,
    reader: Reader,
    head: watch::Receiver<Head>,
    /// The last instance whose end the client knows of.
    ended: Option<Iid>,
    binary: bool,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Room for the text of a frame, kept from one to the next.
    text: String,
}

/// The client left, or takes nothing, or is let in no longer.
struct Left;

impl Writer {
    async fn run(mut self, mut notices: mpsc::Receiver<ConsoleFrame>) {
        // The client left, the sandbox was deleted: either way there is nobody to tell.
        let _ = self.serve(&mut notices).await;
        if self.grant.is_revoked() {
            let notice = wire::json(&ConsoleFrame::Error { message: REVOKED.to_owned() });
            let close = CloseFrame { code: REVOKED_CLOSE, reason: REVOKED.into() };
            let last = async {
                self.sink.send(Message::Text(notice.into())).await?;
                self.sink.send(Message::Close(Some(close))).await
            };
            let _ = timeout(LEAVE_WITHIN, last).await;
            return;
        }
        let _ = timeout(LEAVE_WITHIN, self.sink.close()).await;
    }

    async fn serve(&mut self, notices: &mut mpsc::Receiver<ConsoleFrame>) -> Result<(), Left> {
        let mut commits = self.api.store.watch();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.head.borrow_and_update();
            // Seen before the spool is read to its end: an exit is told behind all its output.
            let exit = self.news(&mut commits)?;
            while self.send_chunk().await? {}
            if let Some(exit) = exit {
                self.send_rest().await?;
                self.send_frame(&exit).await?;
            }
            let running = self.head.borrow().running.is_some();
            // Each arm only waits; what it waits for is looked at again above.
            tokio::select! {
                changed = self.head.changed() => changed.map_err(|_| Left)?,
                changed = commits.changed() => changed.map_err(|_| Left)?,
                () = self.grant.revoked() => return Err(Left),
                Some(notice) = notices.recv() => self.send_frame(&notice).await?,
                // Most consoles say a line now and then, and there may be thousands.
                () = sleep(QUIET), if self.buffer.len() > SMALL_BYTES => {
                    (self.buffer, self.text) = (vec![0; SMALL_BYTES], String::new());
                }
                _ = ticks.tick(), if running => {
                    let sandbox = find(&self.api, &self.sandbox.uid.to_string()).map_err(|_| Left)?;
                    let stats = wire::stats(&self.api.handle.usage(&sandbox).await);
                    self.send_frame(&ConsoleFrame::Stats(stats)).await?;
                }
            }
        }
    }

    /// The end of an instance that the client has not been told of.
    fn news(
        &mut self,
        commits: &mut watch::Receiver<Arc<crate::store::Snapshot>>,
    ) -> Result<Option<ConsoleFrame>, Left> {
        let snapshot = commits.borrow_and_update();
        let now =
            snapshot.sandboxes.get(&self.sandbox.name).filter(|now| now.uid == self.sandbox.uid);
        let now = now.ok_or(Left)?;
        let iid = ended_iid(now);
        if iid.is_none() || iid == self.ended {
            return Ok(None);
        }
        self.ended = iid;
        let frame = now.last_exit().map(|exit| ConsoleFrame::Exit {
            code: wire::exit_code(exit),
            exit: Box::new(exit.clone()),
        });
        Ok(frame)
    }

    /// Sends the next stretch of output, if there is one.
    async fn send_chunk(&mut self) -> Result<bool, Left> {
        // From the page cache, mostly; a read that waits for the disk holds up only this client's
        // worker for a moment, which costs less than a trip to another thread for each chunk.
        let chunk = self.reader.read(&mut self.buffer).map_err(|_| Left)?;
        match chunk {
            Chunk::End => Ok(false),
            Chunk::Gap { from, to } => {
                self.send_frame(&ConsoleFrame::Gap { from, to }).await?;
                Ok(true)
            }
            Chunk::Bytes { count, .. } if self.binary && count < SMALL_BYTES => {
                let bytes = Bytes::copy_from_slice(&self.buffer[..count]);
                self.send(Message::Binary(bytes)).await?;
                Ok(true)
            }
            Chunk::Bytes { count, .. } if self.binary => {
                // The buffer itself is handed on; a copy would cost a tenth of the throughput.
                let mut bytes = std::mem::replace(&mut self.buffer, vec![0; CHUNK_BYTES]);
                bytes.truncate(count);
                self.send(Message::Binary(bytes.into())).await?;
                Ok(true)
            }
            Chunk::Bytes { offset, count } => {
                let frame = self.text_frame(offset, count).map_err(|_| Left)?;
                if count == self.buffer.len() && count < CHUNK_BYTES {
                    self.buffer = vec![0; CHUNK_BYTES];
                }
                self.send(Message::Text(frame.into())).await?;
                Ok(true)
            }
        }
    }

    /// What [`ConsoleFrame::Output`] is, with the room for its text kept.
    fn text_frame(&mut self, offset: u64, count: usize) -> std::io::Result<String> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        for span in self.reader.spans(offset..offset + count as u64)? {
            let at = |in_log: u64| usize::try_from(in_log - offset).unwrap_or(0);
            let bytes = &self.buffer[at(span.range.start)..at(span.range.end)];
            self.decoder.decode(span.stream, bytes, &mut text);
        }
        let mut frame = Vec::with_capacity(text.len() + text.len() / 16 + 64);
        frame.extend_from_slice(br#"{"type":"output","content":"#);
        serde_json::to_writer(&mut frame, &text)?;
        frame.push(b'}');
        self.text = text;
        Ok(String::from_utf8(frame).expect("serde_json writes UTF-8"))
    }

    /// Sends the beginning of a character whose end will not come.
    async fn send_rest(&mut self) -> Result<(), Left> {
        let mut rest = String::new();
        self.decoder.finish(&mut rest);
        if rest.is_empty() {
            return Ok(());
        }
        self.send_frame(&ConsoleFrame::Output { content: rest }).await
    }

    async fn send_frame(&mut self, frame: &ConsoleFrame) -> Result<(), Left> {
        self.send(Message::Text(wire::json(frame).into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Left> {
        if self.grant.is_revoked() {
            return Err(Left);
        }
        match timeout(SEND_WITHIN, self.sink.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Left),
        }
    }
}

/// The newest instance, if it has ended.
fn ended_iid(sandbox: &Sandbox) -> Option<Iid> {
    let dead = sandbox.instance.as_ref().filter(|one| one.phase == InstancePhase::Dead);
    dead.map(|instance| instance.iid.clone())
}
