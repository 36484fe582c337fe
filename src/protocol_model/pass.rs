//! What a daemon does, one deed at a time, in the order of [`crate::reconcile::execute`] and
//! [`sodium_runtime::supervise`].
//!
//! ```text
//!   begin: read the row --> ask the shim --silent--> lock --free--> cgroup, exit --> the planner's first deed
//!   start: intend, run directory, order      stop: store it, tell, hear      clean up: release, remove, store
//! ```

use crate::protocol_model::Mistake;
use crate::protocol_model::row::{Exit, Phase, Record, Row, Seen, Unknown, decide};
use crate::protocol_model::system::{
    Daemon, Deed, End, Group, Host, Id, Life, Message, Pass, Shim, Stage, System, Verb,
};

/// A daemon opens the store.
pub(super) fn start_daemon(system: &mut System, index: usize) {
    system.disk.epoch += 1;
    let (epoch, row) = (system.disk.epoch, system.disk.row);
    system.daemons[index] = Daemon { life: Life::Up, epoch, row, ..Daemon::ABSENT };
}

/// A pass begins: with the row as this daemon has it.
pub(super) fn begin(system: &mut System, index: usize) {
    let Some(row) = system.daemons[index].row else { return };
    let mut pass = Pass { row, next: Deed::AskShim };
    if row.unreleased().is_none() {
        // Nothing can be there, so nobody looks.
        let Some(next) = decide(&row, Seen::Gone { exit: None, began: false }, system.boot) else {
            return;
        };
        pass.next = next;
    }
    system.daemons[index].pass = Some(pass);
}

/// What remains of a pass after a deed.
#[derive(Debug, Clone, Copy)]
enum Then {
    Next(Deed),
    /// With the row that was just committed.
    NextOf(Row, Deed),
    Done,
}

/// The next deed of the pass of a daemon.
pub(super) fn go(system: &mut System, index: usize, mistake: Option<Mistake>) {
    let Some(pass) = system.daemons[index].pass else { return };
    let mut act = Act { system, index, row: pass.row, mistake };
    let then = act.deed(pass.next);
    let next = match then {
        Then::Next(next) => Some(Pass { next, ..pass }),
        Then::NextOf(row, next) => Some(Pass { row, next }),
        Then::Done => None,
    };
    system.daemons[index].pass = next;
}

struct Act<'a> {
    system: &'a mut System,
    index: usize,
    /// As it was when the pass began.
    row: Row,
    mistake: Option<Mistake>,
}

