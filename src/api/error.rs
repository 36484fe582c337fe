//! Everything a request can fail with, as the client sees it: `{"error", "code", ...}`.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tracing::error;

use crate::reconcile::DriverError;
use crate::reconcile::exec::ExecError;
use crate::reconcile::link::InputError;
use crate::store::StoreError;
use crate::store::edit::Refusal;
use sodium_api::{ErrorBody, ErrorCode};
use sodium_model::text::bounded;
use sodium_model::{Span, Violation};
use sodium_sys::error::chain;

/// Bytes of the sentence an error is told in; the faults of a body are told one by one as well.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// One error for all handlers.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Not found")]
    NotFound,
    #[error("Unauthorized")]
    Unauthorized,
    /// Another user of this machine at the local socket.
    #[error(
        "the local socket serves root and the daemon's own user, not uid {0}; use the API with its token"
    )]
    Forbidden(u32),
    #[error("the local socket serves nobody in a sandbox")]
    Inside,
    /// Not JSON, not UTF-8, not a header that can be understood.
    #[error("{0}")]
    BadRequest(String),
    #[error("the body is larger than {} bytes", crate::api::BODY_BYTES_MAX)]
    TooLarge,
    /// The body did not come in time.
    #[error("the body was not there after {0}")]
    TooSlow(Span),
    /// Asked more often than is served.
    #[error("too many requests; the next one is served in {} ms", .0.as_millis().max(1))]
    TooFast(Duration),
    /// As many as there may be at once.
    #[error("too many open {0}: the limit is {1}")]
    TooMany(&'static str, usize),
    /// As many connections as there may be; this one is closed.
    #[error("too many connections are open")]
    Crowded,
    /// Well formed, and wrong.
    #[error("{}", list(.0))]
    Invalid(Vec<Violation>),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Conflict(String),
    /// What a watcher asked to go on from is forgotten.
    #[error("resource_version expired; list again and restart the watch")]
    Gone,
    /// It was done, and did not come to what was wanted.
    #[error("{0}")]
    Failed(String),
    #[error("{0} after {1} s; the operation is still in progress")]
    TimedOut(&'static str, u64),
    #[error("the program was ended after {0} s")]
    Overran(u64),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory of specs does not take what the API writes there.
    #[error("{verb} a spec file: {source}; nothing was changed")]
    Files {
        verb: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn list(violations: &[Violation]) -> String {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl ApiError {
    /// For people: bounded, whatever of a request it quotes.
    pub(super) fn message(&self) -> String {
        bounded(self.to_string(), MESSAGE_BYTES_MAX)
    }

    /// For a client: what is none of its business is in the log instead, once.
    pub(super) fn told(&self) -> String {
        if self.kind().0 == StatusCode::INTERNAL_SERVER_ERROR {
            error!(code = "internal", error = chain(self), "request failed");
            return "internal error; the daemon's log says more".to_owned();
        }
        self.message()
    }

    /// For programs.
    pub(super) fn code(&self) -> ErrorCode {
        self.kind().1
    }

    fn kind(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::Forbidden(_) | Self::Inside => (StatusCode::FORBIDDEN, ErrorCode::Forbidden),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge),
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, ErrorCode::TooSlow),
            Self::TooFast(_) => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited),
            Self::TooMany(..) => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooMany),
            Self::Crowded => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooMany),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Invalid),
            Self::Refused(refusal) => refused(refusal),
            Self::Conflict(_) => (StatusCode::CONFLICT, ErrorCode::Conflict),
            Self::Gone => (StatusCode::GONE, ErrorCode::Gone),
            Self::Failed(_) => (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Failed),
            Self::TimedOut(..) | Self::Overran(_) => {
                (StatusCode::GATEWAY_TIMEOUT, ErrorCode::TimedOut)
            }
            Self::Input(InputError::NotRunning) => (StatusCode::CONFLICT, ErrorCode::NotRunning),
            Self::Input(InputError::Closed) => (StatusCode::CONFLICT, ErrorCode::StdinClosed),
            Self::Input(InputError::Full { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::StdinFull)
            }
            Self::Exec(ExecError::NotRunning) => (StatusCode::CONFLICT, ErrorCode::NotRunning),
            Self::Exec(ExecError::Refused(_)) => (StatusCode::CONFLICT, ErrorCode::Refused),
            Self::Exec(ExecError::Keeping) => (StatusCode::CONFLICT, ErrorCode::Keeping),
            Self::Exec(ExecError::Paused) => (StatusCode::CONFLICT, ErrorCode::Paused),
            Self::Exec(ExecError::TooMany(_)) => {
                (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooMany)
            }
            Self::Driver(_) | Self::Exec(ExecError::Driver(_) | ExecError::Talk(_)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal)
            }
            Self::Store(StoreError::Busy | StoreError::Closed | StoreError::Damaged { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Busy)
            }
            Self::Store(StoreError::Full { .. }) => {
                (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::DiskFull)
            }
            Self::Store(StoreError::ReadOnly { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::ReadOnly)
            }
            Self::Store(StoreError::Io { .. } | StoreError::Lost { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::DiskFailed)
            }
            Self::Store(
                StoreError::Gone { .. }
                | StoreError::Sqlite { .. }
                | StoreError::Newer { .. }
                | StoreError::Corrupt { .. },
            ) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal),
            Self::Files { source, .. } => file_fault(source),
        }
    }
}

