//! Edits of desired state by people: create, change, power, delete. Each is one transaction, with
//! the rules about who may; none of them touches a process.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::store::core::Core;
use crate::store::{FileRecord, Snapshot, StoreError, snapshot};
use sodium_model::{
    Deletion, Edit, History, Hold, Instance, InstancePhase, Level, Owner, Power, Promised, Sandbox,
    SandboxName, Spec, State, Status, Time, Totals, weight,
};

/// Most bytes of all specs together, as [`weight`] counts them. What runs and what was kept of it hold specs of their
/// own, and are counted too, though nothing keeps them from it.
pub const SPEC_BYTES_MAX: u64 = 256 << 20;

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct Put {
    pub name: SandboxName,
    pub labels: BTreeMap<String, String>,
    pub spec: Spec,
    pub owner: Owner,
    /// A new sandbox has exactly this uid, if given.
    pub uid: Option<Uuid>,
    pub precondition: Precondition,
}

/// What must hold for an edit to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Precondition {
    #[default]
    None,
    /// It must not exist.
    Absent,
    /// It must not have changed since this resource version.
    Unchanged(String),
    /// It must be this incarnation.
    Uid(Uuid),
}

/// How an edit came out.
#[derive(Debug, Clone)]
pub enum Edited {
    Created(Arc<Sandbox>),
    Changed(Arc<Sandbox>),
    Unchanged(Arc<Sandbox>),
}

impl Edited {
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        match self {
            Self::Created(sandbox) | Self::Changed(sandbox) | Self::Unchanged(sandbox) => sandbox,
        }
    }

    /// `created`, `changed`, `unchanged`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created(_) => "created",
            Self::Changed(_) => "changed",
            Self::Unchanged(_) => "unchanged",
        }
    }
}

/// Why an edit was not made. The user's fault, so a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("Not found")]
    NotFound,
    #[error("a sandbox named {name} exists already")]
    Exists { name: SandboxName },
    #[error("{name} is owned by {owner}; edit it there, or transfer it first")]
    Owned { name: SandboxName, owner: Owner },
    #[error("{name} was changed meanwhile; it is now at {current}")]
    Stale { name: SandboxName, current: String },
    #[error("{name} is being deleted; try again when it is gone")]
    Terminating { name: SandboxName },
    #[error("uid precondition failed: {name} has uid {uid}")]
    Uid { name: SandboxName, uid: Uuid },
    #[error("{name} is already running")]
    Running { name: SandboxName },
    #[error("{name} is not running")]
    NotRunning { name: SandboxName },
    #[error("{name} has no checkpoint")]
    NoCheckpoint { name: SandboxName },
    #[error("no room for {name}: {why}")]
    NoRoom { name: SandboxName, why: String },
    #[error("Command required: give a command, or an image with a startup")]
    NoCommand,
}

/// The answer of an edit: made, refused, or the store is in trouble.
pub type Outcome<T> = Result<Result<T, Refusal>, StoreError>;

/// Creates or replaces the spec of a sandbox.
pub fn put(core: &mut Core, put: Put, now: Time) -> Outcome<Edited> {
    let Some(old) = core.get(put.name.as_str()) else {
        return match put.precondition {
            Precondition::Unchanged(_) | Precondition::Uid(_) => Ok(Err(Refusal::NotFound)),
            Precondition::None | Precondition::Absent => {
                match no_room(&core.totals.get(), core.now(), None, &put) {
                    Some(refusal) => Ok(Err(refusal)),
                    None => create(core, put, now),
                }
            }
        };
    };
    if let Some(refusal) = refused(core, &old, &put.precondition) {
        return Ok(Err(refusal));
    }
    if old.owner != put.owner {
        return Ok(Err(Refusal::Owned { name: old.name.clone(), owner: old.owner.clone() }));
    }
    if let Some(refusal) = no_room(&core.totals.get(), core.now(), Some(&old), &put) {
        return Ok(Err(refusal));
    }
    change(core, &old, put.labels, put.spec, now).map(Ok)
}

/// Why all sandboxes together would be promised too much with this one.
pub fn no_room(
    totals: &Totals,
    now: &Snapshot,
    old: Option<&Sandbox>,
    put: &Put,
) -> Option<Refusal> {
    let had = old.map(|old| Promised::declared(&old.spec, old.wants_to_run()));
    let wanted = match old.and_then(|old| old.power.hold) {
        Some(Hold::Stopped | Hold::Killed) => false,
        Some(Hold::Started) => true,
        None => put.spec.state == State::Running,
    };
    let (had, wants) = (had.unwrap_or_default(), Promised::declared(&put.spec, wanted));
    let why = totals.refusal(&now.declared.without(had), &had, &wants);
    let why = why.or_else(|| no_memory(now, old, put))?;
    Some(Refusal::NoRoom { name: put.name.clone(), why })
}

