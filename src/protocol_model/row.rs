//! The row of the one sandbox, and what the real planner says to it.
//!
//! A row is made into a [`Sandbox`], what was seen into an [`Observed`], and [`plan`] decides; its step
//! becomes the first deed that [`crate::reconcile`] would do for it. Since the planner is pure, the same
//! question is asked once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use uuid::Uuid;

use crate::protocol_model::hash::Plain;
use crate::protocol_model::system::{Deed, End, Id, Verb};
use sodium_model::condition::{self, Condition};
use sodium_model::instance::LostCause;
use sodium_model::plan::{Next, Policy, Step, UNKNOWN_MAX, View, plan};
use sodium_model::spec::{BackoffRange, Restart, Stop};
use sodium_model::{
    ConditionType, Deletion, ExitKind, ExitRecord, History, Hold, Iid, Instance, InstancePhase,
    Isolation, Limits, Network, Observed, Owner, Power, RestartPolicy, Sandbox, SandboxName, Span,
    Spec, State, Status, StopReason, Time, Truth,
};

/// It stands still; what time brings is an action of its own.
const NOW: Time = Time(1_000_000_000);

/// What is durable about the sandbox, as far as the protocol depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub incarnation: u8,
    pub generation: u8,
    pub request: u8,
    pub held: Held,
    pub deleting: bool,
    pub unknown: Unknown,
    pub instances: u8,
    pub instance: Option<Record>,
}

/// An operator's hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Held {
    No,
    Stopped,
    Killed,
}

/// Whether its status says that nothing is known of what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Unknown {
    No,
    Since,
    /// For as long as patience lasts.
    ForLong,
}

