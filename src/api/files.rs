//! The directory of specs, the images, and readiness.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::caller::Caller;
use crate::api::{ApiError, Shared, list, wire};
use crate::store::files;
use sodium_api::{Confirmed, List};
use sodium_model::image::Image;

pub(super) async fn list(State(api): State<Shared>) -> Response {
    let files = api.store.snapshot().files.clone();
    list::answer("items", files.into_iter().map(|(path, record)| wire::file(path, &record)), "")
}

/// Lets held removals go ahead.
pub(super) async fn confirm(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Confirmed>, ApiError> {
    let confirmed = api.write_for(&caller, files::confirm).await?;
    api.watch.look().await;
    Ok(Json(Confirmed { confirmed }))
}

pub(super) async fn images(State(api): State<Shared>) -> Json<List<Image>> {
    Json(List { items: api.rules.get().images.values().cloned().collect() })
}

/// What one has found out is good for everybody who asks so soon after.
const READINESS_KEPT: Duration = Duration::from_millis(250);

/// Ready means that a write would be accepted. Anybody may ask, so it is tried for all of them together.
pub(super) async fn ready(State(api): State<Shared>) -> (StatusCode, &'static str) {
    let mut known = api.load.readiness.lock().await;
    let fresh = known.filter(|(at, _)| at.elapsed() < READINESS_KEPT);
    let is_ready = match fresh {
        Some((_, is_ready)) => is_ready,
        None => {
            // After a failure an empty transaction proves nothing.
            let failed = api.store.fault().is_some();
            let probe = api.store.write(move |core| if failed { core.probe() } else { Ok(()) });
            let is_ready = probe.await.is_ok();
            *known = Some((Instant::now(), is_ready));
            is_ready
        }
    };
    match is_ready {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the store does not accept writes\n"),
    }
}
