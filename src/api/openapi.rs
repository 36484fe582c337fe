//! The OpenAPI document, served as it was written. A test holds it against the router.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

/// See `docs/` for prose; this is for programs.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT)
}
