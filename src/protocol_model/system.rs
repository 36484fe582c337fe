//! The whole machine in a few bytes: what is on the disk, what runs, what is on its way, and how far each
//! daemon has come in its pass. Small enough that all of its states can be looked at.

use crate::protocol_model::row::{Exit, Phase, Row, Seen};

/// Instances of which anything may be left at once. More are there only after a mistake.
const HOST_COUNT_MAX: usize = 3;
/// Orders that may be on their way at once.
pub(super) const FLIGHT_COUNT_MAX: usize = 4;

/// One start of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub incarnation: u8,
    pub n: u8,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct System {
    pub disk: Disk,
    pub boot: u8,
    pub daemons: [Daemon; 2],
    /// By their ids; those of which nothing is left are gone.
    pub hosts: [Option<Host>; HOST_COUNT_MAX],
    /// Orders that were sent and not read yet. They outlive their sender.
    pub flight: [Option<Message>; FLIGHT_COUNT_MAX],
    pub faults: u8,
    pub wishes: u8,
    pub breach: Option<Breach>,
}

/// What must not happen between two states, so that a state has to remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Breach {
    /// An order of an older daemon was carried out after a newer one had said hello.
    StaleOrder,
    /// A workload was told to end, and the store does not say that it is to.
    UnstoredOrder,
}

/// What the store has, for whoever opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub epoch: u8,
    pub incarnations: u8,
    pub row: Option<Row>,
}

/// One daemon. It holds the lock of the state directory from its start to its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Daemon {
    pub life: Life,
    pub epoch: u8,
    /// Its own snapshot: the store as it was opened, and what this daemon has committed since.
    pub row: Option<Row>,
    /// The instance that it has ordered and that is not marked as running yet.
    pub ordered: Option<Id>,
    /// Whether that was so recently that silence means nothing.
    pub young: bool,
    pub pass: Option<Pass>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Absent,
    Up,
    /// Stopped by SIGSTOP.
    Frozen,
}

/// A pass, with the row that it read when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pass {
    pub row: Row,
    pub next: Deed,
}

/// The next thing a pass does. Between any two its daemon may die, and everything else may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Deed {
    // Looking.
    AskShim,
    LookAtLock,
    LookAtGroup,
    /// A mistake's order of things: whether the group was populated before the lock was looked at.
    LookAtLockAfter {
        populated: bool,
    },
    // Starting.
    Intend,
    MakeRunDir,
    OrderShim,
    RecordFailedStart,
    // Asking the shim, and hearing from it.
    Tell(Verb),
    Await(Verb),
    // Ending.
    KillHolder,
    KillGroup,
    RemoveRunDir,
    RemoveExit,
    // Transactions.
    MarkRunning,
    MarkStopping {
        force: bool,
    },
    RecordExit(Exit),
    MarkReleased,
    Forget,
    PublishUnknown(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Verb {
    Deadline,
    Stop,
    Kill,
    Release,
}

/// In the socket of a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Message {
    pub to: Id,
    pub epoch: u8,
    pub verb: Verb,
}

/// What exists of one instance, and what has really become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub id: Id,
    pub run_dir: bool,
    /// Whether a shim has noted itself in the lock.
    pub noted: bool,
    pub exit: Option<Saved>,
    pub shim: Option<Shim>,
    pub group: Group,
    pub ran: bool,
    /// How its first process ended, whoever knows.
    pub ended: Option<End>,
    /// What its shim has told a daemon of that.
    pub told: Option<End>,
}

/// A file with an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Saved {
    pub exit: Exit,
    pub synced: bool,
}

/// Who is in the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Group {
    Empty,
    /// The workload.
    Workload,
    /// Something that it left behind.
    Rest,
}

/// How a workload ended, or what is to be said of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// By itself, badly.
    Itself,
    /// As it was asked to.
    Asked,
    Killed,
    StartFailed,
    NeverStarted,
    ShimGone,
    Reboot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shim {
    pub stage: Stage,
    /// Of the daemon that ordered it.
    pub ordered_by: u8,
    /// The highest that said hello, or ordered it.
    pub epoch: u8,
    /// Stopped by SIGSTOP.
    pub silent: bool,
    /// That its workload is to end, and whether at once.
    pub ending: Option<Verb>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Nothing yet but an order in the socket of a fork server, which has the lock with it.
    Ordered,
    /// Forked, with the lock open.
    Born,
    /// It has made the lock its own.
    TookOver,
    /// The workload is started, and nobody is listened to.
    Launched,
    Launching,
    Running,
    Ending,
    /// The exit is in its file, and may be lost with the power.
    Written,
    Exited,
}

impl System {
    /// One sandbox is declared, and nothing has happened.
    pub(super) fn new() -> Self {
        let disk = Disk { epoch: 0, incarnations: 1, row: Some(Row::new(0)) };
        Self {
            disk,
            boot: 0,
            daemons: [Daemon::ABSENT; 2],
            hosts: [None; HOST_COUNT_MAX],
            flight: [None; FLIGHT_COUNT_MAX],
            faults: 0,
            wishes: 0,
            breach: None,
        }
    }

