//! The table of all routes: what each is for, what it takes, what it answers, and what can go wrong.
//!
//! A test holds it against the router, and others hold the answers of a real daemon against it.

use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::{
    Apply, ApplyQuery, Confirmed, ConsoleFrame, ConsoleInput, ConsoleQuery, CreateSandbox,
    DeleteQuery, Drain, EventLine, EventsQuery, ExecAnswer, ExecFrame, ExecInput, ExecRequest,
    ExecSocketRequest, Explained, Health, Input, Ledger, List, ListQuery, LogLine, LogsQuery, Plan,
    PutDocument, Resize, Sandbox, SandboxList, SeedAnswer, SeedList, SpecFile, StartCommand,
    Success, Ticket, TicketQuery, Transfer, VerbQuery, WaitQuery, WatchEvent,
};
use sodium_model::Event;
use sodium_model::image::Image;

/// How a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    /// As OpenAPI has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }
}

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever has the token.
    Token,
    /// A WebSocket: whoever has the token or a ticket, which may stand in the query.
    Socket,
    /// Anybody.
    Open,
}

/// The schema of a type.
pub type Make = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What a request is answered with when it is done.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub status: u16,
    pub means: &'static str,
    pub media: &'static str,
    /// What it says; nothing where it is text or bytes. Of a WebSocket, what each frame of text says.
    pub schema: Option<Make>,
}

/// What a request says.
#[derive(Debug, Clone, Copy)]
pub struct Body {
    pub media: &'static str,
    pub schema: Option<Make>,
    /// Whether nothing at all will do as well.
    pub is_optional: bool,
}

/// What a request may say in a header.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub name: &'static str,
    pub means: &'static str,
    /// The one value that it may have, where there is but one.
    pub value: Option<&'static str>,
}

/// One way to ask for something.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub id: &'static str,
    pub method: Method,
    pub path: &'static str,
    pub summary: &'static str,
    pub access: Access,
    pub query: Option<Make>,
    /// Each that is looked at.
    pub headers: &'static [Header],
    pub body: Option<Body>,
    /// What a client says once this is a WebSocket.
    pub frames: &'static [Make],
    pub answers: &'static [Answer],
    /// Statuses of what goes wrong, beside those that follow from the rest.
    pub errors: &'static [u16],
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const LINES: &str = "application/x-ndjson";
const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain";

/// What a change of what is declared can fail with: the daemon's own fault, and a full disk.
const INTERNAL: u16 = 500;
const DISK_FULL: u16 = 507;
/// The wait is over.
const TIMED_OUT: u16 = 504;
const CONFLICT: u16 = 409;

const fn ask(id: &'static str, method: Method, path: &'static str, summary: &'static str) -> Route {
    Route {
        id,
        method,
        path,
        summary,
        access: Access::Token,
        query: None,
        headers: &[],
        body: None,
        frames: &[],
        answers: &[],
        errors: &[],
    }
}

const fn get(id: &'static str, path: &'static str, summary: &'static str) -> Route {
    ask(id, Method::Get, path, summary)
}

const fn put(id: &'static str, path: &'static str, summary: &'static str) -> Route {
    ask(id, Method::Put, path, summary)
}

const fn post(id: &'static str, path: &'static str, summary: &'static str) -> Route {
    ask(id, Method::Post, path, summary)
}

const fn delete(id: &'static str, path: &'static str, summary: &'static str) -> Route {
    ask(id, Method::Delete, path, summary)
}

impl Route {
    const fn query(mut self, query: Make) -> Self {
        self.query = Some(query);
        self
    }

    const fn headers(mut self, headers: &'static [Header]) -> Self {
        self.headers = headers;
        self
    }

    /// A body of JSON that has to be there.
    const fn body(mut self, schema: Make) -> Self {
        self.body = Some(Body { media: JSON, schema: Some(schema), is_optional: false });
        self
    }

    /// A body of JSON, or none.
    const fn body_or_none(mut self, schema: Make) -> Self {
        self.body = Some(Body { media: JSON, schema: Some(schema), is_optional: true });
        self
    }

    /// A text, which may be empty.
    const fn text_body(mut self, media: &'static str) -> Self {
        self.body = Some(Body { media, schema: None, is_optional: true });
        self
    }

    const fn answers(mut self, answers: &'static [Answer]) -> Self {
        self.answers = answers;
        self
    }

    const fn errors(mut self, errors: &'static [u16]) -> Self {
        self.errors = errors;
        self
    }

