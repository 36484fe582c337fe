//! A host that is drained runs nothing, until somebody says otherwise. What is declared stays declared.

use axum::Json;
use axum::extract::{Extension, State};
use tokio::time::timeout;

use crate::api::caller::Caller;
use crate::api::request::Query;
use crate::api::{ApiError, Shared, wait};
use sodium_api::{Drain, WaitQuery};
use sodium_model::InstancePhase;

/// Stops everything, and with `?wait=` answers when nothing runs any more.
pub(super) async fn drain(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<Drain>, ApiError> {
    let within = wait::parse(query.wait.as_deref())?;
    let now = api.now();
    api.write_for(&caller, move |core| core.set_drained(true, now)).await?;
    if let Some(within) = within {
        let mut commits = api.store.watch();
        let quiet = async { while running(&api) > 0 && commits.changed().await.is_ok() {} };
        if timeout(within, quiet).await.is_err() {
            return Err(ApiError::TimedOut("some sandboxes have not ended", within.as_secs()));
        }
    }
    Ok(told(&api))
}

/// Lets everything run again that is declared to.
pub(super) async fn undrain(
    State(api): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Drain>, ApiError> {
    let now = api.now();
    api.write_for(&caller, move |core| core.set_drained(false, now)).await?;
    Ok(told(&api))
}

fn told(api: &Shared) -> Json<Drain> {
    Json(Drain { drained: api.store.snapshot().drained, running: running(api) })
}

/// How many are not gone yet, with all that they leave behind.
fn running(api: &Shared) -> usize {
    let snapshot = api.store.snapshot();
    let remains = |one: &sodium_model::Instance| one.phase != InstancePhase::Dead || !one.released;
    snapshot.sandboxes.values().filter(|one| one.instance.as_deref().is_some_and(remains)).count()
}
