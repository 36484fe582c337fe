//! The real pass, planner and store over the fake host: any history converges once the world calms
//! down, nothing is ever started over something, and a lost retry cannot hide.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::driver::Driver;
use crate::driver::fake::FakeDriver;
use crate::model::draft::read_spec;
use crate::model::tree::Faults;
use crate::model::{
    Hold, InstancePhase, Isolation, Limits, Owner, RestartPolicy, SandboxName, Spec, Time,
    admission,
};
use crate::reconcile::activity::Activity;
use crate::reconcile::console::Consoles;
use crate::reconcile::pass::pass_blocking;
use crate::reconcile::queue::Queue;
use crate::reconcile::world::Again;
use crate::store::edit::{self, Delete, Precondition, Put, Verb};
use crate::store::{Store, database_path};

/// A tiny deterministic generator: a failing seed is a complete bug report.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

const COMMANDS: [&[&str]; 5] =
    [&["sleep", "1"], &["true"], &["false"], &["no-such-program"], &["trap", "x"]];
const POLICIES: [&str; 3] = ["always", "on-failure", "never"];

fn name() -> SandboxName {
    SandboxName::try_from("web").unwrap()
}

fn spec(command: &[&str], policy: &str, memory: u64) -> Spec {
    let rules = admission::Rules {
        default_isolation: Isolation::Bubblewrap,
        floor: Isolation::Process,
        default_limits: Limits::DEFAULT,
        network_enabled: false,
        images: BTreeMap::new(),
        default_policy: RestartPolicy::OnFailure,
    };
    let written =
        json!({"command": command, "restart": {"policy": policy}, "limits": {"memory_mb": memory}});
    admission::admit(&read_spec(&mut Faults::default(), "", &written.into()), &rules).unwrap()
}

struct Bench {
    world: World,
    driver: Arc<FakeDriver>,
    now: Time,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Arc::new(FakeDriver::default());
        let world = world(&dir, &driver);
        Self { world, driver, now: Time(1_000_000), _dir: dir }
    }

    /// The daemon dies and another takes over: all that was in memory is gone.
    fn restart_daemon(&mut self) {
        self.world = world(&self._dir, &self.driver);
    }

    fn put(&self, spec: Spec) {
        let put = Put {
            name: name(),
            labels: BTreeMap::new(),
            spec,
            owner: Owner::Api,
            uid: None,
            precondition: Precondition::None,
        };
        let now = self.now;
        // Refused while it is being deleted, which is as it should be.
        let _ = self.world.store.write_blocking(move |core| edit::put(core, put, now)).unwrap();
    }

    fn power(&self, verb: Verb) {
        let now = self.now;
        let _ = self
            .world
            .store
            .write_blocking(move |core| edit::power(core, "web", verb, now))
            .unwrap();
    }

    fn delete(&self) {
        let (how, now) = (Delete { uid: None, keep_workspace: false, force: false }, self.now);
        let _ = self
            .world
            .store
            .write_blocking(move |core| edit::delete(core, "web", how, now))
            .unwrap();
    }

    fn pass(&mut self, passed_ms: u64) -> Again {
        self.now = Time(self.now.0 + passed_ms);
        self.driver.set_time(self.now);
        let again = pass_blocking(&self.world, &name(), self.now);
        // At every step: at most one instance runs, and it is the one the store knows of.
        let running = self.driver.running();
        assert!(running.len() <= 1, "{running:?}");
        let snapshot = self.world.store.snapshot();
        if let Some(iid) = running.first() {
            let instance = snapshot.sandboxes["web"].instance.as_ref().unwrap();
            assert_eq!(instance.iid, *iid, "an orphan");
            assert_ne!(instance.phase, InstancePhase::Dead, "recorded dead, and it runs");
        }
        again
    }

    /// One thing that may happen to a machine.
    fn misfortune(&mut self, dice: &mut Dice) {
        match dice.roll(12) {
            0..=2 => {
                let command = COMMANDS[usize::try_from(dice.roll(5)).unwrap()];
                let policy = POLICIES[usize::try_from(dice.roll(3)).unwrap()];
                self.put(spec(command, policy, 32 + dice.roll(2)));
            }
            3 => self.power(
                [Verb::Start, Verb::Stop, Verb::Kill, Verb::Restart, Verb::Pause, Verb::Resume]
                    [usize::try_from(dice.roll(6)).unwrap()],
            ),
            4 if dice.roll(3) == 0 => self.delete(),
            5 => self.driver.fail_next(u32::try_from(dice.roll(3)).unwrap()),
            6 => self.restart_daemon(),
            7..=9 => {
                for iid in self.driver.running() {
                    match dice.roll(4) {
                        0 => self.driver.exit(&iid, 0),
                        1 => self.driver.exit(&iid, 1),
                        2 => self.driver.kill_only_the_shim(&iid),
                        _ => self.driver.deafen(&iid),
                    }
                }
            }
            _ => (),
        }
    }
}

