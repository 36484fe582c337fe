//! The OpenAPI document, made once of the types that are answered with.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

/// See `docs/` for prose; this is for programs.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| sodium_api::openapi::document().to_string());

pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}
