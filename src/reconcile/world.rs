//! Everything a pass works with, and what can be seen and said with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::live::Live;
use crate::reconcile::activity::{Activity, Look};
use crate::reconcile::console::Consoles;
use crate::reconcile::exec::Sessions;
use crate::reconcile::meter::Meter;
use crate::reconcile::turns::{self, Turns};
use crate::store::{Snapshot, Store};
use sodium_model::admission::Rules;
use sodium_model::plan::{Next, Plan, Policy, Step, View, plan};
use sodium_model::{
    InUse, Instance, InstancePhase, Isolation, Network, Observed, Owner, Sandbox, SandboxName,
    Span, Time,
};
use sodium_runtime::supervise::host::Host;
use sodium_runtime::{Behind, Driver, DriverError, Space, Usage};

/// A sandbox that something of exists for is looked at this often, whatever was reported.
pub(super) const RESYNC: Span = Span::seconds(60);
/// Everything a pass works with.
pub struct World {
    pub store: Store,
    /// One for each isolation, whether or not its runtime is there: what one has started is nobody else's.
    pub drivers: BTreeMap<Isolation, Arc<dyn Driver>>,
    /// Where consoles and workspaces are; a simulation has none.
    pub host: Option<Arc<Host>>,
    pub rules: Arc<Live<Rules>>,
    pub boot_id: String,
    pub consoles: Arc<Consoles>,
    /// Programs that are run inside what runs.
    pub sessions: Arc<Sessions>,
    pub activity: Activity,
    pub meter: Meter,
    pub turns: Turns,
    /// How long gVisor's sandboxes may be idle before they are frozen.
    pub idle_freeze: Live<Option<Span>>,
}

/// When a sandbox is to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Now,
    In(Span),
    /// It is gone for good.
    Never,
}

impl World {
    /// What is planned, unless that is to start what has to wait for its turn.
    pub(super) fn in_turn(&self, view: &View<'_>, planned: Plan) -> Plan {
        let sandbox = view.sandbox;
        let starts = matches!(planned.next, Next::Do(Step::Start | Step::Restore));
        let is_dear = self.driver(sandbox.spec.isolation).is_some_and(|driver| driver.is_dear());
        if !starts || !is_dear || self.turns.take(&sandbox.name, sandbox.uid) {
            return planned;
        }
        let policy = Policy { not_yet: Some(turns::WAITS.to_owned()), ..view.policy.clone() };
        plan(&View { policy: &policy, ..*view })
    }

    /// The driver whose sandboxes can be started ahead.
    pub(super) fn waiting(&self) -> Option<&Arc<dyn Driver>> {
        self.drivers.values().find(|driver| driver.can_wait())
    }

    /// It has started, or never will: whoever waits for that is looked at.
    pub(super) fn give_turn_back(&self, uid: Uuid) {
        for next in self.turns.give_back(uid) {
            self.consoles.look_at(&next);
        }
    }

    /// The driver that started an instance, or would start one; never another one in its place.
    pub fn driver(&self, isolation: Isolation) -> Option<&Arc<dyn Driver>> {
        self.drivers.get(&isolation)
    }

    /// What would start an instance, with its version; or why nothing can.
    pub fn runtime(&self, isolation: Isolation) -> Result<String, String> {
        let none = || Err(format!("no driver for {}", isolation.as_str()));
        self.driver(isolation).map_or_else(none, |driver| driver.runtime())
    }

    pub(super) fn policy(&self, sandbox: &Sandbox, snapshot: &Snapshot) -> Policy {
        let isolation = sandbox.spec.isolation;
        let driver = self.driver(isolation);
        let (runtime, not_yet) = (self.runtime(isolation), driver.and_then(|one| one.not_yet()));
        let changed = sandbox.live().is_some_and(|live| live.generation != sandbox.generation);
        let can_freeze = driver.is_some_and(|driver| driver.can_freeze());
        let is_dear = driver.is_some_and(|driver| driver.is_dear());
        // What the host's network brings would wake nobody.
        let may_idle = is_dear && sandbox.spec.network == Network::None;
        let behind = Behind { host_uid: sandbox.host_uid, network: sandbox.spec.network };
        Policy {
            allowed: self.rules.get().allowed.clone(),
            held: snapshot.held,
            can_freeze,
            idle_freeze: self.idle_freeze.get().filter(|_| may_idle && can_freeze),
            unenforced: driver.map(|driver| driver.unenforced()).unwrap_or_default(),
            missing_walls: driver.map(|driver| driver.missing_walls(behind)).unwrap_or_default(),
            is_busy: self.sessions.any(sandbox.uid),
            disk_over: self.meter.over(self, sandbox),
            in_use: if changed { self.in_use(sandbox) } else { InUse::default() },
            unavailable: runtime.as_ref().err().filter(|_| not_yet.is_none()).cloned(),
            not_yet,
            runtime: runtime.ok(),
            boot_id: self.boot_id.clone(),
            drained: snapshot.drained,
            source_fault: source_fault(sandbox, snapshot),
        }
    }

