//! The loop as it runs in the daemon, with its queue and timers, on a clock that only waits.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::live::Live;
use crate::reconcile::activity::Activity;
use crate::reconcile::console::Consoles;
use crate::reconcile::meter::Meter;
use crate::reconcile::queue::Queue;
use crate::reconcile::turns::Turns;
use crate::reconcile::{World, run};
use crate::simulation::scene::{rules, spec, wish};
use crate::store::{Store, database_path, edit};
use sodium_model::{Isolation, Time};
use sodium_runtime::Driver;
use sodium_runtime::fake::FakeDriver;
use sodium_runtime::fake::machine::Machine;

/// Where the clock on the wall begins.
const BEGAN_AT: u64 = 1_000_000;

#[tokio::test(start_paused = true)]
async fn what_failed_is_tried_again_when_it_was_promised_and_not_at_the_resync() {
    let dir = tempfile::tempdir().unwrap();
    let machine: Arc<Mutex<Machine>> = Arc::default();
    machine.lock().unwrap().now = Time(BEGAN_AT);
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::hurried(Arc::clone(&machine)));
    let queue = Arc::new(Queue::default());
    let handle = tokio::runtime::Handle::current();
    let world = Arc::new(World {
        store: Store::open(&database_path(dir.path())).unwrap(),
        drivers: [(Isolation::Bubblewrap, driver)].into(),
        host: None,
        rules: Arc::new(Live::new(rules())),
        boot_id: "boot".to_owned(),
        consoles: Arc::new(Consoles::new(Arc::clone(&queue), handle, 1, None)),
        sessions: Arc::default(),
        activity: Activity::default(),
        meter: Meter::default(),
        turns: Turns::default(),
        idle_freeze: Live::default(),
    });
    let store = world.store.clone();
    let put = wish("web", spec(&["false"], "always", 32));
    store.write_blocking(move |core| edit::put(core, put, Time(0))).unwrap().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let began = tokio::time::Instant::now();
    // The wall follows the paused clock, so that a back-off ends when its time has virtually passed.
    static BEGAN: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
    BEGAN.set(began).unwrap();
    fn clock() -> u64 {
        BEGAN_AT + u64::try_from(BEGAN.wait().elapsed().as_millis()).unwrap()
    }
    let task = tokio::spawn(run(Arc::clone(&world), queue, shutdown.clone(), clock));
    while machine.lock().unwrap().truth.starts < 3 {
        assert!(began.elapsed() < Duration::from_secs(59), "the retry was lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shutdown.cancel();
    task.await.unwrap();
}
