//! Taking requests apart, strictly: what cannot be understood is said, and what is not known is a fault.

use std::ops::Deref;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tokio::time::timeout;

use crate::api::{ApiError, BODY_BYTES_MAX, Shared};
use sodium_model::tree::{Faults, Node};

/// Read away of a body that is refused, at most.
const READ_AWAY_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
const READ_AWAY_WITHIN: Duration = Duration::from_secs(5);

/// Largest body that is read by the worker that serves its request: a fraction of a millisecond's work.
const READ_HERE_BYTES_MAX: usize = 32 << 10;

/// The body, or why there is none.
pub(super) type Given = Result<Bytes, BytesRejection>;

/// What stands in the path, decoded. axum's own answers in plain text where it cannot be.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|error| ApiError::BadRequest(error.body_text()))
    }
}

/// What stands in the query, likewise.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(|error| ApiError::BadRequest(error.body_text()))
    }
}

impl<T> Deref for Query<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Hands on a request once all of its body is there, which may not take long, nor be large.
///
/// A body that says that it is too large is read away and refused: a client that is still sending would
/// otherwise see a broken connection instead of the reason.
pub(super) async fn gather(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, Body::empty())).await;
    }
    let length =
        parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > BODY_BYTES_MAX) {
        read_away(body).await;
        return ApiError::TooLarge.into_response();
    }
    let within = api.bounds.get().body_within;
    let read = axum::body::to_bytes(body, BODY_BYTES_MAX);
    let read = if within.0 > 0 {
        let Ok(read) = timeout(within.duration(), read).await else {
            return ApiError::TooSlow(within).into_response();
        };
        read
    } else {
        read.await
    };
    match read {
        Ok(bytes) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        // Broken off, which nobody hears, or longer than it said.
        Err(_) => ApiError::TooLarge.into_response(),
    }
}

async fn read_away(body: Body) {
    let drain = async {
        let (mut left, mut body) = (READ_AWAY_BYTES_MAX, body.into_data_stream());
        while let Some(Ok(bytes)) = body.next().await
            && bytes.len() <= left
        {
            left -= bytes.len();
        }
    };
    // Whoever sends more, or slower, may see the connection break.
    let _ = timeout(READ_AWAY_WITHIN, drain).await;
}

/// The bytes of a body.
pub(super) fn bytes(body: Given) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge,
        _ => ApiError::BadRequest(rejection.body_text()),
    })
}

/// A body of JSON; an empty one is an empty object, as old clients send it.
pub(super) async fn json(body: Given) -> Result<Json, ApiError> {
    let bytes = bytes(body)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Json::Object(serde_json::Map::new()));
    }
    take_apart(bytes.len(), move || serde_json::from_slice(&bytes))
        .await
        .map_err(|error| ApiError::BadRequest(format!("the body is not JSON: {error}")))
}

/// Does what takes as long as a body is large: beside the workers, if that is longer than the way there.
pub(super) async fn take_apart<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if length > READ_HERE_BYTES_MAX { crate::reconcile::blocking(work).await } else { work() }
}

/// Reads the fields of an object; all faults come back together.
pub(super) fn read<'n>(
    node: &'n Node,
    known: &[&str],
    field: impl FnMut(&mut Faults, &str, &str, &'n Node),
) -> Result<(), ApiError> {
    let mut faults = Faults::default();
    faults.fields("", node, known, field);
    if faults.is_empty() { Ok(()) } else { Err(ApiError::Invalid(faults.into_list())) }
}