    /// What an instance has used.
    pub(super) fn measured(&self, instance: &Instance) -> Usage {
        let driver = self.driver(instance.spec.isolation);
        driver.map(|driver| driver.usage(&instance.iid)).unwrap_or_default()
    }

    /// The same, and what its disk holds, as far as one look tells: btrfs has a program of its own for that.
    pub(super) fn usage(&self, sandbox: &Sandbox, live: &Instance) -> (Usage, Option<Space>) {
        let volumes = self.host.as_ref().map(|host| &host.workspaces.volumes);
        let space = volumes.and_then(|volumes| volumes.cheap_space(sandbox.uid, sandbox.host_uid));
        (self.measured(live), space)
    }

    /// What the running instance holds, and what can be done about its disk.
    pub(super) fn in_use(&self, sandbox: &Sandbox) -> InUse {
        let Some(live) = sandbox.live() else { return InUse::default() };
        let volumes = self.host.as_ref().map(|host| &host.workspaces.volumes);
        let disk = volumes.map(|volumes| volumes.in_use(sandbox.uid, sandbox.host_uid));
        InUse { memory_bytes: self.measured(live).memory_used_bytes(), ..disk.unwrap_or_default() }
    }

    /// Looks and plans, and does nothing: what the loop would do next.
    pub fn explain(&self, name: &SandboxName, now: Time) -> Option<Plan> {
        let snapshot = self.store.snapshot();
        let sandbox = snapshot.sandboxes.get(name)?;
        let observed = self.observe(sandbox).ok()?;
        let policy = self.policy(sandbox, &snapshot);
        let idle_since = self.idle_since(sandbox, &observed, &policy, now);
        Some(plan(&View { sandbox, observed: &observed, now, idle_since, policy: &policy }))
    }

    pub(super) fn observe(&self, sandbox: &Sandbox) -> Result<Observed, DriverError> {
        let nothing = Observed::Gone { exit: None, began: false };
        let Some(instance) = sandbox.instance.as_ref().filter(|one| may_exist(one)) else {
            return Ok(nothing);
        };
        match self.driver(instance.spec.isolation) {
            Some(driver) => driver.observe(&instance.iid),
            None => Ok(Observed::Unknown),
        }
    }
}

impl World {
    /// Since when what runs is idle, if that matters to anybody.
    pub(super) fn idle_since(
        &self,
        sandbox: &Sandbox,
        observed: &Observed,
        policy: &Policy,
        now: Time,
    ) -> Option<Time> {
        let Observed::Running { frozen, .. } = observed else { return None };
        let instance = sandbox.live().filter(|_| policy.idle_freeze.is_some())?;
        let look = Look {
            iid: instance.iid.clone(),
            frozen: *frozen,
            busy: self.sessions.any(sandbox.uid),
            cpu_usec: self.driver(instance.spec.isolation)?.workload_cpu_usec(&instance.iid),
            console_next: self.consoles.next(sandbox.uid),
        };
        Some(self.activity.idle_since(sandbox.uid, look, now))
    }
}

fn may_exist(instance: &Instance) -> bool {
    instance.phase != InstancePhase::Dead || !instance.released
}

/// What is wrong with the newest text of a sandbox's spec.
fn source_fault(sandbox: &Sandbox, snapshot: &Snapshot) -> Option<(String, String)> {
    let why = |path: &str| snapshot.files.get(path)?.conflicts.get(&sandbox.name);
    let rival = snapshot.conflicts.get(&sandbox.name).and_then(|files| {
        // What keeps its own from being in force comes before what others want.
        if let Owner::File(own) = &sandbox.owner
            && files.contains(own)
        {
            return Some(("NoRoom".to_owned(), format!("{own}: {}", why(own)?)));
        }
        let path = files.get_min()?;
        Some(("Conflict".to_owned(), format!("{path} declares it too: {}", why(path)?)))
    });
    let Owner::File(path) = &sandbox.owner else { return rival };
    let Some(file) = snapshot.files.get(path) else { return rival };
    if let Some(fault) = file.faults.first() {
        let more = match file.faults.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        return Some(("InvalidFile".to_owned(), format!("{path}: {fault}{more}")));
    }
    match &file.held {
        Some(why) if file.missing.contains_key(&sandbox.name) => {
            Some(("PruneHeld".to_owned(), format!("{path} is gone; kept: {why}")))
        }
        Some(_) | None => rival,
    }
}
