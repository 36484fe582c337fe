//! What becomes of an order between the daemon that sends it and the shim that reads it: the shim's side of
//! [`sodium_shim::protocol`], with the fence against daemons that are older than the newest that said hello.

use crate::protocol_model::Mistake;
use crate::protocol_model::row::{Exit, Phase, Record};
use crate::protocol_model::system::{
    Breach, Daemon, Deed, End, Host, Life, Message, Pass, Stage, System, Verb,
};

/// A shim reads an order. Whoever sent it, if it still lives, goes on.
pub(super) fn deliver(system: &mut System, slot: usize, mistake: Option<Mistake>) {
    let Some(message) = system.flight[slot].take() else { return };
    let Message { to, epoch, verb } = message;
    let newest = system.host(to).and_then(|host| host.shim).map_or(0, |shim| shim.epoch);
    let stale = epoch < newest;
    let obeyed = !stale || mistake == Some(Mistake::NoEpochFence);
    let is_stored = system.disk.row.is_some_and(|row| {
        let ending = |one: Record| matches!(one.phase, Phase::Stopping | Phase::Dead);
        row.id() == Some(to) && row.instance.is_some_and(ending)
    });
    let ends = matches!(verb, Verb::Stop | Verb::Kill);
    if obeyed && stale {
        system.breach = Some(Breach::StaleOrder);
    } else if obeyed && ends && !is_stored {
        system.breach = Some(Breach::UnstoredOrder);
    }
    let mut done = obeyed;
    if obeyed {
        system.on_host(to, |host| done = obey(host, verb));
    }
    answer(system, message, done, mistake);
}

/// Returns whether the shim says that it is done.
fn obey(host: &mut Host, verb: Verb) -> bool {
    let Some(shim) = &mut host.shim else { return false };
    // What its record says cannot be asked for any more.
    let may_end = shim.stage <= Stage::Ending;
    match verb {
        Verb::Stop if may_end => {
            shim.ending.get_or_insert(Verb::Stop);
        }
        Verb::Kill if may_end => shim.ending = Some(Verb::Kill),
        Verb::Deadline | Verb::Stop | Verb::Kill => (),
        Verb::Release if shim.stage == Stage::Exited => host.shim = None,
        Verb::Release => return false,
    }
    true
}

fn answer(system: &mut System, message: Message, done: bool, mistake: Option<Mistake>) {
    let asked = |daemon: &Daemon| {
        daemon.life != Life::Absent
            && daemon.epoch == message.epoch
            && daemon.pass.is_some_and(|pass| pass.next == Deed::Await(message.verb))
    };
    let Some(index) = system.daemons.iter().position(asked) else { return };
    let Some(pass) = system.daemons[index].pass else { return };
    let unproved = mistake == Some(Mistake::DeadWithoutProof);
    let next = match message.verb {
        _ if !done => None,
        Verb::Release => Some(Deed::RemoveRunDir),
        Verb::Stop | Verb::Kill if unproved => {
            Some(Deed::RecordExit(Exit { end: End::ShimGone, asked: true }))
        }
        Verb::Stop | Verb::Kill => None,
        Verb::Deadline => {
            go_on_marking(system, index);
            return;
        }
    };
    system.daemons[index].pass = next.map(|next| Pass { next, ..pass });
}

/// The transaction that was put off until the shim had answered.
fn go_on_marking(system: &mut System, index: usize) {
    let Some(pass) = &mut system.daemons[index].pass else { return };
    pass.next = Deed::MarkRunning;
    system.daemons[index].ordered = pass.row.id();
}
