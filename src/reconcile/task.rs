//! The loop itself: takes names from the queue, hands each to the blocking pool, and puts it back
//! with the time of its next look. The only place that waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::reconcile::blocking;
use crate::reconcile::pass::pass_blocking;
use crate::reconcile::queue::Queue;
use crate::reconcile::world::{Again, World};
use crate::store::{ChangeKind, Store};
use sodium_model::{Deletion, Owner, Power, Sandbox, SandboxName, Time};
use sodium_sys::fault::{self, Bug};

/// Passes at once. They mostly wait for the disk and for shims; more would only crowd each other.
const PASS_COUNT_MAX: usize = 16;
/// Far enough away to mean that no timer is set.
const NO_TIMER: Duration = Duration::from_secs(86_400);

/// What people want of a sandbox: a change of anything else is our own doing.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    uid: uuid::Uuid,
    generation: u64,
    power: Power,
    deletion: Option<Deletion>,
    owner: Owner,
}

impl Wish {
    fn of(sandbox: &Sandbox) -> Self {
        Self {
            uid: sandbox.uid,
            generation: sandbox.generation,
            power: sandbox.power,
            deletion: sandbox.deletion,
            owner: sandbox.owner.clone(),
        }
    }
}

/// Runs until shut down, then lets the running passes end.
pub async fn run(
    world: Arc<World>,
    queue: Arc<Queue>,
    shutdown: CancellationToken,
    clock: fn() -> u64,
) {
    let mut commits = world.store.watch();
    let mut wishes = Wishes::default();
    wishes.enqueue_all(&world.store, &queue);
    let mut passes: JoinSet<(SandboxName, Again)> = JoinSet::new();
    loop {
        queue.beat();
        while passes.len() < PASS_COUNT_MAX
            && let Some(name) = queue.take(Instant::now())
        {
            let world = Arc::clone(&world);
            passes.spawn(async move {
                let (world, looked_at) = (world, name.clone());
                let again =
                    blocking(move || pass_blocking(&world, &looked_at, Time(clock()))).await;
                (name, again)
            });
        }
        let timer = queue.next_due().unwrap_or_else(|| Instant::now() + NO_TIMER);
        // All arms are cancel-safe: each only waits, and what it waits for is still there later.
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(done) = passes.join_next() => {
                let (name, again) = done.expect("a pass neither panics nor is cancelled");
                finish(&queue, &name, again, Instant::now());
            }
            changed = commits.changed() => match changed {
                Ok(()) => wishes.enqueue_changed(&world.store, &queue),
                Err(_) => break,
            },
            () = queue.wait() => (),
            () = sleep_until(timer), if passes.len() < PASS_COUNT_MAX => (),
        }
    }
    while passes.join_next().await.is_some() {}
}

/// Puts a name back with the time of its next look.
pub fn finish(queue: &Queue, name: &SandboxName, again: Again, now: Instant) {
    let next = match again {
        Again::Now | Again::Never => None,
        Again::In(_) if fault::has(Bug::LostRetry) => None,
        Again::In(span) => Some(now + span.duration()),
    };
    queue.done(name, next);
    if again == Again::Now {
        queue.push(name);
    }
}

/// What people were last known to want, and as of which commit.
#[derive(Debug, Default)]
pub struct Wishes {
    known: HashMap<SandboxName, Wish>,
    seen: u64,
    drained: bool,
}

impl Wishes {
    /// Everything, those first of which something may run.
    pub fn enqueue_all(&mut self, store: &Store, queue: &Queue) {
        let snapshot = store.snapshot();
        let (alive, dead): (Vec<_>, Vec<_>) =
            snapshot.sandboxes.values().partition(|sandbox| sandbox.live().is_some());
        for sandbox in alive.into_iter().chain(dead) {
            self.known.insert(sandbox.name.clone(), Wish::of(sandbox));
            queue.push(&sandbox.name);
        }
        (self.seen, self.drained) = (snapshot.rv, snapshot.drained);
    }

    /// Those whose wish changed since the last time.
    pub fn enqueue_changed(&mut self, store: &Store, queue: &Queue) {
        if store.snapshot().drained != self.drained {
            return self.enqueue_all(store, queue);
        }
        let Some(changes) = store.ring().since(self.seen) else {
            return self.enqueue_all(store, queue);
        };
        for change in changes {
            self.seen = self.seen.max(change.rv);
            let name = &change.sandbox.name;
            if change.kind == ChangeKind::Deleted {
                self.known.remove(name);
                // A file may wait for the name to become free.
                continue;
            }
            let wish = Wish::of(&change.sandbox);
            if self.known.get(name) != Some(&wish) {
                self.known.insert(name.clone(), wish);
                queue.push(name);
            }
        }
    }
}
