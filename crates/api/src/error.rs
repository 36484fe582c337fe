//! What goes wrong, for people and for programs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use sodium_model::{Owner, Violation};

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For people, of 4 KiB at most.
    pub error: String,
    /// For programs.
    pub code: ErrorCode,
    /// With `invalid`: each fault, in the order in which they stand in what was sent. The first 50, and how many more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<Violation>")]
    pub violations: Option<Vec<Violation>>,
    /// With `stale`: the version that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub current: Option<String>,
    /// With `owned`: whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Owner")]
    pub owner: Option<Owner>,
    /// With `stdin_full`: bytes of the line that were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize")]
    pub taken: Option<usize>,
}

impl ErrorBody {
    pub fn new(error: impl Into<String>, code: ErrorCode) -> Self {
        let (violations, current, owner) = (None, None, None);
        Self { error: error.into(), code, violations, current, owner, taken: None }
    }
}

/// Why a request was not done, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// There is no such path or sandbox.
    NotFound,
    /// Neither a token nor a ticket that is good.
    Unauthorized,
    /// Another user than root and the daemon's own, at the local socket.
    Forbidden,
    /// It cannot be understood.
    BadRequest,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body is larger than 4 MiB.
    TooLarge,
    /// The body did not come in time.
    TooSlow,
    /// Asked more often than is served; see Retry-After.
    RateLimited,
    /// As many programs, streams or connections are open as there may be.
    TooMany,
    /// Well formed and wrong; see `violations`.
    Invalid,
    /// A start of what has no command.
    NoCommand,
    /// The name is taken.
    Exists,
    /// Its spec is somebody else's to edit.
    Owned,
    /// Somebody else was faster.
    Stale,
    /// It is being deleted.
    Terminating,
    /// The name is another incarnation's by now.
    Uid,
    /// It runs already.
    Running,
    /// It does not run.
    NotRunning,
    /// All together would be promised more than this host gives, or no host uid is free.
    NoRoom,
    /// There is nothing to go back to.
    NoCheckpoint,
    /// Something else is in the way; the error says what.
    Conflict,
    /// The changes since that version are not remembered: list again.
    Gone,
    /// It was tried and came to nothing; the error says why.
    Failed,
    /// The wait is over; what was asked for stays asked for, but a program that was run to its end was killed.
    TimedOut,
    /// The program has closed its input.
    StdinClosed,
    /// The program does not read its input; `taken` says how much it has.
    StdinFull,
    /// The program could not be started; the error says why.
    Refused,
    /// Its memory is being kept: try again in a moment.
    Keeping,
    /// It stands still until it is resumed.
    Paused,
    /// The helper of the program was killed, and the program with it.
    Lost,
    /// The store is busy or ends; nothing was changed.
    Busy,
    /// The disk is full; nothing was changed.
    DiskFull,
    /// The disk failed; nothing was changed.
    DiskFailed,
    /// The disk is mounted read-only; nothing was changed.
    ReadOnly,
    /// The daemon's own fault; its log says more.
    Internal,
}
