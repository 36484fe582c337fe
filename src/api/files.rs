//! The directory of specs, the images, and readiness.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::caller::Caller;
use crate::api::{ApiError, Shared, list, wire};
use crate::store::files;

pub(super) async fn list(State(api): State<Shared>) -> Response {
    let files = api.store.snapshot().files.clone();
    list::answer("items", files.into_iter().map(|(path, record)| wire::file(&path, &record)), "")
}

/// Lets held removals go ahead.
pub(super) async fn confirm(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    let names = api.write_for(&caller, files::confirm).await?;
    api.watch.look().await;
    Ok(Json(json!({"confirmed": names})))
}

pub(super) async fn images(State(api): State<Shared>) -> Json<Value> {
    let rules = api.rules.get();
    let images: Vec<&crate::model::image::Image> = rules.images.values().collect();
    Json(json!({"items": images}))
}

/// Ready means that a write would be accepted.
pub(super) async fn ready(State(api): State<Shared>) -> (StatusCode, &'static str) {
    // After a failure an empty transaction proves nothing.
    let failed = api.store.fault().is_some();
    let probe = api.store.write(move |core| if failed { core.probe() } else { Ok(()) });
    match probe.await {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the store does not accept writes\n"),
    }
}
