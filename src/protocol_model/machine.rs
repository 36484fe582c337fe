//! What happens beside the daemons: shims, workloads, the kernel, and everything that goes wrong. The order
//! in which a shim does things is that of [`sodium_shim`].

use crate::protocol_model::row::{Exit, Unknown};
use crate::protocol_model::system::{
    Daemon, Deed, End, FLIGHT_COUNT_MAX, Group, Host, Id, Life, Saved, Shim, Stage, System, Verb,
};

/// Whether a shim, or the fork server with its order, has something to do.
pub(super) fn can_go(host: &Host) -> bool {
    let Some(shim) = host.shim.filter(|shim| !shim.silent) else { return false };
    match shim.stage {
        Stage::Ordered
        | Stage::Born
        | Stage::TookOver
        | Stage::Launched
        | Stage::Launching
        | Stage::Ending
        | Stage::Written => true,
        Stage::Running => host.group != Group::Workload,
        Stage::Exited => false,
    }
}

/// The next thing that it does.
pub(super) fn go(host: &mut Host) {
    let Some(shim) = &mut host.shim else { return };
    let has_ended = host.group != Group::Workload;
    match shim.stage {
        Stage::Ordered => shim.stage = Stage::Born,
        // It was removed meanwhile: there is nothing to be the shim of.
        Stage::Born if !host.run_dir => host.shim = None,
        Stage::Born => {
            host.noted = true;
            shim.stage = Stage::TookOver;
        }
        Stage::TookOver => {
            host.group = Group::Workload;
            host.ran = true;
            shim.stage = Stage::Launched;
        }
        Stage::Launched => shim.stage = Stage::Launching,
        Stage::Launching | Stage::Running if has_ended => shim.stage = Stage::Ending,
        Stage::Launching => shim.stage = Stage::Running,
        Stage::Ending if host.group == Group::Rest => host.group = Group::Empty,
        Stage::Ending => {
            let end = host.ended.expect("it was reaped");
            let exit = Exit { end, asked: shim.ending.is_some() };
            host.exit = Some(Saved { exit, synced: false });
            shim.stage = Stage::Written;
        }
        Stage::Written => {
            host.exit.iter_mut().for_each(|saved| saved.synced = true);
            shim.stage = Stage::Exited;
        }
        Stage::Running | Stage::Exited => (),
    }
}

/// Whether the workload has had the signal that asks it to end.
pub(super) fn may_obey(host: &Host) -> bool {
    let told = |shim: Shim| shim.ending == Some(Verb::Stop) && shim.stage == Stage::Running;
    host.group == Group::Workload && host.shim.is_some_and(told)
}

/// Whether its shim may kill it: at once, or because the grace is over.
pub(super) fn may_be_killed(host: &Host) -> bool {
    let due = |shim: Shim| {
        let up = matches!(shim.stage, Stage::Launching | Stage::Running);
        up && !shim.silent && shim.ending.is_some()
    };
    host.group == Group::Workload && host.shim.is_some_and(due)
}

/// The workload ends as it was asked to.
pub(super) fn obeys(host: &mut Host) {
    host.ended = Some(End::Asked);
    host.group = Group::Empty;
}

/// The workload ends by itself, and leaves something behind.
pub(super) fn ends(host: &mut Host) {
    host.ended = Some(End::Itself);
    host.group = Group::Rest;
}

/// Its lock is free from here on.
pub(super) fn shim_dies(system: &mut System, id: Id) {
    system.on_host(id, |host| host.shim = None);
}

/// The power fails.
pub(super) fn reboot(system: &mut System) {
    system.boot += 1;
    system.daemons = [Daemon::ABSENT; 2];
    system.flight = [None; FLIGHT_COUNT_MAX];
    for host in system.hosts.iter_mut().flatten() {
        (host.run_dir, host.noted, host.shim, host.group) = (false, false, None, Group::Empty);
        let _ = host.exit.take_if(|saved| !saved.synced);
    }
}

/// So much time passes that an unknown instance has been unknown for too long.
pub(super) fn lose_patience(system: &mut System) {
    let later = |unknown: &mut Unknown| {
        if *unknown == Unknown::Since {
            *unknown = Unknown::ForLong;
        }
    };
    system.disk.row.iter_mut().for_each(|row| later(&mut row.unknown));
    for daemon in &mut system.daemons {
        daemon.row.iter_mut().for_each(|row| later(&mut row.unknown));
        daemon.pass.iter_mut().for_each(|pass| later(&mut pass.row.unknown));
    }
}

/// Whether an answer that a daemon waits for does not come: its time is up then.
pub(super) fn is_unanswered(system: &System, daemon: &Daemon) -> bool {
    let Some(pass) = daemon.pass else { return false };
    let Deed::Await(verb) = pass.next else { return false };
    let sent =
        system.flight.iter().flatten().find(|one| one.epoch == daemon.epoch && one.verb == verb);
    sent.is_none_or(|one| {
        let shim = system.host(one.to).and_then(|host| host.shim);
        shim.is_none_or(|shim| shim.silent)
    })
}

/// Whether the time passes in which silence is forgiven to a shim that was just ordered.
pub(super) fn may_grow_up(system: &System, daemon: &Daemon) -> bool {
    let shim = daemon.ordered.and_then(|id| system.host(id)?.shim);
    daemon.young && daemon.life == Life::Up && shim.is_some_and(|shim| !shim.has_socket())
}
