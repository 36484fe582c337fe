//! Carries out one step. If you are about to write an `if` about what should happen, it belongs in
//! [`sodium_model::plan`].
//!
//! Each transaction looks again at the row it changes: a wish that changed since the plan was made
//! ends the step before it does anything.

mod sleep;

use std::sync::Arc;

use tracing::warn;

use crate::reconcile::world::{Again, RESYNC, World};
use crate::store::{Core, Snapshot, StoreError};
use sodium_model::plan::report::{self, report};
use sodium_model::plan::{Next, Plan, Policy, Step, Stopping, View, alarm, backoff};
use sodium_model::{
    Deletion, ExitKind, ExitRecord, Iid, Instance, InstancePhase, Level, LimitStatus, Limits,
    Observed, Promised, Record, Sandbox, Span, Time, Totals, WallStatus,
};
use sodium_runtime::{Adjust, Behind, DriverError, Order, Restore, Started, StopOrder};
use sodium_sys::error::chain;
use sodium_sys::fault::{self, Bug};

/// How soon to look at something that is expected to be over in a moment.
pub(super) const SOON: Span = Span(5);

/// Why a step was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("the desired state changed during the step")]
    Overtaken,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

pub(super) fn execute(
    world: &World,
    view: &View<'_>,
    sandbox: &Arc<Sandbox>,
    plan: &Plan,
) -> Result<Again, StepError> {
    let Next::Do(step) = &plan.next else { return Ok(Again::Now) };
    let act = Act { world, sandbox, plan, policy: view.policy, now: view.now };
    match step {
        Step::Start => act.start(false),
        Step::Restore => act.start(true),
        Step::Checkpoint => act.checkpoint(),
        Step::Hibernate => act.hibernate(),
        Step::MarkRunning { pid, started_at } => act.mark_running(*pid, *started_at),
        Step::MarkHealthy => act.mark_healthy(),
        Step::Adjust => act.adjust(),
        Step::Freeze => act.freeze(true),
        Step::Thaw => act.freeze(false),
        Step::Stop(stopping) => act.stop(stopping),
        Step::KillOrphan => act.kill_orphan(),
        Step::KillShim => act.kill_shim(),
        Step::RecordExit(exit) => act.record_exit(exit),
        Step::CleanUp => act.clean_up(),
        Step::Forget => act.forget(),
    }
}

/// Stores a status that says something new.
pub(super) fn publish(world: &World, sandbox: &Sandbox, plan: &Plan) -> Result<(), StoreError> {
    let (name, uid, status) = (sandbox.name.clone(), sandbox.uid, plan.status.clone());
    let (generation, power) = (sandbox.generation, sandbox.power);
    world.store.write_blocking(move |core| {
        // Of an older wish: the next pass says something newer.
        let current = core
            .get(name.as_str())
            .filter(|now| now.uid == uid && now.generation == generation && now.power == power);
        match current {
            Some(now) => core.put(Sandbox { status, ..Sandbox::clone(&now) }).map(drop),
            None => Ok(()),
        }
    })
}

/// What all steps need.
struct Act<'a> {
    world: &'a World,
    sandbox: &'a Arc<Sandbox>,
    plan: &'a Plan,
    policy: &'a Policy,
    now: Time,
}