fn world(dir: &tempfile::TempDir, driver: &Arc<FakeDriver>) -> World {
    // Nothing of a fake is followed, so nothing is ever spawned on it.
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().unwrap());
    let (runtime, queue) = (&RUNTIME, Arc::new(Queue::default()));
    let fake: Arc<dyn Driver> = Arc::clone(driver) as Arc<dyn Driver>;
    World {
        store: Store::open(&database_path(dir.path())).unwrap(),
        drivers: [(Isolation::Bubblewrap, fake)].into(),
        unavailable: BTreeMap::new(),
        host: None,
        images: Arc::default(),
        boot_id: "boot".to_owned(),
        consoles: Arc::new(Consoles::new(queue, runtime.handle().clone(), 1, None)),
        sessions: Arc::default(),
        activity: Activity::default(),
        idle_freeze: None,
    }
}

#[test]
fn any_history_converges_once_the_world_calms_down() {
    for seed in 1..=60 {
        let mut dice = Dice(seed * 0x9E37_79B9);
        let mut bench = Bench::new();
        bench.put(spec(&["sleep", "1"], "always", 32));
        for _ in 0..60 {
            bench.misfortune(&mut dice);
            let passed = dice.roll(5_000);
            bench.pass(passed);
        }
        bench.driver.fail_next(0);
        let snapshot = bench.world.store.snapshot();
        if snapshot.sandboxes.get(&name()).is_some_and(|one| one.deletion.is_none()) {
            bench.put(spec(&["sleep", "1"], "always", 32));
        }
        // Once faults stop: a bounded number of looks, each when the last one asked for it.
        let mut looks = 0;
        loop {
            let again = bench.pass(1);
            looks += 1;
            assert!(looks < 200, "seed {seed} did not converge");
            match again {
                Again::Never => break,
                Again::Now => (),
                Again::In(span) if span.0 >= 60_000 => break,
                Again::In(span) => drop(bench.pass(span.0)),
            }
        }
        let snapshot = bench.world.store.snapshot();
        let Some(sandbox) = snapshot.sandboxes.get(&name()) else {
            assert_eq!(bench.driver.running(), [], "seed {seed}: deleted, and it runs");
            continue;
        };
        let held = matches!(sandbox.power.hold, Some(Hold::Stopped | Hold::Killed));
        assert_eq!(bench.driver.running().len(), usize::from(!held), "seed {seed}: {sandbox:?}");
        assert_eq!(sandbox.status.observed_generation, sandbox.generation, "seed {seed}");
        // And it stays: ten more looks do nothing.
        let (rv, starts) = (snapshot.rv, bench.driver.starts());
        for _ in 0..10 {
            bench.pass(1_000);
        }
        let after = bench.world.store.snapshot();
        assert_eq!(bench.driver.starts(), starts, "seed {seed}: it does not rest");
        let now = &after.sandboxes[&name()];
        assert!(after.rv <= rv + 1, "seed {seed}: its status flaps: {sandbox:#?} {now:#?}");
    }
}

#[test]
fn a_crash_of_the_daemon_after_the_intent_starts_nothing_twice() {
    let mut bench = Bench::new();
    bench.put(spec(&["sleep", "1"], "always", 32));
    // The start fails half way each time; the daemon dies right after.
    for _ in 0..5 {
        bench.driver.fail_next(1);
        bench.pass(1);
        bench.restart_daemon();
        bench.driver.fail_next(0);
        for _ in 0..4 {
            bench.pass(2_000);
        }
        for iid in bench.driver.running() {
            bench.driver.exit(&iid, 0);
        }
        bench.pass(1);
    }
    assert!(bench.driver.starts() >= 5);
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_tried_again_when_it_was_promised_and_not_at_the_resync() {
    let dir = tempfile::tempdir().unwrap();
    let driver = Arc::new(FakeDriver::default());
    let queue = Arc::new(Queue::default());
    let mut world = world(&dir, &driver);
    world.consoles =
        Arc::new(Consoles::new(Arc::clone(&queue), tokio::runtime::Handle::current(), 1, None));
    let world = Arc::new(world);
    driver.fail_next(1);
    let put = Put {
        name: name(),
        labels: BTreeMap::new(),
        spec: spec(&["sleep", "1"], "always", 32),
        owner: Owner::Api,
        uid: None,
        precondition: Precondition::None,
    };
    let store = world.store.clone();
    store.write_blocking(move |core| edit::put(core, put, Time(0))).unwrap().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let began = tokio::time::Instant::now();
    // The wall follows the paused clock, so that a back-off ends when its time has virtually passed.
    static BEGAN: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
    BEGAN.set(began).unwrap();
    fn clock() -> u64 {
        1_000_000 + u64::try_from(BEGAN.wait().elapsed().as_millis()).unwrap()
    }
    let task = tokio::spawn(run(Arc::clone(&world), queue, shutdown.clone(), clock));
    while driver.running().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(59), "the retry was lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    task.await.unwrap();
}
