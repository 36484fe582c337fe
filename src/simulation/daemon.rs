//! One life of the daemon: its own store, queue and loop, one pass at a time, until it is killed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::desired::merge::{Merge, merge};
use crate::live::Live;
use crate::reconcile::World;
use crate::reconcile::activity::Activity;
use crate::reconcile::console::Consoles;
use crate::reconcile::meter::Meter;
use crate::reconcile::pass::pass_blocking;
use crate::reconcile::queue::Queue;
use crate::reconcile::task::{Wishes, finish};
use crate::reconcile::turns::Turns;
use crate::simulation::directory::Directory;
use crate::simulation::scene::{Scene, rules};
use crate::store::{Store, StoreError, database_path, files};
use sodium_model::{Isolation, Owner, Sandbox, SandboxName};
use sodium_runtime::Driver;
use sodium_runtime::fake::FakeDriver;
use sodium_runtime::fake::machine::What;
use sodium_sys::fault;

/// Shared with the hook that runs within a pass.
pub(super) type Shared = Rc<RefCell<Scene>>;

/// Nothing of a fake is followed, so nothing is ever spawned on it.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());
/// Where the clock of the queue begins.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What unwinds when a daemon is killed.
struct Killed;

/// See the module.
pub(super) struct Daemon {
    pub(super) world: World,
    queue: Arc<Queue>,
    wishes: Wishes,
    pid: u32,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Passed,
    Idle,
    Killed,
}

impl Daemon {
    /// Starts one. `None`: something holds the lock of the last one.
    pub(super) fn start(scene: &Shared, dir: &Path) -> Option<Self> {
        let mut scene = scene.borrow_mut();
        if scene.machine().daemon_locked() {
            scene.note("the daemon's lock is held");
            return None;
        }
        let store = Store::open_with(&database_path(dir), scene.uids()).unwrap();
        let fake = FakeDriver::on(scene.shared_machine(), store.epoch());
        let fake: Arc<dyn Driver> = Arc::new(fake);
        let queue = Arc::new(Queue::default());
        let handle = RUNTIME.handle().clone();
        let boot_id = format!("boot {}", scene.machine().boots);
        let pid = {
            let mut machine = scene.machine();
            let pid = machine.spawn(None, What::Daemon);
            machine.processes.get_mut(&pid).unwrap().holds_daemon = true;
            pid
        };
        let world = World {
            store: store.clone(),
            drivers: [(Isolation::Bubblewrap, fake)].into(),
            host: None,
            rules: Arc::new(Live::new(rules())),
            boot_id,
            consoles: Arc::new(Consoles::new(Arc::clone(&queue), handle, 1, None)),
            sessions: Arc::default(),
            activity: Activity::default(),
            meter: Meter::default(),
            turns: Turns::default(),
            idle_freeze: Live::default(),
        };
        let mut wishes = Wishes::default();
        wishes.enqueue_all(&store, &queue);
        scene.note(format!("daemon {} starts", store.epoch()));
        scene.store = Some(store);
        Some(Self { world, queue, wishes, pid })
    }

    /// Whether its process is still there: a reboot takes it along.
    pub(super) fn lives(&self, scene: &Scene) -> bool {
        let machine = scene.machine();
        machine.processes.get(&self.pid).is_some_and(|process| matches!(process.what, What::Daemon))
    }

    pub(super) fn kill(self, scene: &Shared) {
        let mut scene = scene.borrow_mut();
        scene.store = None;
        if self.lives(&scene) {
            scene.machine().processes.remove(&self.pid);
        }
        scene.note("the daemon is killed");
    }

    /// One pass, if anything is due.
    pub(super) fn turn(&mut self, scene: &Shared) -> Turn {
        self.hear(scene);
        self.wishes.enqueue_changed(&self.world.store, &self.queue);
        let Some(name) = self.queue.take(clock(&scene.borrow())) else { return Turn::Idle };
        let (world, now) = (&self.world, scene.borrow().now);
        let again = survive(scene, || pass_blocking(world, &name, now));
        let mut scene = scene.borrow_mut();
        let Some(again) = again.filter(|_| self.lives(&scene)) else { return Turn::Killed };
        scene.note(format!("pass of {name}: {again:?}"));
        finish(&self.queue, &name, again, clock(&scene));
        Turn::Passed
    }

    /// Shims tell that something is new. What is told may be lost.
    fn hear(&self, scene: &Shared) {
        let mut scene = scene.borrow_mut();
        let news = std::mem::take(&mut scene.machine().truth.news);
        let snapshot = self.world.store.snapshot();
        for sandbox in snapshot.sandboxes.values() {
            let heard = sandbox.live().is_some_and(|live| news.contains(&live.iid));
            let lose = scene.swarm.lose_news;
            if heard && !scene.dice.chance(lose) {
                self.queue.push(&sandbox.name);
            }
        }
    }

