//! What must be true at any moment, whatever has happened. Each failure says which promise it breaks.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::simulation::pauses::Pauses;
use crate::simulation::scene::Scene;
use crate::store::{ChangeKind, Snapshot, Store};
use sodium_model::instance::LostCause;
use sodium_model::{ExitKind, Iid, Instance, InstancePhase, Owner, Sandbox, SandboxName, Time};
use sodium_runtime::fake::machine::{Machine, Process, What};

/// What earlier looks saw.
#[derive(Debug, Default)]
pub(super) struct Checks {
    names: BTreeMap<Uuid, SandboxName>,
    exits: BTreeMap<Iid, ExitKind>,
    before: BTreeMap<Uuid, Arc<Sandbox>>,
    rv: u64,
    drained: bool,
    pauses: Pauses,
    /// What a watcher has who never missed a change.
    watched: BTreeMap<SandboxName, Arc<Sandbox>>,
    watched_rv: Option<u64>,
}

type Verdict = Result<(), String>;

impl Checks {
    /// What is true of the machine alone.
    pub(super) fn machine(&self, scene: &Scene) -> Verdict {
        let machine = scene.machine();
        if let Some(stray) = machine.truth.strays.first() {
            return Err(format!("a stranger was signalled: {stray}"));
        }
        let mut alive: BTreeMap<Uuid, Iid> = BTreeMap::new();
        let mut names: BTreeMap<&SandboxName, Iid> = BTreeMap::new();
        for iid in machine.running() {
            let uid = machine.truth.ran[&iid];
            if let Some(other) = alive.insert(uid, iid.clone()) {
                return Err(format!("{other} and {iid} run at once"));
            }
            if let Some(name) = self.names.get(&uid)
                && let Some(other) = names.insert(name, iid.clone())
            {
                return Err(format!("{other} and {iid}, both {name}, run at once"));
            }
        }
        Ok(())
    }

    /// What is true of the store, and of both together.
    pub(super) fn store(&mut self, scene: &Scene, store: &Store) -> Verdict {
        let snapshot = store.snapshot();
        if snapshot.rv < self.rv {
            return Err(format!("the version went back from {} to {}", self.rv, snapshot.rv));
        }
        self.rv = snapshot.rv;
        self.watch(store, &snapshot)?;
        promises(scene, &snapshot)?;
        if scene.drained.is_some_and(|drained| drained != snapshot.drained) {
            return Err("that the host is drained was acknowledged and reverted".to_owned());
        }
        let machine = scene.machine();
        stays_down(scene, &machine)?;
        for sandbox in snapshot.sandboxes.values() {
            self.sandbox(scene, &machine, sandbox)?;
        }
        self.drained = snapshot.drained;
        for iid in machine.residues() {
            let known = snapshot.sandboxes.values().filter_map(|one| one.instance.as_ref());
            let explains = |one: &&Arc<Instance>| {
                one.iid == iid && !(one.phase == InstancePhase::Dead && one.released)
            };
            if known.filter(explains).count() == 0 {
                return Err(format!("{iid} exists, and no record explains it"));
            }
        }
        Ok(())
    }

    fn sandbox(&mut self, scene: &Scene, machine: &Machine, sandbox: &Arc<Sandbox>) -> Verdict {
        let name = &sandbox.name;
        self.names.insert(sandbox.uid, name.clone());
        if sandbox.status.observed_generation > sandbox.generation {
            return Err(format!("{name}: its status speaks of an edit that is still to come"));
        }
        if let Some(before) = self.before.insert(sandbox.uid, Arc::clone(sandbox)) {
            if before.generation > sandbox.generation {
                return Err(format!("{name}: its generation went back"));
            }
            if before.deletion.is_some() && sandbox.deletion.is_none() {
                return Err(format!("{name}: its deletion was taken back"));
            }
            if matches!(before.owner, Owner::Api) != matches!(sandbox.owner, Owner::Api) {
                return Err(format!("{name} changed hands, and nobody transferred it"));
            }
            started_in_time(scene, &before, sandbox)?;
            // A clock that jumps makes pauses as long as it likes.
            if !scene.jumped {
                self.pauses.check(machine, &before, sandbox, scene.now)?;
            }
            let n = |one: &Sandbox| one.instance.as_ref().map_or(0, |instance| instance.n);
            if self.drained && n(sandbox) > n(&before) {
                return Err(format!("{name} was started on a host that is drained"));
            }
        }
        let Some(instance) = &sandbox.instance else { return Ok(()) };
        match instance.phase {
            InstancePhase::Dead => self.dead(machine, instance),
            InstancePhase::Starting | InstancePhase::Running => not_asked_to_end(machine, instance),
            InstancePhase::Stopping => Ok(()),
        }
    }