    const fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    const fn socket(mut self, frames: &'static [Make]) -> Self {
        self.access = Access::Socket;
        self.frames = frames;
        self
    }
}

const fn header(name: &'static str, means: &'static str, value: Option<&'static str>) -> Header {
    Header { name, means, value }
}

const fn ok(schema: Make) -> Answer {
    Answer { status: 200, means: "Done.", media: JSON, schema: Some(schema) }
}

const fn created(schema: Make) -> Answer {
    Answer { status: 201, means: "Created.", media: JSON, schema: Some(schema) }
}

const fn lines(means: &'static str, schema: Make) -> Answer {
    Answer { status: 200, means, media: LINES, schema: Some(schema) }
}

const fn text(status: u16, means: &'static str, media: &'static str) -> Answer {
    Answer { status, means, media, schema: None }
}

const fn switched(schema: Option<Make>) -> Answer {
    Answer { status: 101, means: "It is a WebSocket from now on.", media: "", schema }
}

/// All of them, in the order of the document.
pub static ROUTES: &[Route] = &[
    get("listSandboxes", "/v1/sandboxes", "List sandboxes, or follow them with `?watch=1`")
        .query(of::<ListQuery>)
        .answers(&[ok(of::<SandboxList>), lines("Changes, one a line.", of::<WatchEvent>)])
        .errors(&[410]),
    get("showSandbox", "/v1/sandboxes/{name}", "Show a sandbox").answers(&[ok(of::<Sandbox>)]),
    put("putSandbox", "/v1/sandboxes/{name}", "Create a sandbox, or replace its spec")
        .headers(&[
            header("If-Match", "Only if this is the version that there is, as ETag had it.", None),
            header("If-None-Match", "Only create.", Some("*")),
        ])
        .body(of::<PutDocument>)
        .answers(&[ok(of::<Sandbox>), created(of::<Sandbox>)])
        .errors(&[CONFLICT, INTERNAL, DISK_FULL]),
    delete("deleteSandbox", "/v1/sandboxes/{name}", "Delete a sandbox")
        .query(of::<DeleteQuery>)
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT, 422, TIMED_OUT, INTERNAL, DISK_FULL]),
    get("explainSandbox", "/v1/sandboxes/{name}/explain", "Say why a sandbox is as it is")
        .answers(&[ok(of::<Explained>)]),
    get(
        "showLimits",
        "/v1/sandboxes/{name}/limits",
        "Show what became of each limit and each wall",
    )
    .answers(&[ok(of::<Ledger>)]),
    get("readLogs", "/v1/sandboxes/{name}/logs", "Read a sandbox's console")
        .query(of::<LogsQuery>)
        .answers(&[
            text(200, "What it wrote; with `format=json` in lines.", BYTES),
            lines("What it wrote; with `format=json` in lines.", of::<LogLine>),
        ]),
    post("transferSandbox", "/v1/sandboxes/{name}/transfer", "Give a sandbox another owner")
        .body(of::<Transfer>)
        .answers(&[ok(of::<Sandbox>)])
        .errors(&[CONFLICT, INTERNAL, DISK_FULL]),
    post("runProgram", "/v1/sandboxes/{name}/exec", "Run a program in what runs, to its end")
        .body(of::<ExecRequest>)
        .answers(&[ok(of::<ExecAnswer>)])
        .errors(&[CONFLICT, INTERNAL, TIMED_OUT]),
    get("openProgram", "/v1/sandboxes/{name}/exec", "Run a program in what runs, over a WebSocket")
        .socket(&[of::<ExecSocketRequest>, of::<ExecInput>])
        .answers(&[switched(Some(of::<ExecFrame>))]),
    post(
        "makeTicket",
        "/v1/sandboxes/{name}/ticket",
        "Make a ticket for one WebSocket, good for 30 s",
    )
    .query(of::<TicketQuery>)
    .answers(&[ok(of::<Ticket>)])
    .errors(&[CONFLICT]),
    post("sendInput", "/v1/sandboxes/{name}/input", "Send a line to what runs")
        .body(of::<Input>)
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT]),
    post("resizeTerminal", "/v1/sandboxes/{name}/resize", "Give the terminal another size")
        .body(of::<Resize>)
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT]),
    post("power", "/v1/sandboxes/{name}/{verb}", "Ask for a power verb, whoever may edit the spec")
        .query(of::<VerbQuery>)
        .answers(&[ok(of::<Sandbox>), created(of::<Sandbox>)])
        .errors(&[CONFLICT, 422, TIMED_OUT, INTERNAL, DISK_FULL]),
    post(
        "apply",
        "/v1/apply",
        "Create or change every document of a YAML text, or say what would change",
    )
    .query(of::<ApplyQuery>)
    .text_body("application/yaml")
    .answers(&[ok(of::<Apply>)])
    .errors(&[CONFLICT, INTERNAL, DISK_FULL]),
    get("plan", "/v1/plan", "Say what the loop would do next, and why").answers(&[ok(of::<Plan>)]),
    get("listEvents", "/v1/events", "List what happened, oldest first, or follow it")
        .query(of::<EventsQuery>)
        .answers(&[ok(of::<List<Event>>), lines("Events, one a line.", of::<EventLine>)]),
    post("drain", "/v1/drain", "Stop every sandbox, and start none")
        .query(of::<WaitQuery>)
        .answers(&[ok(of::<Drain>)])
        .errors(&[422, TIMED_OUT, INTERNAL, DISK_FULL]),
    delete("undrain", "/v1/drain", "Let everything run again that is declared to")
        .answers(&[ok(of::<Drain>)])
        .errors(&[INTERNAL, DISK_FULL]),
    get("listFiles", "/v1/files", "List the files of specs, and what is wrong with them")
        .answers(&[ok(of::<List<SpecFile>>)]),
    post(
        "confirmRemovals",
        "/v1/files/confirm",
        "Confirm deletions held back by the mass-deletion guard",
    )
    .answers(&[ok(of::<Confirmed>)])
    .errors(&[INTERNAL, DISK_FULL]),
    get("listImages", "/v1/images", "List the images").answers(&[ok(of::<List<Image>>)]),
    get("document", "/v1/openapi.json", "This document")
        .open()
        .answers(&[ok(of::<serde_json::Map<String, serde_json::Value>>)]),
    get("seedList", "/sandboxes", "List sandboxes, flat").answers(&[ok(of::<SeedList>)]),
    post("seedCreate", "/sandboxes", "Create a sandbox that does not run yet")
        .body_or_none(of::<CreateSandbox>)
        .answers(&[ok(of::<SeedAnswer>)])
        .errors(&[CONFLICT, INTERNAL, DISK_FULL]),
    get("seedShow", "/sandboxes/{id}", "Show a sandbox, flat, with what it uses")
        .answers(&[ok(of::<SeedAnswer>)]),
    delete(
        "seedDelete",
        "/sandboxes/{id}",
        "Kill and delete a sandbox with its files; answers once it is gone",
    )
    .answers(&[ok(of::<Success>)])
    .errors(&[CONFLICT, INTERNAL, TIMED_OUT, DISK_FULL]),
    post("seedStart", "/sandboxes/{id}/start", "Start a sandbox; answers once it runs")
        .body_or_none(of::<StartCommand>)
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT, INTERNAL, TIMED_OUT, DISK_FULL]),
    post("seedStop", "/sandboxes/{id}/stop", "Stop a sandbox; answers once it has ended")
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT, INTERNAL, TIMED_OUT, DISK_FULL]),
    post("seedKill", "/sandboxes/{id}/kill", "Kill a sandbox; answers once it has ended")
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT, INTERNAL, TIMED_OUT, DISK_FULL]),
    post("seedInput", "/sandboxes/{id}/input", "Send a line to what runs")
        .body(of::<Input>)
        .answers(&[ok(of::<Success>)])
        .errors(&[CONFLICT]),
    get("openNoConsole", "/console", "A WebSocket that names no sandbox is closed with code 4001")
        .open()
        .answers(&[switched(None)])
        .errors(&[400]),
    get("openConsole", "/console/{id}", "A sandbox's console, over a WebSocket")
        .socket(&[of::<ConsoleInput>])
        .query(of::<ConsoleQuery>)
        .answers(&[switched(Some(of::<ConsoleFrame>))]),
    get("health", "/health", "How the daemon is").open().answers(&[ok(of::<Health>)]),
    get("metrics", "/metrics", "What runs and what it uses, for Prometheus").answers(&[text(
        200,
        "Text of version 0.0.4.",
        TEXT,
    )]),
    get("alive", "/healthz", "Whether the daemon answers")
        .open()
        .answers(&[text(200, "It does.", TEXT)]),
    get("ready", "/readyz", "Whether a change would be taken")
        .open()
        .answers(&[text(200, "It would.", TEXT), text(503, "It would not.", TEXT)]),
];
