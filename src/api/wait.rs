//! Waiting for what becomes of a wish. The wish is durable already: giving up waiting changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::api::{ApiError, Shared};
use crate::reconcile::link::InputError;
use sodium_model::plan::report::PAUSED;
use sodium_model::{ConditionType, ExitKind, InstancePhase, Sandbox, SandboxName, Span, Violation};

/// How long a start may take before its client is told to look for itself.
pub(super) const START_WITHIN: Duration = Duration::from_secs(30);

/// Nobody waits longer; the wish is durable anyway.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// `?wait=30s`, `?wait=1` for the default, nothing for not waiting.
pub(super) fn parse(text: Option<&str>) -> Result<Option<Duration>, ApiError> {
    match text {
        None | Some("0" | "false") => Ok(None),
        Some("1" | "true" | "") => Ok(Some(START_WITHIN)),
        Some(text) => match Span::parse(text) {
            Ok(span) => Ok(Some(span.duration().min(WAIT_MAX))),
            Err(error) => {
                let violation =
                    Violation::new("wait", format!("{text:?} is not a duration: {error}"));
                Err(ApiError::Invalid(vec![violation]))
            }
        },
    }
}

/// Waits until `done` has an answer about the sandbox, which may be gone by then.
pub(super) async fn until<T>(
    api: &Shared,
    name: &SandboxName,
    within: Duration,
    (what, done): (&'static str, impl Fn(Option<&Arc<Sandbox>>) -> Option<T>),
) -> Result<T, ApiError> {
    let deadline = Instant::now() + within;
    let mut commits = api.store.watch();
    loop {
        if let Some(answer) = done(commits.borrow_and_update().sandboxes.get(name)) {
            return Ok(answer);
        }
        match timeout_at(deadline, commits.changed()).await {
            Ok(Ok(())) => (),
            Ok(Err(_)) => return Err(crate::store::StoreError::Closed.into()),
            Err(_) => return Err(ApiError::TimedOut(what, within.as_secs())),
        }
    }
}

/// Waits until the run that was asked for runs, or has come to nothing.
pub(super) async fn started(
    api: &Shared,
    wish: &Sandbox,
    within: Duration,
) -> Result<(), ApiError> {
    let (uid, request, generation) = (wish.uid, wish.power.request, wish.generation);
    let answer = move |now: Option<&Arc<Sandbox>>| start_answer(now, uid, request, generation);
    until(api, &wish.name, within, ("not started", answer)).await?
}

fn start_answer(
    now: Option<&Arc<Sandbox>>,
    uid: Uuid,
    request: u64,
    generation: u64,
) -> Option<Result<(), ApiError>> {
    let Some(now) = now.filter(|now| now.uid == uid) else {
        return Some(Err(ApiError::NotFound));
    };
    let run =
        now.instance.as_ref().filter(|one| one.request >= request && one.generation >= generation);
    if let Some(run) = run {
        return match (run.phase, run.exit.as_ref().map(|exit| (&exit.kind, exit.summary()))) {
            (InstancePhase::Starting, _) => None,
            (
                InstancePhase::Dead,
                Some((ExitKind::StartFailed { .. } | ExitKind::Lost { .. }, why)),
            ) => Some(Err(ApiError::Failed(why))),
            (InstancePhase::Running | InstancePhase::Stopping | InstancePhase::Dead, _) => {
                Some(Ok(()))
            }
        };
    }
    // It was looked at and will not start: refused, or the wish was taken back.
    let looked =
        now.status.observed_request >= request && now.status.observed_generation >= generation;
    let why = now.status.conditions.iter().find(|one| one.kind == ConditionType::Ready);
    (looked && now.live().is_none()).then(|| {
        Err(ApiError::Failed(why.map_or_else(String::new, |condition| condition.message.clone())))
    })
}

/// Waits until nothing of it runs.
pub(super) async fn stopped(
    api: &Shared,
    wish: &Sandbox,
    within: Duration,
) -> Result<(), ApiError> {
    let uid = wish.uid;
    let down = move |now: Option<&Arc<Sandbox>>| {
        let up = now.is_some_and(|now| now.uid == uid && now.live().is_some());
        (!up).then_some(())
    };
    until(api, &wish.name, within, ("not stopped", down)).await
}

/// Waits until it stands still, or does no longer, as asked; or does not run at all.
pub(super) async fn stands(
    api: &Shared,
    wish: &Sandbox,
    within: Duration,
    still: bool,
) -> Result<(), ApiError> {
    let uid = wish.uid;
    let settled = move |now: Option<&Arc<Sandbox>>| {
        let Some(now) = now.filter(|now| now.uid == uid && now.live().is_some()) else {
            return Some(if still { Err(InputError::NotRunning.into()) } else { Ok(()) });
        };
        let running = now.status.conditions.iter().find(|one| one.kind == ConditionType::Running);
        let stands = running.is_some_and(|running| running.reason == PAUSED);
        (stands == still).then_some(Ok(()))
    };
    until(api, &wish.name, within, ("not settled", settled)).await?
}

/// Waits until this incarnation is gone.
pub(super) async fn deleted(
    api: &Shared,
    wish: &Sandbox,
    within: Duration,
) -> Result<(), ApiError> {
    let uid = wish.uid;
    let gone = move |now: Option<&Arc<Sandbox>>| now.is_none_or(|now| now.uid != uid).then_some(());
    until(api, &wish.name, within, ("not deleted", gone)).await
}

/// How long a stop may take: its grace, and some for the end.
pub(super) fn stop_within(sandbox: &Sandbox) -> Duration {
    sandbox.spec.stop.grace.duration() + Duration::from_secs(20)
}