fn file_fault(source: &std::io::Error) -> (StatusCode, ErrorCode) {
    use std::io::ErrorKind;
    let is = |kind| source.kind() == kind;
    if is(ErrorKind::StorageFull) || is(ErrorKind::QuotaExceeded) {
        (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::DiskFull)
    } else if is(ErrorKind::ReadOnlyFilesystem) {
        (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::ReadOnly)
    } else {
        // Whatever else keeps a directory from being written is the disk's matter, and not a program's.
        (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::DiskFailed)
    }
}

fn refused(refusal: &Refusal) -> (StatusCode, ErrorCode) {
    match refusal {
        Refusal::NotFound => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
        Refusal::NoCommand => (StatusCode::BAD_REQUEST, ErrorCode::NoCommand),
        Refusal::Exists { .. } => (StatusCode::CONFLICT, ErrorCode::Exists),
        Refusal::Owned { .. } => (StatusCode::CONFLICT, ErrorCode::Owned),
        Refusal::Stale { .. } => (StatusCode::CONFLICT, ErrorCode::Stale),
        Refusal::Terminating { .. } => (StatusCode::CONFLICT, ErrorCode::Terminating),
        Refusal::Uid { .. } => (StatusCode::CONFLICT, ErrorCode::Uid),
        Refusal::Running { .. } => (StatusCode::CONFLICT, ErrorCode::Running),
        Refusal::NotRunning { .. } => (StatusCode::CONFLICT, ErrorCode::NotRunning),
        Refusal::NoRoom { .. } => (StatusCode::CONFLICT, ErrorCode::NoRoom),
        Refusal::NoCheckpoint { .. } => (StatusCode::CONFLICT, ErrorCode::NoCheckpoint),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        // Consumed here, so logged here, once; a client never sees our insides. A full disk is the
        // exception: whoever reads that can do something about it.
        let mut body = ErrorBody::new(self.told(), code);
        if let Self::Invalid(violations) = &self {
            body.violations = Some(violations.clone());
        }
        if let Self::Refused(Refusal::Stale { current, .. }) = &self {
            body.current = Some(current.clone());
        }
        if let Self::Refused(Refusal::Owned { owner, .. }) = &self {
            body.owner = Some(owner.clone());
        }
        if let Self::Input(InputError::Full { taken, .. }) = &self {
            body.taken = Some(*taken);
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Self::TooFast(wait) = self {
            headers.insert(RETRY_AFTER, (wait.as_secs() + 1).into());
        } else if let Self::Crowded = self {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_errors_do_not_leak() {
        let path: std::sync::Arc<std::path::Path> = std::path::Path::new("/secret").into();
        let error = ApiError::Store(StoreError::Gone { path });
        assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