/// What the store has of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub n: u8,
    pub generation: u8,
    pub request: u8,
    pub boot: u8,
    pub phase: Phase,
    pub asked: bool,
    pub forced: bool,
    pub exit: Option<Exit>,
    pub released: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Starting,
    Running,
    Stopping,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Exit {
    pub end: End,
    pub asked: bool,
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Seen {
    Gone { exit: Option<Exit>, began: bool },
    Launching,
    Running,
    Stopping,
    Exited(Exit),
    Orphan,
    Unknown,
}

impl Row {
    pub(super) fn new(incarnation: u8) -> Self {
        Self {
            incarnation,
            generation: 1,
            request: 0,
            held: Held::No,
            deleting: false,
            unknown: Unknown::No,
            instances: 0,
            instance: None,
        }
    }

    pub(super) fn id(&self) -> Option<Id> {
        self.instance.map(|one| Id { incarnation: self.incarnation, n: one.n })
    }

    pub(super) fn next_id(&self) -> Id {
        Id { incarnation: self.incarnation, n: self.instances + 1 }
    }

    /// The instance of which something may exist.
    pub(super) fn unreleased(&self) -> Option<Id> {
        self.id().filter(|_| self.instance.is_some_and(|one| !one.released))
    }

    /// As the executor's transactions ask before they change anything.
    pub(super) fn same_wish(&self, planned: &Self) -> bool {
        self.same_power(planned) && self.deleting == planned.deleting && self.id() == planned.id()
    }

    pub(super) fn same_power(&self, planned: &Self) -> bool {
        let of = |row: &Self| (row.incarnation, row.generation, row.request, row.held);
        of(self) == of(planned)
    }

    pub(super) fn wants_to_run(&self) -> bool {
        !self.deleting && self.held == Held::No
    }
}

type Answers = HashMap<(Row, Seen, u8), Option<Deed>, BuildHasherDefault<Plain>>;

thread_local! {
    static ASKED: RefCell<Answers> = RefCell::default();
}

/// What a pass does that has seen this. `None`: nothing that would show.
pub(super) fn decide(row: &Row, seen: Seen, boot: u8) -> Option<Deed> {
    ASKED.with_borrow_mut(|asked| {
        *asked.entry((*row, seen, boot)).or_insert_with(|| ask(row, seen, boot))
    })
}

fn ask(row: &Row, seen: Seen, boot: u8) -> Option<Deed> {
    let (sandbox, observed) = (sandbox(row), observed(row, seen));
    let policy = Policy { boot_id: boot.to_string(), ..Policy::default() };
    let plan = plan(&View::of(&sandbox, &observed, NOW, &policy));
    let unknown = plan
        .status
        .conditions
        .iter()
        .any(|one| one.kind == ConditionType::Running && one.status == Truth::Unknown);
    let known_as_unknown = row.unknown != Unknown::No;
    match plan.next {
        Next::Wait(_) | Next::Settled if unknown != known_as_unknown => {
            Some(Deed::PublishUnknown(unknown))
        }
        Next::Wait(_) | Next::Settled => None,
        Next::Do(step) => Some(first_deed(row, step)),
    }
}

fn first_deed(row: &Row, step: Step) -> Deed {
    match step {
        Step::Start => Deed::Intend,
        Step::MarkRunning { .. } => Deed::MarkRunning,
        Step::Stop(stopping) => Deed::MarkStopping { force: stopping.force },
        Step::KillOrphan => Deed::KillGroup,
        Step::KillShim => Deed::KillHolder,
        Step::RecordExit(exit) => Deed::RecordExit(exit_of(&exit)),
        Step::CleanUp => Deed::Tell(Verb::Release),
        Step::Forget => Deed::Forget,
        Step::Restore
        | Step::Checkpoint
        | Step::Hibernate
        | Step::MarkHealthy
        | Step::Adjust
        | Step::Freeze
        | Step::Thaw => panic!("{row:?}: nobody asked for {}", step.word()),
    }
}

fn sandbox(row: &Row) -> Sandbox {
    let hold = match row.held {
        Held::No => None,
        Held::Stopped => Some(Hold::Stopped),
        Held::Killed => Some(Hold::Killed),
    };
    let since = match row.unknown {
        Unknown::No => None,
        Unknown::Since => Some(NOW),
        Unknown::ForLong => Some(Time(NOW.0 - UNKNOWN_MAX.0)),
    };
    let deletion = Deletion { at: NOW, keep_workspace: false, force: false };
    Sandbox {
        name: SandboxName::try_from("web").expect("a label"),
        uid: uid(row),
        owner: Owner::Api,
        labels: Default::default(),
        generation: row.generation.into(),
        spec: Arc::new(spec(row.generation)),
        created_at: NOW,
        host_uid: 0,
        power: Power { hold, request: row.request.into(), ..Power::default() },
        deletion: row.deleting.then_some(deletion),
        history: History { instances: row.instances.into(), ..History::default() },
        instance: row.instance.map(|one| Arc::new(instance(row, &one))),
        status: Status {
            conditions: since.map(unknown).into_iter().collect(),
            ..Status::default()
        },
        rv: 0,
    }
}

fn unknown(since: Time) -> Condition {
    let mut conditions = Vec::new();
    condition::set(
        &mut conditions,
        Condition {
            kind: ConditionType::Running,
            status: Truth::Unknown,
            reason: "ShimSilent".to_owned(),
            message: String::new(),
            last_transition_time: since,
            observed_generation: 1,
        },
    );
    conditions.remove(0)
}

fn uid(row: &Row) -> Uuid {
    Uuid::from_u128(row.incarnation.into())
}

/// Each generation asks for another environment, which takes a restart. Nothing is waited for.
fn spec(generation: u8) -> Spec {
    let at_once = BackoffRange { initial: Span(0), max: Span(0) };
    Spec {
        image: None,
        isolation: Isolation::Bubblewrap,
        command: vec!["sleep".to_owned()],
        env: [("GENERATION".to_owned(), generation.to_string())].into(),
        state: State::Running,
        restart: Restart { policy: RestartPolicy::OnFailure, backoff: at_once, max_failures: 0 },
        stop: Stop { signal: "SIGTERM".to_owned(), grace: Span::seconds(10) },
        tty: false,
        network: Network::None,
        limits: Limits::DEFAULT,
        strict: false,
        ephemeral: false,
        files: Default::default(),
    }
}

fn instance(row: &Row, record: &Record) -> Instance {
    let phase = match record.phase {
        Phase::Starting => InstancePhase::Starting,
        Phase::Running => InstancePhase::Running,
        Phase::Stopping => InstancePhase::Stopping,
        Phase::Dead => InstancePhase::Dead,
    };
    Instance {
        reserved: None,
        iid: Iid::new(uid(row), record.n.into()),
        n: record.n.into(),
        generation: record.generation.into(),
        request: record.request.into(),
        spec: spec(record.generation),
        phase,
        boot_id: record.boot.to_string(),
        runtime: String::new(),
        created_at: NOW,
        started_at: None,
        pid: None,
        stop_reason: record.asked.then_some(StopReason::Stopped),
        forced: record.forced,
        exit: record.exit.map(|exit| exit_record(row, record.n, exit)),
        restored: false,
        released: record.released,
    }
}

fn observed(row: &Row, seen: Seen) -> Observed {
    let n = row.instance.map_or(0, |one| one.n);
    let record = |exit| exit_record(row, n, exit);
    match seen {
        Seen::Gone { exit, began } => Observed::Gone { exit: exit.map(record), began },
        Seen::Launching => Observed::Launching,
        Seen::Running => Observed::Running { pid: Some(7), started_at: NOW, frozen: false },
        Seen::Stopping => Observed::Stopping { pid: Some(7), started_at: Some(NOW) },
        Seen::Exited(exit) => Observed::Exited { exit: record(exit) },
        Seen::Orphan => Observed::Orphan,
        Seen::Unknown => Observed::Unknown,
    }
}

/// Every way to end, in the model's words and in these.
fn kinds() -> [(End, ExitKind); 7] {
    let signaled = |signal: &str| ExitKind::Signaled { signal: signal.to_owned() };
    let text = || "prepare".to_owned();
    [
        (End::Itself, ExitKind::Exited { code: 3 }),
        (End::Asked, signaled("SIGTERM")),
        (End::Killed, signaled("SIGKILL")),
        (End::StartFailed, ExitKind::StartFailed { stage: text(), message: text() }),
        (End::NeverStarted, ExitKind::Lost { cause: LostCause::NeverStarted }),
        (End::ShimGone, ExitKind::Lost { cause: LostCause::ShimGone }),
        (End::Reboot, ExitKind::Lost { cause: LostCause::Reboot }),
    ]
}

fn exit_record(row: &Row, n: u8, exit: Exit) -> ExitRecord {
    let kind = kinds().into_iter().find(|(end, _)| *end == exit.end).map(|(_, kind)| kind);
    let kind = kind.expect("all are listed");
    ExitRecord {
        reason: exit.asked.then(|| StopReason::Stopped.as_str().to_owned()),
        ..ExitRecord::unmeasured(Iid::new(uid(row), n.into()), kind, NOW)
    }
}

fn exit_of(record: &ExitRecord) -> Exit {
    let end = kinds().into_iter().find(|(_, kind)| *kind == record.kind).map(|(end, _)| end);
    Exit { end: end.expect("all are listed"), asked: record.reason.is_some() }
}