impl Act<'_> {
    /// Changes the row if it is still the one that was planned for.
    fn commit(
        &self,
        change: impl FnOnce(&mut Core, &mut Sandbox) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Arc<Sandbox>, StepError> {
        self.commit_if(|_| true, change)
    }

    /// The same, if what is there by then fits, too.
    fn commit_if(
        &self,
        fits: impl FnOnce(&Snapshot) -> bool + Send + 'static,
        change: impl FnOnce(&mut Core, &mut Sandbox) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Arc<Sandbox>, StepError> {
        let planned = Arc::clone(self.sandbox);
        let blind = fault::has(Bug::LostUpdate);
        let drained = self.policy.drained;
        let done = self.world.store.write_blocking(move |core| {
            let same = |now: &Arc<Sandbox>| blind || same_wish(now, &planned);
            // What is planned for a host that runs things is nothing for one that is to run none.
            if core.now().drained != drained || !fits(core.now()) {
                return Ok(None);
            }
            let current = core.get(planned.name.as_str()).filter(same);
            let Some(current) = current else { return Ok(None) };
            let mut next = Sandbox::clone(if blind { &planned } else { &current });
            change(core, &mut next)?;
            core.put(next).map(Some)
        })?;
        done.ok_or(StepError::Overtaken)
    }

    /// The same for the instance alone.
    fn commit_instance(
        &self,
        change: impl FnOnce(&mut Core, &mut Sandbox, &mut Instance) -> Result<(), StoreError>
        + Send
        + 'static,
    ) -> Result<Arc<Sandbox>, StepError> {
        self.commit(move |core, sandbox| {
            let Some(instance) = sandbox.instance.take() else { return Ok(()) };
            let mut instance = Instance::clone(&instance);
            change(core, sandbox, &mut instance)?;
            sandbox.instance = Some(Arc::new(instance));
            Ok(())
        })
    }

    fn instance(&self) -> Result<&Arc<Instance>, StepError> {
        self.sandbox.instance.as_ref().ok_or(StepError::Overtaken)
    }

    fn driver(&self, instance: &Instance) -> Result<&Arc<dyn sodium_runtime::Driver>, StepError> {
        self.world.driver(instance.spec.isolation).ok_or(StepError::Overtaken)
    }

    fn limits<'s>(&self, spec: &'s sodium_model::Spec) -> Adjust<'s> {
        let Sandbox { uid, host_uid, .. } = **self.sandbox;
        Adjust { uid, host_uid, limits: &spec.limits }
    }

    /// What the kernel says of the walls around the process that runs, if anybody knows which that is.
    fn walls(&self, instance: &Instance, pid: Option<u32>) -> Result<Vec<WallStatus>, StepError> {
        let Some(pid) = pid else { return Ok(Vec::new()) };
        let behind = Behind { host_uid: self.sandbox.host_uid, network: instance.spec.network };
        Ok(self.driver(instance)?.walls(pid, behind))
    }

    /// The next instance; from where the memory of the last one was kept, or anew.
    fn start(&self, restored: bool) -> Result<Again, StepError> {
        let sandbox = self.sandbox;
        let Some(driver) = self.world.drivers.get(&sandbox.spec.isolation) else {
            return Err(StepError::Overtaken);
        };
        // What was planned under other rules is planned again.
        if self.world.rules.get().allowed != self.policy.allowed {
            return Err(StepError::Overtaken);
        }
        let n = sandbox.history.instances + 1;
        let iid = Iid::new(sandbox.uid, n);
        let intent = Instance { restored, ..self.intent(&iid, n) };
        let status = self.plan.status.clone();
        let again = sandbox.instance.is_some();
        let nothing = std::collections::BTreeMap::new();
        let rules = self.world.rules.get();
        let image = sandbox.spec.image.as_ref().and_then(|id| rules.images.get(id));
        let launch = |restore| {
            // Admitted before there was such a bound, or by the images of then.
            if let Some(fault) = sandbox.spec.command_fault() {
                return Err(DriverError::Refused(fault.to_string()));
            }
            driver.start(&Order {
                iid: &iid,
                name: &sandbox.name,
                uid: sandbox.uid,
                generation: sandbox.generation,
                epoch: self.world.store.epoch(),
                spec: &sandbox.spec,
                host_uid: sandbox.host_uid,
                image_files: image.map_or(&nothing, |image| &image.files),
                take_back: Some(&sandbox.owner),
                restore,
            })
        };
        let too_early = fault::has(Bug::StartBeforeIntent).then(|| launch(None));
        // Intent first: from here on it may exist, and the store says so.
        let (why, now, said) = (self.plan.why.clone(), self.now, iid.clone());
        let left = if n == 1 { self.left_by_others() } else { None };
        let committed = self.commit_if(self.fits(), move |core, sandbox| {
            let message = format!("{said}: {why}");
            core.event(Some(&sandbox.name), Level::Normal, ("Starting", message), now)?;
            if let Some(left) = left {
                core.event(Some(&sandbox.name), Level::Normal, ("BeginsEmpty", left), now)?;
            }
            sandbox.history.instances = n;
            sandbox.history.restarts += u64::from(again && !restored);
            if !restored {
                sandbox.history.asleep = None;
            }
            sandbox.instance = Some(Arc::new(intent));
            sandbox.status = status;
            Ok(())
        })?;
        let kept = committed.history.asleep.as_ref().filter(|_| restored);
        let restore = kept.map(|kept| Restore {
            dir: &kept.dir,
            has_workspace: kept.has_workspace,
            request: committed.power.request,
        });
        self.launched(&committed, &iid, too_early.unwrap_or_else(|| launch(restore)))
    }

    /// What a start came to, of which the intent is committed.
    fn launched(
        &self,
        committed: &Arc<Sandbox>,
        iid: &Iid,
        started: Result<Started, DriverError>,
    ) -> Result<Again, StepError> {
        match started {
            Ok(started) => {
                self.world.consoles.started(committed, iid, started);
                // Its events will say when it runs; this only catches what they miss.
                Ok(Again::In(Span::seconds(1)))
            }
            Err(error) => {
                let exit = not_started(iid, &error, self.now);
                let failed = Act { sandbox: committed, ..*self };
                failed.note_end(&exit, matches!(error, DriverError::Exists { .. }))?;
                Err(error.into())
            }
        }
    }

    /// That there are files of somebody else's under its name, which it does not get.
    fn left_by_others(&self) -> Option<String> {
        let Sandbox { name, owner, .. } = &**self.sandbox;
        let left = self.world.host.as_ref()?.workspaces.left_by_others(name, owner);
        let left = match left {
            Ok(left) => left?,
            Err(error) => {
                warn!(
                    sandbox = name.as_str(),
                    error = chain(&error),
                    "retained workspaces not read"
                );
                return None;
            }
        };
        let of = left.owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
        let id = left.id;
        Some(format!(
            "the retained workspace {id} belongs to {of}; hint: `sodiumd workspace take {id} --for \
             {owner}` gives it to the next new sandbox of that name"
        ))
    }

    /// Whether there is room for the next instance beside all that run by then.
    fn fits(&self) -> impl FnOnce(&Snapshot) -> bool + Send + 'static + use<> {
        let totals = self.policy.allowed.totals;
        let (none, own) = (Promised::default(), Promised::by(&self.sandbox.spec.limits));
        move |now| totals.refusal(&now.held, &none, &own).is_none()
    }

    fn intent(&self, iid: &Iid, n: u64) -> Instance {
        let sandbox = self.sandbox;
        Instance {
            iid: iid.clone(),
            n,
            generation: sandbox.generation,
            request: sandbox.power.request,
            spec: sodium_model::Spec::clone(&sandbox.spec),
            phase: InstancePhase::Starting,
            boot_id: self.world.boot_id.clone(),
            runtime: self.world.runtime(sandbox.spec.isolation).unwrap_or_default(),
            created_at: self.now,
            started_at: None,
            pid: None,
            stop_reason: None,
            forced: false,
            exit: None,
            restored: false,
            released: false,
            reserved: None,
        }
    }

    fn mark_running(&self, pid: Option<u32>, started_at: Time) -> Result<Again, StepError> {
        self.world.give_turn_back(self.sandbox.uid);
        let instance = self.instance()?;
        let limits = match self.world.consoles.take_limits(&instance.iid) {
            Some(limits) => limits,
            // Another daemon started it: the kernel says what its limits are.
            None => self.driver(instance)?.adjust(&instance.iid, &self.limits(&instance.spec))?,
        };
        let walls = self.walls(instance, pid)?;
        let (policy, now, iid) = (self.policy.clone(), self.now, instance.iid.clone());
        // Changed in place since it was started? Then this is not the end of it.
        let complete = instance.generation == self.sandbox.generation;
        let next = if complete { Next::Settled } else { Next::Do(Step::Adjust) };
        let committed = self.commit_instance(move |core, sandbox, instance| {
            if instance.restored {
                // It has gone on: from here on its memory is its own again.
                sandbox.history.asleep = None;
            }
            instance.phase = InstancePhase::Running;
            instance.pid = pid;
            instance.started_at = Some(started_at);
            set_limits(sandbox, limits);
            sandbox.status.walls = walls;
            let after = Sandbox { instance: Some(Arc::new(instance.clone())), ..sandbox.clone() };
            let observed = Observed::Running { pid, started_at, frozen: false };
            let view = View::of(&after, &observed, now, &policy);
            sandbox.status = report(&view, &next, "it runs");
            let message = format!("{iid}, generation {}", instance.generation);
            core.event(Some(&sandbox.name), Level::Normal, ("Started", message), now)
        })?;
        self.note(&committed);
        self.sweep(&committed)?;
        // With a complete status, there is nothing that another look would add now, but that it is idle.
        let idle_look = self.policy.idle_freeze.map_or(RESYNC, |span| Span(span.0 / 4).min(RESYNC));
        Ok(if complete { Again::In(idle_look) } else { Again::Now })
    }

    fn mark_healthy(&self) -> Result<Again, StepError> {
        self.commit(|_, sandbox| {
            sandbox.history.failures = 0;
            sandbox.history.delay_ms = 0;
            Ok(())
        })?;
        Ok(Again::Now)
    }

    /// Has what runs hold what it is to have, before it has it: others grow at the same time.
    fn reserve(&self, instance: &Instance) -> Result<(), StepError> {
        let (totals, limits) = (self.policy.allowed.totals, self.sandbox.spec.limits);
        // What was planned under other rules is planned again.
        if self.world.rules.get().allowed != self.policy.allowed {
            return Err(StepError::Overtaken);
        }
        if totals == Totals::default() {
            return Ok(());
        }
        let (old, new) = (Promised::held_by(instance), Promised::by(&limits));
        let fits =
            move |now: &Snapshot| totals.refusal(&now.held.without(old), &old, &new).is_none();
        let hold = move |_: &mut Core, sandbox: &mut Sandbox| {
            let Some(instance) = &mut sandbox.instance else { return Ok(()) };
            // A change before this one may have been made in part.
            let before = instance.reserved.unwrap_or(limits);
            Arc::make_mut(instance).reserved = Some(Limits {
                memory_mb: limits.memory_mb.max(before.memory_mb),
                cpu_percent: limits.cpu_percent.max(before.cpu_percent),
                disk_mb: limits.disk_mb.max(before.disk_mb),
                ..limits
            });
            Ok(())
        };
        self.commit_if(fits, hold).map(drop)
    }

    fn adjust(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        self.reserve(instance)?;
        let limits =
            self.driver(instance)?.adjust(&instance.iid, &self.limits(&self.sandbox.spec))?;
        // Of one that an earlier release started, nothing was read yet.
        let walls = self.walls(instance, instance.pid)?;
        let (why, now) = (self.plan.why.clone(), self.now);
        let committed = self.commit_instance(move |core, sandbox, instance| {
            instance.generation = sandbox.generation;
            instance.spec = sodium_model::Spec::clone(&sandbox.spec);
            instance.reserved = None;
            set_limits(sandbox, limits);
            sandbox.status.walls = walls;
            core.event(Some(&sandbox.name), Level::Normal, ("Adjusted", why), now)
        })?;
        self.note(&committed);
        Ok(Again::Now)
    }

    /// Notes beside what runs what it is. It is read only if the store is lost, so that a failure is no
    /// reason to stop here.
    fn note(&self, sandbox: &Sandbox) {
        let Some((host, record)) = self.world.host.as_ref().zip(Record::of(sandbox)) else {
            return;
        };
        if let Err(error) = host.note(&record) {
            warn!(sandbox = sandbox.name.as_str(), error = chain(&error), "record not noted");
        }
    }

    fn freeze(&self, frozen: bool) -> Result<Again, StepError> {
        let instance = self.instance()?;
        self.driver(instance)?.freeze(&instance.iid, frozen)?;
        self.note(self.sandbox);
        Ok(Again::Now)
    }

    fn stop(&self, stopping: &Stopping) -> Result<Again, StepError> {
        let instance = self.instance()?;
        let stop = &self.sandbox.spec.stop;
        let grace = self.policy.allowed.ceilings.grace(stop.grace);
        let (wanted, plan, now) = (stopping.clone(), self.plan.clone(), self.now);
        let reason = instance.stop_reason.unwrap_or(stopping.reason);
        self.commit_instance(move |core, sandbox, instance| {
            let news = instance.phase != InstancePhase::Stopping || instance.forced != wanted.force;
            instance.phase = InstancePhase::Stopping;
            instance.stop_reason = Some(reason);
            instance.forced |= wanted.force;
            sandbox.status = plan.status;
            sandbox.status.phase = sodium_model::Phase::Stopping;
            if !news {
                return Ok(());
            }
            let word = if wanted.force { "Killing" } else { "Stopping" };
            core.event(Some(&sandbox.name), Level::Normal, (word, wanted.why), now)
        })?;
        self.driver(instance)?.stop(
            &instance.iid,
            &StopOrder {
                signal: &stop.signal,
                grace_ms: grace.0,
                force: stopping.force,
                reason: reason.as_str(),
            },
        )?;
        Ok(Again::In(grace.max(Span::seconds(1))))
    }

    fn kill_orphan(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        self.driver(instance)?.kill_orphan(&instance.iid)?;
        Ok(Again::In(SOON))
    }

    fn kill_shim(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        self.driver(instance)?.kill_shim(&instance.iid)?;
        Ok(Again::In(SOON))
    }

    fn record_exit(&self, exit: &ExitRecord) -> Result<Again, StepError> {
        self.note_end(exit, false)
    }

    /// One transaction: dead, how, what is remembered of it, and the event; and whether what there is under its name
    /// is not its own, to be removed.
    fn note_end(&self, exit: &ExitRecord, is_strange: bool) -> Result<Again, StepError> {
        self.world.give_turn_back(self.sandbox.uid);
        if fault::has(Bug::CleanUpBeforeRecord) {
            let _ = self.driver(self.instance()?)?.clean_up(&exit.iid);
        }
        let (mut exit, now) = (exit.clone(), self.now);
        exit.asked_by = report::asked_by(self.sandbox, &exit);
        if exit.hint.is_none() {
            exit.hint = report::refused_walls(self.sandbox, &exit);
        }
        let policy = self.policy.clone();
        self.commit_instance(move |core, sandbox, instance| {
            if instance.phase == InstancePhase::Dead {
                return Ok(());
            }
            sandbox.history = backoff::after_exit(sandbox, &exit);
            if instance.restored && exit.started_at.is_some() {
                // It went on from that, and to its end; what was kept of itself is something else.
                let _ = sandbox.history.asleep.take_if(|kept| kept.iid != exit.iid);
            }
            instance.phase = InstancePhase::Dead;
            instance.released |= is_strange;
            let bad = !exit.is_success() && !exit.is_innocent();
            let level = if bad { Level::Warning } else { Level::Normal };
            let by = exit.asked_by.as_ref().map(|by| format!(", asked for by {by}"));
            let by = by.unwrap_or_default();
            let message = format!("{}: {}{by}", instance.iid, exit.summary());
            instance.exit = Some(exit.clone());
            if let Some(alarm) = alarm::of_end(&exit) {
                let message = format!("{}: {}", instance.iid, alarm.message);
                core.event(Some(&sandbox.name), alarm.level, (alarm.reason, message), now)?;
            }
            core.event(Some(&sandbox.name), level, ("Ended", message), now)?;
            let gone = Observed::Gone { exit: None, began: true };
            let after = Sandbox { instance: Some(Arc::new(instance.clone())), ..sandbox.clone() };
            let view = View::of(&after, &gone, now, &policy);
            let limits = std::mem::take(&mut sandbox.status.limits);
            let walls = std::mem::take(&mut sandbox.status.walls);
            sandbox.status = report(&view, &Next::Do(Step::CleanUp), &exit.summary());
            (sandbox.status.limits, sandbox.status.walls) = (limits, walls);
            Ok(())
        })?;
        Ok(Again::Now)
    }

    fn clean_up(&self) -> Result<Again, StepError> {
        let instance = self.instance()?;
        self.driver(instance)?.clean_up(&instance.iid)?;
        self.commit_instance(|_, _, instance| {
            instance.released = true;
            Ok(())
        })?;
        Ok(Again::Now)
    }

    fn forget(&self) -> Result<Again, StepError> {
        let sandbox = self.sandbox;
        if let (Some(host), Some(deletion)) = (&self.world.host, sandbox.deletion) {
            let spaces = &host.workspaces;
            let Deletion { keep_workspace, .. } = deletion;
            let cleared = if keep_workspace {
                spaces.put_aside(sandbox.uid, &sandbox.name, &sandbox.owner)
            } else {
                spaces.remove(sandbox.uid)
            };
            let failed = |source| DriverError::Host { stage: "remove workspace", source };
            cleared.and_then(|()| host.forget(sandbox.uid)).map_err(failed)?;
        }
        let now = self.now;
        let (name, uid) = (sandbox.name.clone(), sandbox.uid);
        self.world.consoles.forget(uid);
        self.world.activity.forget(uid);
        self.world.store.write_blocking(move |core| {
            if core.get(name.as_str()).is_some_and(|now| now.uid == uid) {
                core.event(Some(&name), Level::Normal, ("Deleted", format!("uid {uid}")), now)?;
                core.remove(&name)?;
            }
            Ok(())
        })?;
        Ok(Again::Now)
    }
}

/// Whether nothing was wished for since: status and history may have moved on, the wish may not.
fn same_wish(now: &Sandbox, planned: &Sandbox) -> bool {
    let same_instance = match (&now.instance, &planned.instance) {
        (Some(now), Some(planned)) => now.iid == planned.iid,
        (None, None) => true,
        _ => false,
    };
    now.uid == planned.uid
        && now.generation == planned.generation
        && now.power == planned.power
        && now.deletion == planned.deletion
        && same_instance
}

fn set_limits(sandbox: &mut Sandbox, limits: Vec<LimitStatus>) {
    if !limits.is_empty() {
        sandbox.status.limits = limits;
    }
}

fn not_started(iid: &Iid, error: &DriverError, now: Time) -> ExitRecord {
    let kind = ExitKind::start_failed("prepare", chain(error));
    ExitRecord::unmeasured(iid.clone(), kind, now)
}