    /// A row that says dead is right, and says how.
    fn dead(&mut self, machine: &Machine, instance: &Instance) -> Verdict {
        let iid = &instance.iid;
        if machine.running().contains(iid) {
            return Err(format!("{iid} is recorded dead, and it runs"));
        }
        let Some(exit) = &instance.exit else { return Err(format!("{iid} ended without a word")) };
        if exit.iid != *iid {
            return Err(format!("{iid} is said to have ended as {} did", exit.iid));
        }
        if let Some(told) = machine.truth.told.get(iid)
            && told.exit.kind != exit.kind
        {
            let (told, said) = (&told.exit.kind, &exit.kind);
            return Err(format!("{iid}: its shim told {told:?}, the record says {said:?}"));
        }
        let invented = match &exit.kind {
            ExitKind::Lost { cause: LostCause::NeverStarted } => {
                machine.truth.ran.contains_key(iid).then_some("it ran")
            }
            ExitKind::Lost { .. } | ExitKind::StartFailed { .. } => None,
            ExitKind::Disk { .. } => Some("nothing counts its files"),
            ExitKind::Timeout { .. } => {
                (!machine.truth.timed_out.contains(iid)).then_some("it had time left")
            }
            ExitKind::Exited { .. } | ExitKind::Signaled { .. } | ExitKind::Oom { .. } => {
                let so = machine.truth.ended.get(iid) == Some(&exit.kind);
                (!so).then_some("it ended otherwise")
            }
        };
        if let Some(truth) = invented {
            return Err(format!("{iid} is said to have ended by {:?}, but {truth}", exit.kind));
        }
        match self.exits.insert(iid.clone(), exit.kind.clone()) {
            Some(earlier) if earlier != exit.kind => {
                Err(format!("{iid} ended by {earlier:?}, and later by {:?}", exit.kind))
            }
            _ => Ok(()),
        }
    }

    /// The changes, one by one, lead to what is there.
    fn watch(&mut self, store: &Store, snapshot: &Snapshot) -> Verdict {
        let changes = self.watched_rv.and_then(|rv| store.ring().since(rv));
        match changes {
            None => {
                let all = snapshot.sandboxes.iter();
                self.watched = all.map(|(name, one)| (name.clone(), Arc::clone(one))).collect();
            }
            Some(changes) => {
                for change in changes {
                    let name = change.sandbox.name.clone();
                    match change.kind {
                        ChangeKind::Deleted => drop(self.watched.remove(&name)),
                        ChangeKind::Added | ChangeKind::Modified => {
                            self.watched.insert(name, change.sandbox);
                        }
                    }
                }
            }
        }
        self.watched_rv = Some(snapshot.rv);
        let same = self.watched.len() == snapshot.sandboxes.len()
            && self.watched.iter().all(|(name, one)| snapshot.sandboxes.get(name) == Some(one));
        if same { Ok(()) } else { Err("a watcher does not know what is there".to_owned()) }
    }

    /// The next daemon begins with an empty ring.
    pub(super) fn daemon_died(&mut self) {
        self.watched_rv = None;
    }
}

/// What people were told is so.
fn promises(scene: &Scene, snapshot: &Snapshot) -> Verdict {
    for (uid, promise) in &scene.promises {
        let name = &promise.name;
        let Some(sandbox) = snapshot.sandboxes.get(name).filter(|now| now.uid == *uid) else {
            if promise.deletion.is_some() {
                continue;
            }
            return Err(format!("{name} was acknowledged, and is lost"));
        };
        let same = sandbox.generation == promise.generation
            && sandbox.spec == promise.spec
            && sandbox.power == promise.power
            && sandbox.deletion.is_some() == promise.deletion.is_some();
        if !same {
            return Err(format!("{name}: an edit was acknowledged and reverted: {promise:?}"));
        }
    }
    Ok(())
}

/// Whoever was told that something is to end sees nothing of it begin, until somebody asks for that.
fn stays_down(scene: &Scene, machine: &Machine) -> Verdict {
    for (uid, instances) in &scene.ended {
        let last = Iid::new(*uid, *instances);
        let mut begun = machine.truth.begun.iter();
        if let Some(later) = begun.find(|iid| iid.is_later_than(&last)) {
            return Err(format!("{later} was started after its end was acknowledged"));
        }
    }
    Ok(())
}

/// A shim hears that it is to end what it watches when the store has it, and not before: until then
/// somebody may be told that it runs on.
fn not_asked_to_end(machine: &Machine, instance: &Instance) -> Verdict {
    let of_it = |process: &&Process| process.iid.as_ref() == Some(&instance.iid);
    let reason = machine.processes.values().filter(of_it).find_map(|process| match &process.what {
        // That its time is over it knows by itself.
        What::Shim(shim) => shim.reason.as_ref().filter(|reason| *reason != "timeout"),
        What::Daemon | What::Workload { .. } | What::Helper | What::Stranger => None,
    });
    match reason {
        Some(why) => Err(format!("{} is {:?}, and was ended: {why}", instance.iid, instance.phase)),
        None => Ok(()),
    }
}

/// What failed is not started again before the time that the store has promised.
fn started_in_time(scene: &Scene, before: &Sandbox, now: &Sandbox) -> Verdict {
    let (Some(old), Some(new)) = (&before.instance, &now.instance) else { return Ok(()) };
    let again = new.n > old.n && new.generation == old.generation && new.request == old.request;
    let at = before.history.not_before.unwrap_or(Time(0));
    if again && !scene.jumped && at > scene.now {
        return Err(format!("{} was started before {at}", new.iid));
    }
    Ok(())
}
