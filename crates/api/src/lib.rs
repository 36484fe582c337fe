//! The wire: every request, answer, frame and error of the API as a type, and the documents that are made of them.
//!
//! The daemon answers with these types and the command line reads them, so that there is one contract and no copy of
//! it. A doc line here is read by users: it becomes the description in the OpenAPI document and in the schema for
//! editors. Nothing here decides anything, and what a request may say is judged by `sodium_model`, which knows the
//! places of all faults; the request types say the same as far as a schema can.
//!
//! ```text
//!   document.rs              what may be declared: YAML in files, JSON over REST
//!   sandbox.rs ledger.rs explain.rs apply.rs host.rs exec.rs    bodies of /v1
//!   seed.rs                  bodies of the first daemon's paths
//!   console.rs stream.rs     frames of WebSockets, and lines of what is followed
//!   query.rs error.rs        parameters, and everything that goes wrong
//!   routes.rs                the table of all routes  -->  openapi.rs: the document
//! ```

mod apply;
mod console;
mod document;
mod error;
mod exec;
mod explain;
mod host;
mod ledger;
pub mod openapi;
mod query;
mod routes;
mod sandbox;
mod schema;
mod seed;
mod stream;

pub use apply::{Action, Applied, Apply, Plan, PlannedStep, ValueChange};
pub use console::{ConsoleFrame, ConsoleInput};
pub use document::{
    ApiVersion, BackoffDraft, Document, Kind, LimitsDraft, MetadataDraft, PutDocument, PutMetadata,
    RestartDraft, SpecDraft, StopDraft,
};
pub use error::{ErrorBody, ErrorCode};
pub use exec::{ExecAnswer, ExecFrame, ExecInput, ExecRequest, ExecSocketRequest};
pub use explain::{Decided, Explained, FieldEdit, Seen};
pub use host::{Confirmed, Drain, Health, HealthStatus, SpecFile, Ticket};
pub use ledger::{Ledger, LedgerLimit};
pub use query::{
    ApplyQuery, ConsoleQuery, DeleteQuery, EventsQuery, Flag, ListQuery, LogsQuery, PowerVerb,
    TicketQuery, VerbQuery, WaitQuery,
};
pub use routes::{Access, Answer, Body, Header, Make, Method, ROUTES, Route};
pub use sandbox::{
    Checkpoint, Input, Instance, List, Metadata, Resize, Sandbox, SandboxList, Status, Success,
    Transfer,
};
pub use schema::editor;
pub use seed::{
    CreateSandbox, SeedAnswer, SeedEnd, SeedLimits, SeedList, SeedSandbox, SeedStatus,
    StartCommand, Stats,
};
pub use stream::{EventLine, GapRange, LogLine, Stream, WatchEvent};
