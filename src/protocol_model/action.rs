//! What can happen next: all that is possible, and of that what happens by itself once nothing goes wrong
//! and nobody wants anything else.

use crate::protocol_model::machine;
use crate::protocol_model::order;
use crate::protocol_model::pass;
use crate::protocol_model::row::{Held, Row, Unknown};
use crate::protocol_model::system::{Daemon, Deed, Group, Host, Id, Life, Stage, System};
use crate::protocol_model::{Bounds, Mistake, Protocol};

/// One thing that happens. Daemons and orders by their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    DaemonStarts(usize),
    PassBegins(usize),
    PassGoesOn(usize),
    /// The shim has not answered in time.
    AnswerFails(usize),
    /// The fork server or the shim does the next thing.
    ShimGoesOn(Id),
    ShimReads(usize),
    WorkloadObeys(Id),
    ShimKills(Id),
    // Time passes.
    PatienceEnds,
    YouthEnds(usize),
    Wish(usize, Wish),
    Fault(Fault),
    // What comes of it.
    DaemonThaws(usize),
    ShimIsBack(Id),
    /// The kernel kills it with its shim.
    WorkloadFollows(Id),
    RestEnds(Id),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    DaemonDies(usize),
    DaemonFreezes(usize),
    StartFails(usize),
    /// A transaction is refused: the disk is full.
    StoreFails(usize),
    ServerDies(Id),
    ShimDies(Id),
    ShimFallsSilent(Id),
    WorkloadEnds(Id),
    PowerFails,
}

/// What people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    Put,
    Stop,
    Kill,
    Start,
    Delete,
    Create,
}

const WISHES: [Wish; 6] =
    [Wish::Put, Wish::Stop, Wish::Kill, Wish::Start, Wish::Delete, Wish::Create];

impl Protocol {
    /// What happens by itself. A pass that would change nothing is left out.
    pub(super) fn own(&self, system: &System, out: &mut Vec<Action>) {
        for host in system.hosts.iter().flatten() {
            if machine::can_go(host) {
                out.push(Action::ShimGoesOn(host.id));
            }
            if machine::may_obey(host) {
                out.push(Action::WorkloadObeys(host.id));
            }
            if machine::may_be_killed(host) {
                out.push(Action::ShimKills(host.id));
            }
        }
        for (slot, message) in system.flight.iter().enumerate() {
            let shim = message.and_then(|message| system.host(message.to)?.shim);
            if shim.is_some_and(|shim| shim.listens()) {
                out.push(Action::ShimReads(slot));
            }
        }
        // Before the daemons: those that try again and again do not keep time from passing.
        self.of_time(system, true, out);
        for (index, daemon) in system.daemons.iter().enumerate() {
            self.of_daemon(system, index, daemon, out);
        }
    }

    fn of_daemon(&self, system: &System, index: usize, daemon: &Daemon, out: &mut Vec<Action>) {
        match (daemon.life, daemon.pass) {
            (Life::Absent, _) if self.may_start(system, index) => {
                out.push(Action::DaemonStarts(index));
            }
            (Life::Absent, _) => (),
            (Life::Frozen, _) => out.push(Action::DaemonThaws(index)),
            (Life::Up, Some(pass)) if matches!(pass.next, Deed::Await(_)) => {
                if machine::is_unanswered(system, daemon) {
                    out.push(Action::AnswerFails(index));
                }
            }
            (Life::Up, Some(_)) => out.push(Action::PassGoesOn(index)),
            (Life::Up, None) if self.would_do_something(system, index) => {
                out.push(Action::PassBegins(index));
            }
            (Life::Up, None) => (),
        }
    }

    /// While a shim is silent, time is all that passes. Where nobody is, it takes a slow machine.
    fn of_time(&self, system: &System, silent: bool, out: &mut Vec<Action>) {
        let row = system.disk.row.filter(|row| row.unknown == Unknown::Since);
        if row.and_then(|row| row.id()).is_some_and(|id| is_silent(system, id) == silent) {
            out.push(Action::PatienceEnds);
        }
        for (index, daemon) in system.daemons.iter().enumerate() {
            let young = daemon.ordered.filter(|_| machine::may_grow_up(system, daemon));
            if young.is_some_and(|id| is_silent(system, id) == silent) {
                out.push(Action::YouthEnds(index));
            }
        }
    }

