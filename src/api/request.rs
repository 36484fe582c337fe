//! Taking requests apart, strictly: what cannot be understood is said, and what is not known is a fault.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::Value as Json;

use crate::api::{ApiError, BODY_BYTES_MAX};
use crate::model::tree::{Faults, Node};

/// Read away of a body that is refused, at most.
const READ_AWAY_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
const READ_AWAY_WITHIN: Duration = Duration::from_secs(5);

/// The body, or why there is none.
pub(super) type Body = Result<Bytes, BytesRejection>;

/// A body that says that it is too large is read away and refused: a client that is still sending
/// would otherwise see a broken connection instead of the reason.
pub(super) async fn refuse_oversized(request: Request, next: Next) -> Response {
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_none_or(|length: usize| length <= BODY_BYTES_MAX) {
        return next.run(request).await;
    }
    let drain = async {
        let (mut left, mut body) = (READ_AWAY_BYTES_MAX, request.into_body().into_data_stream());
        while let Some(Ok(bytes)) = body.next().await
            && bytes.len() <= left
        {
            left -= bytes.len();
        }
    };
    // Whoever sends more, or slower, may see the connection break.
    let _ = tokio::time::timeout(READ_AWAY_WITHIN, drain).await;
    ApiError::TooLarge.into_response()
}

/// The bytes of a body.
pub(super) fn bytes(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge,
        _ => ApiError::BadRequest(rejection.body_text()),
    })
}

/// A body of JSON; an empty one is an empty object, as old clients send it.
pub(super) fn json(body: Body) -> Result<Json, ApiError> {
    let bytes = bytes(body)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Json::Object(serde_json::Map::new()));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::BadRequest(format!("the body is not JSON: {error}")))
}

/// Reads the fields of an object; all faults come back together.
pub(super) fn read<'n>(
    node: &'n Node,
    known: &[&str],
    field: impl FnMut(&mut Faults, &str, &str, &'n Node),
) -> Result<(), ApiError> {
    let mut faults = Faults::default();
    faults.fields("", node, known, field);
    if faults.0.is_empty() { Ok(()) } else { Err(ApiError::Invalid(faults.0)) }
}