    /// A look at the directory and what follows, as the thread that watches it does.
    pub(super) fn scan(&mut self, scene: &Shared, complete: bool) -> Result<Turn, String> {
        let (scan, seen, now, wanted) = {
            let mut scene = scene.borrow_mut();
            let mut scan = scene.directory.scan();
            if !complete {
                let kept = scene.dice.roll(2) == 0;
                scan.read.retain(|path, _| (path == "x.yaml") == kept);
                scan.present.retain(|path| (path == "x.yaml") == kept);
            }
            // What is written meanwhile is not.
            scene.directory.unread.retain(|path| !scan.read.contains_key(path));
            scene.note(format!("scan, complete: {complete}"));
            (scan, scene.directory.clone(), scene.now, rules())
        };
        let store = self.world.store.clone();
        let before = store.snapshot();
        let input = Merge { scan: &scan, complete, snapshot: &before, rules: &wanted, now };
        let merged = merge(&input);
        let changes = merged.changes;
        let names: Vec<SandboxName> = changes.names().cloned().collect();
        let done = survive(scene, || {
            let mut left = BTreeSet::new();
            for slice in changes.slices(1) {
                left.extend(store.write_blocking(move |core| files::apply(core, slice, now))?);
            }
            Ok::<_, StoreError>(left)
        });
        for name in names {
            self.queue.push(&name);
        }
        let mut scene = scene.borrow_mut();
        for (name, after) in &self.world.store.snapshot().sandboxes {
            let was = before.sandboxes.get(name);
            if let Some(why) = was.and_then(|was| misjudged(&scene, &seen, was, after)) {
                return Err(why);
            }
        }
        let killed = done.is_none() || !self.lives(&scene);
        // What was not taken is as good as not read.
        let left: BTreeSet<String> = match done {
            Some(Ok(left)) => left,
            Some(Err(_)) | None => scan.read.keys().cloned().collect(),
        };
        scene.directory.unread.extend(left);
        scene.note("scanned");
        Ok(if killed { Turn::Killed } else { Turn::Passed })
    }

    /// When it next has something to do, if nothing happens: in milliseconds since the beginning.
    pub(super) fn next_due(&self) -> Option<u64> {
        let due = self.queue.next_due()?.saturating_duration_since(*BEGAN);
        Some(u64::try_from(due.as_millis()).unwrap())
    }
}

/// What a look at the files has done to a sandbox of theirs, and must not.
fn misjudged(scene: &Scene, seen: &Directory, before: &Sandbox, after: &Sandbox) -> Option<String> {
    let Owner::File(path) = &after.owner else { return None };
    let name = after.name.as_str();
    let newly = after.deletion.is_some() && before.deletion.is_none();
    let right = scene.confirmed || (!seen.away && !seen.declares(path, name));
    if newly && !right && !scene.deleted.contains(&after.uid) {
        return Some(format!("{name} was removed, and {path} still declares it"));
    }
    let Owner::File(was) = &before.owner else { return None };
    let moved = before.uid == after.uid && was != path;
    let has_it = seen.declares(was, name) && !seen.unread.contains(was);
    (moved && has_it).then(|| format!("{path} has {name}, which {was} still declares"))
}

fn clock(scene: &Scene) -> Instant {
    *BEGAN + Duration::from_millis(scene.elapsed_ms)
}

/// Does what a daemon does, with everything that can go wrong within. `None`: it was killed.
fn survive<T>(scene: &Shared, work: impl FnOnce() -> T) -> Option<T> {
    let within = Rc::clone(scene);
    let hook = Box::new(move |point: &'static str| {
        let mut scene = within.borrow_mut();
        let n = scene.points;
        scene.points += 1;
        let dice = &mut scene.dice;
        let rolls = [dice.roll(1000), dice.roll(1000), dice.roll(1000)];
        let often = |rate: u64, roll: u64| roll < rate;
        let boots = scene.machine().boots;
        if often(scene.swarm.meddle, rolls[0]) {
            scene.happen();
        }
        let rebooted = scene.machine().boots != boots;
        if rebooted || often(scene.swarm.die, rolls[1]) || scene.deaths.contains(&n) {
            scene.note(format!("killed at {point:?}, point {n}"));
            drop(scene);
            resume_unwind(Box::new(Killed));
        }
        let commit = point == "commit";
        let rate = if commit { scene.swarm.disk_full } else { scene.swarm.fail };
        let fails = often(rate, rolls[2]);
        if fails {
            scene.note(format!("fails at {point:?}"));
        }
        fails
    });
    let done = catch_unwind(AssertUnwindSafe(|| fault::with_hook(hook, work)));
    match done {
        Ok(done) => Some(done),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => resume_unwind(payload),
    }
}