    /// A daemon starts if it gets the lock, which whoever lives has, frozen or not.
    fn may_start(&self, system: &System, index: usize) -> bool {
        let locked = system.daemons.iter().any(|one| one.life != Life::Absent);
        let first = system.daemons.iter().position(|one| one.life == Life::Absent);
        let unlocked = self.mistake == Some(Mistake::DaemonWithoutLock);
        let again = system.disk.epoch < self.bounds.epochs;
        first == Some(index) && (!locked || unlocked && again)
    }

    /// Whether a pass that nothing comes between would do anything.
    fn would_do_something(&self, system: &System, index: usize) -> bool {
        let mut later = *system;
        pass::begin(&mut later, index);
        while let Some(begun) = later.daemons[index].pass {
            let looks = matches!(
                begun.next,
                Deed::AskShim | Deed::LookAtLock | Deed::LookAtGroup | Deed::LookAtLockAfter { .. }
            );
            if !looks {
                return true;
            }
            pass::go(&mut later, index, self.mistake);
        }
        false
    }

    /// What goes wrong, what people do, and passes for no reason.
    pub(super) fn foreign(&self, system: &System, out: &mut Vec<Action>) {
        let Bounds { faults, wishes, .. } = self.bounds;
        for (index, daemon) in system.daemons.iter().enumerate() {
            if daemon.life != Life::Up {
                if daemon.life == Life::Frozen && system.faults < faults {
                    out.push(Action::Fault(Fault::DaemonDies(index)));
                }
                continue;
            }
            if daemon.pass.is_none() && daemon.row.is_some() {
                out.push(Action::PassBegins(index));
            }
            if system.wishes < wishes {
                let may = |wish: &Wish| may_wish(system, daemon, *wish);
                out.extend(WISHES.into_iter().filter(may).map(|one| Action::Wish(index, one)));
            }
            if system.faults < faults {
                out.extend([
                    Action::Fault(Fault::DaemonDies(index)),
                    Action::Fault(Fault::DaemonFreezes(index)),
                ]);
                let next = daemon.pass.filter(|_| !self.bounds.prompt).map(|pass| pass.next);
                if matches!(next, Some(Deed::MakeRunDir | Deed::OrderShim)) {
                    out.push(Action::Fault(Fault::StartFails(index)));
                }
                if next.is_some_and(|next| next.is_transaction()) {
                    out.push(Action::Fault(Fault::StoreFails(index)));
                }
            }
        }
        if self.bounds.prompt {
            return;
        }
        let budget = system.faults < faults;
        if budget {
            self.of_time(system, false, out);
        }
        system.hosts.iter().flatten().for_each(|host| of_host(host, budget, out));
        if budget && system.boot < self.bounds.boots {
            out.push(Action::Fault(Fault::PowerFails));
        }
    }
}

fn is_silent(system: &System, id: Id) -> bool {
    system.host(id).and_then(|host| host.shim).is_some_and(|shim| shim.silent)
}

fn of_host(host: &Host, budget: bool, out: &mut Vec<Action>) {
    let id = host.id;
    match host.shim {
        Some(shim) if shim.silent => out.push(Action::ShimIsBack(id)),
        Some(shim) if shim.stage == Stage::Ordered && budget => {
            out.push(Action::Fault(Fault::ServerDies(id)));
        }
        Some(_) if budget => out.extend([
            Action::Fault(Fault::ShimDies(id)),
            Action::Fault(Fault::ShimFallsSilent(id)),
        ]),
        Some(_) => (),
        None if host.group == Group::Workload => out.push(Action::WorkloadFollows(id)),
        None => (),
    }
    if host.shim.is_some_and(|shim| shim.silent) && budget {
        out.push(Action::Fault(Fault::ShimDies(id)));
    }
    if host.group == Group::Workload && budget {
        out.push(Action::Fault(Fault::WorkloadEnds(id)));
    }
    if host.group == Group::Rest {
        out.push(Action::RestEnds(id));
    }
}

