//! Taking requests apart, strictly: what cannot be understood is said, and what is not known is a fault.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use serde_json::Value as Json;

use crate::api::ApiError;
use crate::model::tree::{Faults, Node};

/// The body, or why there is none.
pub(super) type Body = Result<Bytes, BytesRejection>;

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