/// Why the specs of all sandboxes together would take too much of the daemon's memory. Less is always fine.
fn no_memory(now: &Snapshot, old: Option<&Sandbox>, put: &Put) -> Option<String> {
    let had = old.map_or(0, |old| weight::of_declared(&old.spec, &old.labels));
    let wants = weight::of_declared(&put.spec, &put.labels);
    let all = now.spec_bytes.saturating_sub(had) + wants;
    (wants > had && all > SPEC_BYTES_MAX).then(|| {
        format!(
            "specs: {} MiB would be held of all sandboxes, those that are still to be removed included, and {} MiB is \
             the most",
            all.div_ceil(1 << 20),
            SPEC_BYTES_MAX >> 20
        )
    })
}

fn refused(core: &Core, old: &Sandbox, precondition: &Precondition) -> Option<Refusal> {
    let name = old.name.clone();
    if old.deletion.is_some() {
        return Some(Refusal::Terminating { name });
    }
    match precondition {
        Precondition::None => None,
        Precondition::Absent => Some(Refusal::Exists { name }),
        Precondition::Unchanged(version) => {
            let current = snapshot::version(&core.now().epoch, old.rv);
            (*version != current).then_some(Refusal::Stale { name, current })
        }
        Precondition::Uid(uid) => (*uid != old.uid).then_some(Refusal::Uid { name, uid: old.uid }),
    }
}

fn create(core: &mut Core, put: Put, now: Time) -> Outcome<Edited> {
    if let Some(uid) = put.uid.filter(|uid| core.has_twin(*uid)) {
        return Ok(Err(Refusal::Uid { name: put.name, uid }));
    }
    let host_uid = match core.free_host_uid()? {
        Ok(host_uid) => host_uid,
        Err(count) => {
            let why = format!("all {count} host uids of \"uids\" in config.json are in use");
            return Ok(Err(Refusal::NoRoom { name: put.name, why }));
        }
    };
    let sandbox = Sandbox {
        name: put.name,
        uid: put.uid.unwrap_or_else(|| core.new_uid()),
        owner: put.owner,
        labels: put.labels,
        generation: 1,
        spec: Arc::new(put.spec),
        created_at: now,
        host_uid,
        power: Power::default(),
        deletion: None,
        history: History::default(),
        instance: None,
        status: Status::default(),
        rv: 0,
    };
    let message = format!("declared by {}", sandbox.owner);
    core.event(Some(&sandbox.name), Level::Normal, ("Created", message), now)?;
    core.put(sandbox).map(|made| Ok(Edited::Created(made)))
}

/// Replaces labels and spec of a sandbox that the caller may edit.
pub fn change(
    core: &mut Core,
    old: &Arc<Sandbox>,
    labels: BTreeMap<String, String>,
    spec: Spec,
    now: Time,
) -> Result<Edited, StoreError> {
    let mut new = Sandbox::clone(old);
    new.labels = labels;
    if *new.spec != spec {
        new.generation += 1;
        // A new generation is judged by its own failures.
        new.history.failures = 0;
        new.history.not_before = None;
        if new.spec.state != spec.state && new.power.hold == Some(Hold::Started) {
            new.power.hold = None;
        }
        let fields = old.spec.differing(&spec);
        new.spec = Arc::new(spec);
        let message =
            format!("generation {} by {}: {}", new.generation, new.owner, fields.join(", "));
        let (generation, by) = (new.generation, new.owner.clone());
        new.history.note(Edit::new(generation, now, by, fields));
        core.event(Some(&new.name), Level::Normal, ("Changed", message), now)?;
    }
    let new = core.put(new)?;
    Ok(if Arc::ptr_eq(&new, old) { Edited::Unchanged(new) } else { Edited::Changed(new) })
}

/// A power verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    Kill,
    Restart,
    /// Have what runs stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Keep its memory and workspace, and have it go on.
    Checkpoint,
    /// Go back to what was kept.
    Restore,
}

impl Verb {
    pub const WORDS: &[(&str, Self)] = &[
        ("start", Self::Start),
        ("stop", Self::Stop),
        ("kill", Self::Kill),
        ("restart", Self::Restart),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("checkpoint", Self::Checkpoint),
        ("restore", Self::Restore),
    ];
}

/// Carries a power verb into the durable wish. Works whoever owns the sandbox; but not on another one that was given its
/// name meanwhile.
pub fn power_of(
    core: &mut Core,
    (name, uid): (&str, Uuid),
    verb: Verb,
    now: Time,
) -> Outcome<Arc<Sandbox>> {
    match core.get(name) {
        Some(found) if found.uid == uid => power(core, name, verb, now),
        Some(_) | None => Ok(Err(Refusal::NotFound)),
    }
}

