//! Keeps sandboxes ready for images that ask for it: started ahead in the background, one at a time,
//! whenever there are fewer than the image says. They belong to nobody, so they are no sandbox's status
//! and no row of the store; a daemon that starts ends those of the one before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::reconcile::blocking;
use crate::reconcile::world::World;
use sodium_model::{Limits, admission};
use sodium_sys::error::chain;

/// Of all images together: each takes some 20 MiB.
const COUNT_MAX: usize = 32;
/// One that was claimed is replaced when whoever claimed it has had a moment to begin.
const MOMENT: Duration = Duration::from_millis(300);
/// What has died by itself is found missing so soon,
const AGAIN: Duration = Duration::from_secs(30);
/// and what could not be started is tried again after this, then after twice that, up to as long.
const RETRY: Duration = Duration::from_secs(1);

/// How many an image wants, and of which size.
type Wants = BTreeMap<String, (usize, Limits)>;

/// What images want to be started ahead. On a host that is drained, nothing.
fn wants(world: &World) -> Wants {
    if world.store.snapshot().drained {
        return Wants::new();
    }
    let rules = world.rules.get();
    let wanting = rules.images.iter().filter(|(_, image)| image.warm > 0);
    wanting
        .map(|(id, image)| (id.clone(), (image.warm, admission::limits_of(Some(image), &rules))))
        .collect()
}

/// Runs until shut down, and ends those that still wait: no other daemon could give them away, and none may follow.
pub async fn run(world: Arc<World>, shutdown: CancellationToken) {
    keep(&world, &shutdown).await;
    end_all(&world).await;
}

async fn end_all(world: &Arc<World>) {
    let world = Arc::clone(world);
    blocking(move || world.drivers.values().for_each(|driver| driver.discard_all())).await;
}

async fn keep(world: &Arc<World>, shutdown: &CancellationToken) {
    let mut commits = world.store.watch();
    let mut retry = RETRY;
    while !shutdown.is_cancelled() {
        let wants = wants(world);
        if wants.is_empty() {
            end_all(world).await;
            pause(shutdown, AGAIN).await;
            continue;
        }
        if let Some((image, limits)) = missing(world, &wants) {
            let (making, name) = (Arc::clone(world), image.clone());
            let made = blocking(move || match making.waiting() {
                Some(driver) => driver.warm_up(&name, &limits),
                None => Ok(()),
            });
            match made.await {
                Ok(()) => retry = RETRY,
                Err(error) => {
                    warn!(
                        image,
                        error = chain(&error),
                        "failed to pre-start a warm sandbox; retrying"
                    );
                    pause(shutdown, retry).await;
                    retry = AGAIN.min(2 * retry);
                }
            }
            continue;
        }
        // How the runtime works here may still be being found out.
        let known = world.waiting().is_some_and(|driver| driver.runtime().is_ok());
        let look = if known { AGAIN } else { RETRY };
        // A start is a commit. Each arm only waits.
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = timeout(look, commits.changed()) => if matches!(changed, Ok(Err(_))) { return },
        }
        pause(shutdown, MOMENT).await;
    }
}

async fn pause(shutdown: &CancellationToken, span: Duration) {
    tokio::select! {
        () = shutdown.cancelled() => (),
        () = sleep(span) => (),
    }
}

/// An image for which too few are ready.
fn missing(world: &World, wants: &Wants) -> Option<(String, Limits)> {
    let driver = world.waiting()?;
    driver.runtime().ok()?;
    let ready: usize = wants.keys().map(|image| driver.warm(image)).sum();
    if ready >= COUNT_MAX {
        return None;
    }
    let short = wants.iter().find(|(image, (count, _))| driver.warm(image) < *count)?;
    Some((short.0.clone(), short.1.1))
}