    pub(super) fn host(&self, id: Id) -> Option<&Host> {
        self.hosts.iter().flatten().find(|host| host.id == id)
    }

    /// Changes what exists of an instance.
    pub(super) fn on_host(&mut self, id: Id, change: impl FnOnce(&mut Host)) {
        let place = self.hosts.iter().position(|host| host.is_some_and(|host| host.id == id));
        let free = || self.hosts.iter().position(Option::is_none);
        let index = place.or_else(free).expect("few instances exist at once");
        let host = self.hosts[index].get_or_insert_with(|| Host::nothing(id));
        change(host);
        if host.shim.is_none() {
            for one in &mut self.flight {
                let _ = one.take_if(|one| one.to == id);
            }
        }
    }

    /// The same machine is to be the same value: what nothing is left of, and no record needs, goes.
    pub(super) fn tidy(&mut self) {
        let needed = self.disk.row.and_then(|row| row.unreleased());
        for host in &mut self.hosts {
            let _ = host.take_if(|host| !host.exists() && needed != Some(host.id));
        }
        self.hosts.sort_unstable_by_key(|host| host.map_or((1, Id::LAST), |host| (0, host.id)));
        self.flight.sort_unstable_by_key(|one| one.map_or((1, None), |one| (0, Some(one))));
    }

    pub(super) fn send(&mut self, message: Message) {
        let free = self.flight.iter_mut().find(|one| one.is_none());
        *free.expect("few orders are on their way at once") = Some(message);
    }

    /// The shim of an instance, if it listens, and to this daemon.
    pub(super) fn answering(&self, id: Id, epoch: u8) -> Option<&Shim> {
        let shim = self.host(id)?.shim.as_ref()?;
        (shim.listens() && shim.epoch <= epoch).then_some(shim)
    }
}

impl Id {
    const LAST: Self = Self { incarnation: u8::MAX, n: u8::MAX };
}

impl Deed {
    pub(super) fn is_transaction(self) -> bool {
        match self {
            Self::Intend
            | Self::RecordFailedStart
            | Self::MarkRunning
            | Self::MarkStopping { .. }
            | Self::RecordExit(_)
            | Self::MarkReleased
            | Self::Forget
            | Self::PublishUnknown(_) => true,
            Self::AskShim
            | Self::LookAtLock
            | Self::LookAtGroup
            | Self::LookAtLockAfter { .. }
            | Self::MakeRunDir
            | Self::OrderShim
            | Self::Tell(_)
            | Self::Await(_)
            | Self::KillHolder
            | Self::KillGroup
            | Self::RemoveRunDir
            | Self::RemoveExit => false,
        }
    }
}

impl Daemon {
    pub(super) const ABSENT: Self =
        Self { life: Life::Absent, epoch: 0, row: None, ordered: None, young: false, pass: None };

    /// Whether a pass of it is in the middle of starting this instance.
    pub(super) fn is_starting(&self, id: Id) -> bool {
        self.pass.is_some_and(|pass| {
            let begins = matches!(pass.next, Deed::MakeRunDir | Deed::OrderShim);
            begins && (pass.row.id() == Some(id) || pass.row.next_id() == id)
        })
    }
}

impl Host {
    fn nothing(id: Id) -> Self {
        Self {
            id,
            run_dir: false,
            noted: false,
            exit: None,
            shim: None,
            group: Group::Empty,
            ran: false,
            ended: None,
            told: None,
        }
    }

    pub(super) fn exists(&self) -> bool {
        let Self { run_dir, noted, exit, shim, group, .. } = self;
        *run_dir || *noted || exit.is_some() || shim.is_some() || *group != Group::Empty
    }

    /// `cgroup.kill`.
    pub(super) fn kill_group(&mut self) {
        if self.group == Group::Workload {
            self.ended = Some(End::Killed);
        }
        self.group = Group::Empty;
    }

    /// What lock, cgroup and files prove of an instance whose lock is free.
    pub(super) fn gone(&self) -> Seen {
        let exit = self.exit.map(|saved| saved.exit);
        Seen::Gone { exit, began: self.noted || exit.is_some() }
    }
}

impl Shim {
    pub(super) fn ordered(epoch: u8) -> Self {
        Self { stage: Stage::Ordered, ordered_by: epoch, epoch, silent: false, ending: None }
    }

    /// Its socket is there.
    pub(super) fn has_socket(&self) -> bool {
        self.stage >= Stage::Launching
    }

    pub(super) fn listens(&self) -> bool {
        self.has_socket() && !self.silent
    }
}

impl Phase {
    pub(super) fn is_dead(self) -> bool {
        self == Self::Dead
    }
}