/// The same, on whatever has the name.
pub fn power(core: &mut Core, name: &str, verb: Verb, now: Time) -> Outcome<Arc<Sandbox>> {
    let Some(old) = core.get(name) else { return Ok(Err(Refusal::NotFound)) };
    if old.deletion.is_some() {
        return Ok(Err(Refusal::Terminating { name: old.name.clone() }));
    }
    let mut new = Sandbox::clone(&old);
    let running = old.wants_to_run() && old.live().is_some_and(|one| is_up(one, &old));
    let (reason, message) = match verb {
        Verb::Start | Verb::Restart if new.spec.command.is_empty() => {
            return Ok(Err(Refusal::NoCommand));
        }
        Verb::Pause | Verb::Checkpoint if !running => {
            return Ok(Err(Refusal::NotRunning { name: old.name.clone() }));
        }
        Verb::Pause => {
            new.power.paused = true;
            ("PauseRequested", "by an operator, until it is resumed")
        }
        Verb::Resume => {
            new.power.paused = false;
            ("ResumeRequested", "by an operator")
        }
        Verb::Start if running => {
            new.power.paused = false;
            ("ResumeRequested", "by an operator")
        }
        Verb::Start => {
            ask_to_run(&mut new);
            ("StartRequested", "by an operator")
        }
        Verb::Restart => {
            // Anew, whatever was kept.
            new.history.asleep = None;
            ask_to_run(&mut new);
            ("RestartRequested", "by an operator")
        }
        Verb::Checkpoint => {
            new.power.checkpoint += 1;
            new.history.checkpoint_fault = None;
            ("CheckpointRequested", "by an operator")
        }
        Verb::Restore => {
            let Some(saved) = new.history.saved.clone() else {
                return Ok(Err(Refusal::NoCheckpoint { name: old.name.clone() }));
            };
            new.history.asleep = Some(saved);
            ask_to_run(&mut new);
            ("RestoreRequested", "by an operator")
        }
        Verb::Stop => {
            // A kill is not softened by a stop that follows it.
            if new.power.hold != Some(Hold::Killed) {
                new.power.hold = Some(Hold::Stopped);
            }
            new.power.paused = false;
            ("StopRequested", "by an operator; it stays stopped until it is started")
        }
        Verb::Kill => {
            new.power.hold = Some(Hold::Killed);
            new.power.paused = false;
            ("KillRequested", "by an operator; it stays stopped until it is started")
        }
    };
    if new == *old {
        return Ok(Ok(old));
    }
    core.event(Some(&new.name), Level::Normal, (reason, message.to_owned()), now)?;
    core.put(new).map(Ok)
}

/// The next instance answers a new request, whatever became of those before.
fn ask_to_run(new: &mut Sandbox) {
    new.power.hold = (new.spec.state != State::Running).then_some(Hold::Started);
    new.power.request += 1;
    new.power.paused = false;
    new.history.failures = 0;
    new.history.not_before = None;
}

/// Whether this instance answers the present wish already.
fn is_up(instance: &Instance, sandbox: &Sandbox) -> bool {
    instance.phase != InstancePhase::Stopping && instance.request == sandbox.power.request
}

/// How a sandbox is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete {
    pub uid: Option<Uuid>,
    pub keep_workspace: bool,
    pub force: bool,
}

/// Marks a sandbox as going. Deleting one that is going already is a success.
pub fn delete(core: &mut Core, name: &str, how: Delete, now: Time) -> Outcome<Arc<Sandbox>> {
    let Some(old) = core.get(name) else { return Ok(Err(Refusal::NotFound)) };
    if let Some(uid) = how.uid
        && uid != old.uid
    {
        return Ok(Err(Refusal::Uid { name: old.name.clone(), uid: old.uid }));
    }
    let mut new = Sandbox::clone(&old);
    let deletion = Deletion { at: now, keep_workspace: how.keep_workspace, force: how.force };
    match &mut new.deletion {
        Some(earlier) => earlier.force |= how.force,
        None => {
            new.deletion = Some(deletion);
            let message = format!("it was owned by {}", old.owner);
            core.event(Some(&old.name), Level::Normal, ("DeletionRequested", message), now)?;
        }
    }
    core.put(new).map(Ok)
}

/// Gives a sandbox another owner. Nothing that runs is touched.
pub fn transfer(core: &mut Core, name: &str, owner: Owner, now: Time) -> Outcome<Arc<Sandbox>> {
    let Some(old) = core.get(name) else { return Ok(Err(Refusal::NotFound)) };
    if old.deletion.is_some() {
        return Ok(Err(Refusal::Terminating { name: old.name.clone() }));
    }
    if old.owner == owner {
        return Ok(Ok(old));
    }
    let message = format!("from {} to {owner}", old.owner);
    core.event(Some(&old.name), Level::Normal, ("Transferred", message), now)?;
    if let Owner::File(path) = &owner {
        // What is known of it is older than this: it is to be read again, and nobody else has the name until then.
        let known = core.now().files.get(path).map(|known| FileRecord::clone(known));
        let mut record = FileRecord { digest: String::new(), ..known.unwrap_or_default() };
        record.given_names.insert(old.name.clone());
        core.put_file(path, Some(record))?;
    }
    core.put(Sandbox { owner, ..Sandbox::clone(&old) }).map(Ok)
}
