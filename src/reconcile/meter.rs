//! Reads what running sandboxes use, and says it when a limit bites or is near. Those that do nothing are read less
//! and less often, and what is read is kept for whoever asks.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::reconcile::blocking;
use crate::reconcile::link::Command;
use crate::reconcile::world::World;
use sodium_model::plan::alarm::{Alarm, Watch};
use sodium_model::{DiskReading, Iid, Instance, Reading, Sandbox, Span, Time, Verdict};
use sodium_sys::error::chain;

/// One that is busy is read this often,
const PERIOD_MIN: Span = Span::seconds(2);
/// and one that does nothing at last this seldom.
const PERIOD_MAX: Span = Span::seconds(60);
/// With many that are busy, all of them together cost no more than about a hundredth of a cpu.
const PERIOD_EACH_MS: u64 = 4;
/// Less cpu than this per mille is nothing.
const IDLE_CPU_PER_MILLE: u64 = 5;
/// Files that nothing but we count are counted this often.
const COUNT_EVERY: Span = Span::seconds(60);

/// What is known of all that runs.
#[derive(Debug, Default)]
pub struct Meter {
    seen: Mutex<HashMap<Uuid, Seen>>,
    /// Sandboxes whose files take more than they may, and why that is so.
    over: Mutex<HashMap<Uuid, String>>,
}

#[derive(Debug)]
struct Seen {
    iid: Iid,
    watch: Watch,
    read_at: Time,
    cpu_usec: u64,
    period: Span,
    counted_at: Time,
}

impl Meter {
    /// Why the files of a sandbox take more than they may. What is not running is counted again, since only that
    /// shows that somebody has removed some.
    pub(super) fn over(&self, world: &World, sandbox: &Sandbox) -> Option<String> {
        let last = self.lock_over().get(&sandbox.uid).cloned()?;
        if sandbox.live().is_some() {
            return Some(last);
        }
        self.count(world, sandbox)
    }

    fn count(&self, world: &World, sandbox: &Sandbox) -> Option<String> {
        let (host, most) = (world.host.as_ref()?, sandbox.spec.limits.disk_mb);
        let limited = (most > 0).then_some(most);
        let counted = limited.map(|most| host.workspaces.excess(sandbox.uid, most)).transpose();
        let over = match counted {
            Ok(over) => over.flatten(),
            // What keeps us from counting says nothing of what there is to count.
            Err(error) => {
                warn!(sandbox = %sandbox.name, error = chain(&error), "files not counted");
                return self.lock_over().get(&sandbox.uid).cloned();
            }
        };
        match &over {
            Some(why) => drop(self.lock_over().insert(sandbox.uid, why.clone())),
            None => drop(self.lock_over().remove(&sandbox.uid)),
        }
        over
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Seen>> {
        self.seen.lock().expect("nobody panics while reading")
    }

    fn lock_over(&self) -> MutexGuard<'_, HashMap<Uuid, String>> {
        self.over.lock().expect("nobody panics while counting")
    }
}

/// Runs until shut down.
pub async fn run(world: Arc<World>, shutdown: CancellationToken, clock: fn() -> u64) {
    let mut counting: Option<JoinHandle<()>> = None;
    loop {
        // Both arms only wait.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(PERIOD_MIN.0)) => (),
        }
        let reading = Arc::clone(&world);
        let may_count = counting.as_ref().is_none_or(JoinHandle::is_finished);
        let due = blocking(move || read_all(&reading, Time(clock()), may_count)).await;
        if !due.is_empty() {
            // A job of its own: how many files there are is the tenants' to say, and keeps nobody's alarm waiting.
            let world = Arc::clone(&world);
            counting = Some(tokio::spawn(blocking(move || count_all(&world, &due))));
        }
    }
}

fn count_all(world: &World, due: &[Arc<Sandbox>]) {
    for sandbox in due {
        // Its limit may have been raised while others were counted.
        let snapshot = world.store.snapshot();
        let now = snapshot.sandboxes.get(&sandbox.name).filter(|now| now.uid == sandbox.uid);
        if now.is_some_and(|now| world.meter.count(world, now).is_some()) {
            world.consoles.look_at(&sandbox.name);
        }
    }
}

/// Returns whose files are to be counted, if anybody's may be.
pub(super) fn read_all(world: &World, now: Time, may_count: bool) -> Vec<Arc<Sandbox>> {
    if let Some(host) = &world.host {
        host.workspaces.volumes.note_room();
    }
    let snapshot = world.store.snapshot();
    let running: Vec<_> = snapshot
        .sandboxes
        .values()
        .filter_map(|sandbox| Some((sandbox, sandbox.live()?)))
        .filter(|(_, instance)| instance.started_at.is_some())
        .collect();
    let alive: HashSet<Uuid> = running.iter().map(|(sandbox, _)| sandbox.uid).collect();
    world.meter.lock().retain(|uid, _| alive.contains(uid));
    let busy = world.meter.lock().values().filter(|seen| seen.period == PERIOD_MIN).count() as u64;
    let shortest = Span(PERIOD_MIN.0.max(busy * PERIOD_EACH_MS));
    let mut due = Vec::new();
    for (sandbox, instance) in running {
        if is_due(world, sandbox, instance, now, shortest)
            && read(world, sandbox, instance, now, may_count)
        {
            due.push(Arc::clone(sandbox));
        }
    }
    due
}