/// What the store would say yes to, and what would change something.
fn may_wish(system: &System, daemon: &Daemon, wish: Wish) -> bool {
    let Some(row) = daemon.row else {
        return wish == Wish::Create && system.disk.incarnations < 2;
    };
    !row.deleting
        && match wish {
            Wish::Put | Wish::Delete => true,
            // Of what may run, it would be what a changed spec is: a reason to end it and start it again.
            Wish::Start => row.held != Held::No,
            Wish::Stop => row.held == Held::No,
            Wish::Kill => row.held != Held::Killed,
            Wish::Create => false,
        }
}

fn grant(system: &mut System, index: usize, wish: Wish) {
    system.wishes += 1;
    let mut row = system.daemons[index].row;
    match (wish, &mut row) {
        (Wish::Create, _) => {
            row = Some(Row::new(system.disk.incarnations));
            system.disk.incarnations += 1;
        }
        (_, None) => (),
        (Wish::Put, Some(row)) => row.generation += 1,
        (Wish::Stop, Some(row)) => row.held = Held::Stopped,
        (Wish::Kill, Some(row)) => row.held = Held::Killed,
        (Wish::Start, Some(row)) => {
            row.held = Held::No;
            row.request += 1;
        }
        (Wish::Delete, Some(row)) => row.deleting = true,
    }
    system.daemons[index].row = row;
    system.disk.row = row;
}

/// Lets it happen.
pub(super) fn happen(system: &mut System, action: Action, mistake: Option<Mistake>) {
    match action {
        Action::DaemonStarts(index) => pass::start_daemon(system, index),
        Action::PassBegins(index) => pass::begin(system, index),
        Action::PassGoesOn(index) => pass::go(system, index, mistake),
        Action::AnswerFails(index) => system.daemons[index].pass = None,
        Action::ShimGoesOn(id) => system.on_host(id, machine::go),
        Action::ShimReads(slot) => order::deliver(system, slot, mistake),
        Action::WorkloadObeys(id) => system.on_host(id, machine::obeys),
        Action::ShimKills(id) => system.on_host(id, Host::kill_group),
        Action::PatienceEnds => {
            let id = system.disk.row.and_then(|row| row.id());
            system.faults += u8::from(!id.is_some_and(|id| is_silent(system, id)));
            machine::lose_patience(system);
        }
        Action::YouthEnds(index) => {
            let id = system.daemons[index].ordered;
            system.faults += u8::from(!id.is_some_and(|id| is_silent(system, id)));
            system.daemons[index].young = false;
        }
        Action::Wish(index, wish) => grant(system, index, wish),
        Action::DaemonThaws(index) => system.daemons[index].life = Life::Up,
        Action::ShimIsBack(id) => system.on_host(id, |host| {
            host.shim.iter_mut().for_each(|shim| shim.silent = false);
        }),
        Action::WorkloadFollows(id) => system.on_host(id, Host::kill_group),
        Action::RestEnds(id) => system.on_host(id, |host| host.group = Group::Empty),
        Action::Fault(fault) => go_wrong(system, fault),
    }
    system.tidy();
}

fn go_wrong(system: &mut System, fault: Fault) {
    system.faults += 1;
    match fault {
        Fault::DaemonDies(index) => {
            system.daemons[index] = Daemon::ABSENT;
        }
        Fault::DaemonFreezes(index) => system.daemons[index].life = Life::Frozen,
        Fault::StartFails(index) => {
            let pass = &mut system.daemons[index].pass;
            pass.iter_mut().for_each(|pass| pass.next = Deed::RecordFailedStart);
        }
        Fault::StoreFails(index) => system.daemons[index].pass = None,
        Fault::ServerDies(id) | Fault::ShimDies(id) => machine::shim_dies(system, id),
        Fault::ShimFallsSilent(id) => system.on_host(id, |host| {
            host.shim.iter_mut().for_each(|shim| shim.silent = true);
        }),
        Fault::WorkloadEnds(id) => system.on_host(id, machine::ends),
        Fault::PowerFails => machine::reboot(system),
    }
}