impl Act<'_> {
    fn deed(&mut self, deed: Deed) -> Then {
        match deed {
            Deed::AskShim => self.ask_shim(),
            Deed::LookAtLock => self.look_at_lock(),
            Deed::LookAtGroup => self.look_at_group(),
            Deed::LookAtLockAfter { populated } => self.look_at_lock_after(populated),
            Deed::Intend => self.intend(),
            Deed::MakeRunDir => self.make_run_dir(),
            Deed::OrderShim => self.order_shim(),
            Deed::RecordFailedStart => self.record(Exit { end: End::StartFailed, asked: false }),
            Deed::Tell(verb) => self.tell(verb),
            // The shim's answer ends this, or patience does.
            Deed::Await(verb) => Then::Next(Deed::Await(verb)),
            Deed::KillHolder => self.kill_holder(),
            Deed::KillGroup => self.kill_group(),
            Deed::RemoveRunDir => self.remove_run_dir(),
            Deed::RemoveExit => self.remove_exit(),
            Deed::MarkRunning => self.mark_running(),
            Deed::MarkStopping { force } => self.mark_stopping(force),
            Deed::RecordExit(exit) => self.record(exit),
            Deed::MarkReleased => self.mark_released(),
            Deed::Forget => self.forget(),
            Deed::PublishUnknown(unknown) => self.publish(unknown),
        }
    }

    fn daemon(&mut self) -> &mut Daemon {
        &mut self.system.daemons[self.index]
    }

    fn epoch(&self) -> u8 {
        self.system.daemons[self.index].epoch
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn id(&self) -> Id {
        self.row.id().expect("a deed that needs an instance has one")
    }

    fn host(&self) -> Option<&Host> {
        self.system.host(self.id())
    }

    // Looking.

    fn planned(&self, seen: Seen) -> Then {
        let patient = self.has(Mistake::EndlessPatience);
        let next = decide(&self.row, seen, self.system.boot);
        next.filter(|next| !patient || *next != Deed::KillHolder).map_or(Then::Done, Then::Next)
    }

    fn ask_shim(&mut self) -> Then {
        let (id, epoch) = (self.id(), self.epoch());
        let Some(stage) = self.system.answering(id, epoch).map(|shim| shim.stage) else {
            let first = self.has(Mistake::GroupBeforeLock);
            let populated = self.host().is_some_and(|host| host.group != Group::Empty);
            let after = Deed::LookAtLockAfter { populated };
            return Then::Next(if first { after } else { Deed::LookAtLock });
        };
        let told_early = self.has(Mistake::ExitToldEarly);
        let mut seen = Seen::Stopping;
        self.system.on_host(id, |host| {
            let Some(shim) = &mut host.shim else { return };
            shim.epoch = epoch;
            let asked = shim.ending.is_some();
            seen = match stage {
                Stage::Launching => Seen::Launching,
                Stage::Running if !asked => Seen::Running,
                Stage::Written if !told_early => Seen::Stopping,
                Stage::Exited | Stage::Written => {
                    let exit = Exit { end: host.ended.expect("it was reaped"), asked };
                    host.told = Some(exit.end);
                    Seen::Exited(exit)
                }
                Stage::Running | Stage::Ending => Seen::Stopping,
                Stage::Ordered | Stage::Born | Stage::TookOver | Stage::Launched => Seen::Unknown,
            };
        });
        self.planned(seen)
    }

    /// Whether somebody holds the lock of the instance: a shim, or an order for one.
    fn lock_is_held(&self, id: Id) -> bool {
        let unlocked = self.has(Mistake::ShimWithoutLock);
        self.system
            .host(id)
            .and_then(|host| host.shim)
            .is_some_and(|shim| !(unlocked && matches!(shim.stage, Stage::Ordered | Stage::Born)))
    }

    /// Of a lock that is held.
    fn silent(&self) -> Then {
        let daemon = &self.system.daemons[self.index];
        let socket = self.host().and_then(|host| host.shim).is_some_and(|shim| shim.has_socket());
        let just_born = daemon.ordered == self.row.id() && daemon.young && !socket;
        self.planned(if just_born { Seen::Launching } else { Seen::Unknown })
    }

    fn look_at_lock(&mut self) -> Then {
        if self.has(Mistake::UnknownIsDead) {
            let gone = self.host().map_or(Seen::Gone { exit: None, began: false }, Host::gone);
            return self.planned(gone);
        }
        if self.lock_is_held(self.id()) { self.silent() } else { Then::Next(Deed::LookAtGroup) }
    }

    fn look_at_group(&mut self) -> Then {
        let believed = self.has(Mistake::OrphanIsDead);
        let seen = match self.host() {
            Some(host) if host.group != Group::Empty && !believed => Seen::Orphan,
            Some(host) => host.gone(),
            None => Seen::Gone { exit: None, began: false },
        };
        self.planned(seen)
    }

    fn look_at_lock_after(&mut self, populated: bool) -> Then {
        match self.host() {
            _ if self.lock_is_held(self.id()) => self.silent(),
            Some(_) if populated => self.planned(Seen::Orphan),
            Some(host) => self.planned(host.gone()),
            None => self.planned(Seen::Gone { exit: None, began: false }),
        }
    }

    // Starting.

    fn intend(&mut self) -> Then {
        let id = self.row.next_id();
        let early = self.has(Mistake::StartBeforeIntent);
        if early && self.system.host(id).is_none_or(|host| host.shim.is_none()) {
            return Then::Next(Deed::MakeRunDir);
        }
        let boot = self.system.boot;
        let committed = self.commit(|row| {
            row.instances = id.n;
            row.unknown = Unknown::No;
            row.instance = Some(Record {
                n: id.n,
                generation: row.generation,
                request: row.request,
                boot,
                phase: Phase::Starting,
                asked: false,
                forced: false,
                exit: None,
                released: false,
            });
        });
        match committed {
            Some(row) if !early => Then::NextOf(row, Deed::MakeRunDir),
            Some(_) | None => Then::Done,
        }
    }

    /// The instance that is being started.
    fn starting(&self) -> Id {
        if self.has(Mistake::StartBeforeIntent) { self.row.next_id() } else { self.id() }
    }

    fn make_run_dir(&mut self) -> Then {
        self.system.on_host(self.starting(), |host| host.run_dir = true);
        Then::Next(Deed::OrderShim)
    }

    fn order_shim(&mut self) -> Then {
        let (id, epoch) = (self.starting(), self.epoch());
        if self.lock_is_held(id) {
            return Then::Next(Deed::RecordFailedStart);
        }
        self.system.on_host(id, |host| {
            host.noted = false;
            host.shim = Some(Shim::ordered(epoch));
        });
        let daemon = self.daemon();
        (daemon.ordered, daemon.young) = (Some(id), true);
        if self.has(Mistake::StartBeforeIntent) { Then::Next(Deed::Intend) } else { Then::Done }
    }

    // Asking the shim.

    fn tell(&mut self, verb: Verb) -> Then {
        let (id, epoch) = (self.id(), self.epoch());
        if self.system.answering(id, epoch).is_some() {
            self.system.on_host(id, |host| {
                host.shim.iter_mut().for_each(|shim| shim.epoch = epoch);
            });
            self.system.send(Message { to: id, epoch, verb });
            return Then::Next(Deed::Await(verb));
        }
        match verb {
            Verb::Release if !self.lock_is_held(id) => Then::Next(Deed::RemoveRunDir),
            Verb::Release | Verb::Deadline | Verb::Stop | Verb::Kill => Then::Done,
        }
    }

    // Ending.

    fn kill_holder(&mut self) -> Then {
        let epoch = self.epoch();
        let blind = self.has(Mistake::NewbornUnseen);
        self.system.on_host(self.id(), |host| {
            let took_over = |shim: &mut Shim| host.noted && shim.stage >= Stage::TookOver;
            // One that has noted itself nowhere is found by having the lock open.
            let newborn = |shim: &mut Shim| !blind && !host.noted && shim.stage == Stage::Born;
            // Without a holder, it is the order that has the lock: ours can be abandoned.
            let ours = |shim: &mut Shim| shim.stage == Stage::Ordered && shim.ordered_by == epoch;
            let _ = host.shim.take_if(|shim| took_over(shim) || newborn(shim) || ours(shim));
        });
        Then::Next(Deed::KillGroup)
    }

    fn kill_group(&mut self) -> Then {
        self.system.on_host(self.id(), Host::kill_group);
        Then::Done
    }

    fn remove_run_dir(&mut self) -> Then {
        if self.host().is_some_and(|host| host.group != Group::Empty) {
            return Then::Done;
        }
        self.system.on_host(self.id(), |host| (host.run_dir, host.noted) = (false, false));
        Then::Next(Deed::RemoveExit)
    }

    fn remove_exit(&mut self) -> Then {
        self.system.on_host(self.id(), |host| host.exit = None);
        Then::Next(Deed::MarkReleased)
    }

    // Transactions.

    /// Changes the row if it is still the one that was planned for.
    fn commit(&mut self, change: impl FnOnce(&mut Row)) -> Option<Row> {
        let planned = self.row;
        let current = self.daemon().row.as_mut().filter(|row| row.same_wish(&planned))?;
        change(current);
        let committed = *current;
        self.system.disk.row = Some(committed);
        Some(committed)
    }

    /// The same for the instance; the status that goes with it knows what is the matter.
    fn commit_record(&mut self, change: impl FnOnce(&mut Record)) -> Option<Row> {
        self.commit(|row| {
            row.unknown = Unknown::No;
            if let Some(record) = &mut row.instance {
                change(record);
            }
        })
    }

    fn mark_running(&mut self) -> Then {
        let id = self.id();
        if self.daemon().ordered != Some(id) {
            // Another daemon started it: the shim is given its time limit again.
            return self.tell(Verb::Deadline);
        }
        let daemon = self.daemon();
        (daemon.ordered, daemon.young) = (None, false);
        self.commit_record(|record| record.phase = Phase::Running);
        Then::Done
    }

    fn mark_stopping(&mut self, force: bool) -> Then {
        let committed = self.commit_record(|record| {
            record.phase = Phase::Stopping;
            record.asked = true;
            record.forced |= force;
        });
        let verb = if force { Verb::Kill } else { Verb::Stop };
        if committed.is_some() { Then::Next(Deed::Tell(verb)) } else { Then::Done }
    }

    fn record(&mut self, exit: Exit) -> Then {
        let daemon = self.daemon();
        (daemon.ordered, daemon.young) = (None, false);
        self.commit_record(|record| {
            if !record.phase.is_dead() {
                record.phase = Phase::Dead;
                record.exit = Some(exit);
            }
        });
        Then::Done
    }

    fn mark_released(&mut self) -> Then {
        self.commit_record(|record| record.released = true);
        Then::Done
    }

    fn forget(&mut self) -> Then {
        let incarnation = self.row.incarnation;
        let gone = self.daemon().row.take_if(|row| row.incarnation == incarnation);
        if gone.is_some() {
            self.system.disk.row = None;
        }
        Then::Done
    }

    fn publish(&mut self, unknown: bool) -> Then {
        let planned = self.row;
        let current = self.daemon().row.as_mut().filter(|row| row.same_power(&planned));
        if let Some(row) = current {
            row.unknown = if unknown { Unknown::Since } else { Unknown::No };
            self.system.disk.row = Some(*row);
        }
        Then::Done
    }
}