fn is_due(
    world: &World,
    sandbox: &Sandbox,
    instance: &Instance,
    now: Time,
    shortest: Span,
) -> bool {
    let seen = world.meter.lock();
    seen.get(&sandbox.uid).is_none_or(|seen| {
        let period = seen.period.max(shortest);
        seen.iid != instance.iid || seen.read_at.after(period) <= now
    })
}

/// Returns whether its files are to be counted.
fn read(
    world: &World,
    sandbox: &Arc<Sandbox>,
    instance: &Instance,
    now: Time,
    may_count: bool,
) -> bool {
    let reading = reading(world, sandbox, instance, now);
    let (alarms, count) = {
        let mut all = world.meter.lock();
        let fresh = || Seen {
            iid: instance.iid.clone(),
            watch: Watch::default(),
            read_at: Time(0),
            cpu_usec: reading.cpu_usec,
            period: PERIOD_MIN,
            counted_at: now,
        };
        let seen = all.entry(sandbox.uid).or_insert_with(fresh);
        if seen.iid != instance.iid {
            *seen = fresh();
        }
        let alarms = seen.watch.look(&sandbox.spec.limits, &reading);
        let used = reading.cpu_usec.saturating_sub(seen.cpu_usec);
        let since = seen.read_at.until(now).0;
        let idle = used * 1000 / (since * 1000).max(1) < IDLE_CPU_PER_MILLE;
        let slower = Span((seen.period.0 * 2).min(PERIOD_MAX.0));
        seen.period = if idle && !seen.watch.is_close() { slower } else { PERIOD_MIN };
        (seen.read_at, seen.cpu_usec) = (now, reading.cpu_usec);
        let count = may_count && is_counted(sandbox) && seen.counted_at.after(COUNT_EVERY) <= now;
        if count {
            seen.counted_at = now;
        }
        (alarms, count)
    };
    if !alarms.is_empty() {
        say(world, sandbox, instance, &alarms, now);
    }
    count
}

/// Whether nothing but us keeps the limit on its disk.
fn is_counted(sandbox: &Sandbox) -> bool {
    let disk = sandbox.status.limits.iter().find(|limit| limit.limit == "disk_mb");
    disk.is_some_and(|disk| disk.verdict == Verdict::Degraded && disk.read_back.is_none())
}

/// What an instance uses now.
fn reading(world: &World, sandbox: &Sandbox, instance: &Instance, now: Time) -> Reading {
    let (usage, space) = world.usage(sandbox, instance);
    let disk = space.map(|space| DiskReading {
        used_bytes: space.used_bytes(),
        total_bytes: space.total_bytes,
        is_full: space.is_full(),
    });
    Reading {
        at: now,
        ran_seconds: instance.started_at.map_or(0, |started| started.until(now).0 / 1000),
        memory_bytes: usage.memory_used_bytes(),
        oom_kills: usage.oom_kills,
        cpu_usec: usage.cpu_usec,
        periods: usage.periods,
        throttled_periods: usage.throttled_periods,
        processes_refused: usage.pids_refused,
        disk,
    }
}

/// On the console, among the events, and for what the kernel does not count itself, in the ledger.
fn say(world: &World, sandbox: &Arc<Sandbox>, instance: &Instance, alarms: &[Alarm], now: Time) {
    for alarm in alarms.iter().filter(|alarm| alarm.on_console) {
        if let Some((_, commands)) = world.consoles.commands(sandbox.uid) {
            // A shim that is so far behind is told nothing more.
            let _ = commands.try_send(Command::Announce(alarm.message.clone()));
        }
    }
    let (name, uid, iid) = (sandbox.name.clone(), sandbox.uid, instance.iid.clone());
    let alarms = alarms.to_vec();
    let stored = world.store.write_blocking(move |core| {
        let Some(current) = core.get(name.as_str()).filter(|now| now.uid == uid) else {
            return Ok(());
        };
        let mut next = Sandbox::clone(&current);
        for alarm in alarms {
            let message = format!("{iid}: {}", alarm.message);
            core.event(Some(&name), alarm.level, (alarm.reason, message), now)?;
            if let Some(limit) = alarm.breach {
                next.history.breaches.entry(limit.to_owned()).or_default().add(1, now);
            }
        }
        if next.history == current.history { Ok(()) } else { core.put(next).map(drop) }
    });
    if let Err(error) = stored {
        warn!(sandbox = sandbox.name.as_str(), error = chain(&error), "event not stored");
    }
}
