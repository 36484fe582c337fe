//! What must be true of every state, what must come of each once faults stop, and what must be seen to
//! happen so that the rest means something.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Mutex;

use crate::protocol_model::Protocol;
use crate::protocol_model::action::happen;
use crate::protocol_model::hash::Plain;
use crate::protocol_model::row::{Phase, Row};
use crate::protocol_model::system::{Daemon, End, Group, Host, Life, Stage, System};

/// By itself, everything comes to rest within so many things.
const STEPS_TO_REST_MAX: usize = 400;

/// A statement about a state, in words and in code.
pub(super) type Statement = (&'static str, fn(&Protocol, &System) -> bool);

/// True of every state. The numbers are those of docs/reliability.md.
pub(super) const PROMISES: [Statement; 6] = [
    ("S1: at most one workload lives", |_, system| {
        system.hosts.iter().flatten().filter(|host| host.group != Group::Empty).count() <= 1
    }),
    ("S4: what exists has a row", |_, system| {
        let explained = system.disk.row.and_then(|row| row.unreleased());
        system.hosts.iter().flatten().all(|host| !host.exists() || explained == Some(host.id))
    }),
    ("S5: what is recorded dead is dead, and nothing starts it", |_, system| {
        dead(system).is_none_or(|host| !can_live(system, host))
    }),
    ("S5: no exit is invented", |_, system| exit_is_true(system)),
    ("S13: no order of an older daemon is obeyed, and none that is not stored", |_, system| {
        system.breach.is_none()
    }),
    ("L1: everything comes to rest, as declared", Protocol::comes_to_rest),
];

/// True if nothing but daemons fails.
pub(super) const HARMLESS: Statement = ("S12: a daemon that dies ends nothing", |_, system| {
    let ends = |host: &&Host| host.ran && host.group != Group::Workload;
    let ended = system.hosts.iter().flatten().filter(ends).count();
    ended == 0 && last_end(system).is_none_or(|end| end == End::NeverStarted)
});

/// True of some state.
pub(super) const SIGHTS: [Statement; 10] = [
    ("a workload outlives its daemon and is adopted", |_, system| {
        let daemon = system.daemons[0];
        let adopted = |host: &Host| {
            let older = host.shim.is_some_and(|shim| shim.ordered_by < daemon.epoch);
            older && host.group == Group::Workload
        };
        runs_under(&daemon) && system.hosts.iter().flatten().any(adopted)
    }),
    ("an order of a dead daemon comes too late", |_, system| {
        system.flight.iter().flatten().any(|message| {
            let shim = system.host(message.to).and_then(|host| host.shim);
            shim.is_some_and(|shim| shim.listens() && shim.epoch > message.epoch)
        })
    }),
    ("a shim is forked after the daemon that ordered it died", |_, system| {
        let lives = |epoch| system.daemons.iter().any(|one| one.epoch == epoch);
        let born = |host: &Host| {
            host.shim.is_some_and(|one| one.stage == Stage::Born && !lives(one.ordered_by))
        };
        system.hosts.iter().flatten().any(born)
    }),
    ("an orphan is killed and recorded as lost", |_, system| {
        let lost = last_end(system) == Some(End::ShimGone);
        lost && dead(system).is_some_and(|host| host.ended == Some(End::Killed))
    }),
    ("a shim that was silent for too long is killed", |_, system| {
        let record = system.disk.row.and_then(|row| row.instance);
        let host = system.disk.row.and_then(|row| system.host(row.id()?));
        record.is_some_and(|one| !one.phase.is_dead())
            && host.is_some_and(|one| one.ran && one.shim.is_none() && one.group == Group::Empty)
    }),
    ("a start comes to nothing", |_, system| last_end(system) == Some(End::NeverStarted)),
    ("an exit is read from its file", |_, system| {
        let silent = |host: &Host| host.told.is_none() && host.shim.is_none();
        let recorded = matches!(last_end(system), Some(End::Itself | End::Asked));
        recorded && dead(system).is_some_and(silent)
    }),
    ("a power failure is recorded as one", |_, system| last_end(system) == Some(End::Reboot)),
    ("a sandbox is started again", |_, system| {
        let row = system.disk.row.filter(|row| row.incarnation == 0 && row.instances > 1);
        row.is_some_and(|row| runs(&row))
    }),
    ("a name that was deleted is declared again and runs", |_, system| {
        system.disk.row.is_some_and(|row| row.incarnation == 1 && runs(&row))
    }),
];

fn runs(row: &Row) -> bool {
    row.instance.is_some_and(|one| one.phase == Phase::Running)
}

fn runs_under(daemon: &Daemon) -> bool {
    daemon.life == Life::Up && daemon.row.is_some_and(|row| runs(&row))
}

fn last_end(system: &System) -> Option<End> {
    Some(system.disk.row?.instance?.exit?.end)
}

/// What is left of the instance that the store calls dead.
fn dead(system: &System) -> Option<&Host> {
    let row = system.disk.row?;
    row.instance.filter(|one| one.phase.is_dead())?;
    system.host(row.id()?)
}

/// Whether anything of it runs, or anybody is about to start it.
fn can_live(system: &System, host: &Host) -> bool {
    let before_its_end = host.shim.is_some_and(|shim| shim.stage < Stage::Ending);
    let is_started = system.daemons.iter().any(|daemon| daemon.is_starting(host.id));
    host.group != Group::Empty || before_its_end || is_started
}

/// An exit is what happened, or says that nobody knows.
fn exit_is_true(system: &System) -> bool {
    let Some(row) = system.disk.row else { return true };
    let Some((record, exit)) = row.instance.and_then(|one| Some((one, one.exit?))) else {
        return true;
    };
    // What was removed was looked at when it was still there.
    let Some(host) = row.id().filter(|_| !record.released).and_then(|id| system.host(id)) else {
        return true;
    };
    let so = match exit.end {
        End::Itself | End::Asked | End::Killed => host.ended == Some(exit.end),
        End::StartFailed | End::NeverStarted => !host.ran,
        End::Reboot => record.boot < system.boot,
        End::ShimGone => host.shim.is_none(),
    };
    so && host.told.is_none_or(|told| told == exit.end)
}

fn is_as_declared(system: &System) -> bool {
    let nothing = system.hosts.iter().flatten().all(|host| !host.exists());
    let Some(row) = system.disk.row else { return nothing };
    let record = row.instance;
    if !row.wants_to_run() {
        return !row.deleting && nothing && record.is_none_or(|one| one.released);
    }
    let current = record.is_some_and(|one| {
        one.phase == Phase::Running
            && (one.generation, one.request) == (row.generation, row.request)
    });
    let lives = row.id().and_then(|id| system.host(id)).is_some_and(|host| {
        host.group == Group::Workload && host.shim.is_some_and(|shim| shim.stage == Stage::Running)
    });
    current && lives
}

/// States from which everything comes to rest, by a number of each.
#[derive(Debug, Default)]
pub(super) struct Restful(Mutex<HashSet<u64, BuildHasherDefault<Plain>>>);

impl Protocol {
    /// Lets what happens by itself happen, the machine before time and both before the daemon, until
    /// nothing does. From wherever another order of things leads, this can be done as well: nothing that is
    /// not as declared is ever stuck.
    fn comes_to_rest(&self, system: &System) -> bool {
        let (mut now, mut path, mut own) = (*system, Vec::new(), Vec::new());
        while path.len() < STEPS_TO_REST_MAX {
            let number = number(&now);
            own.clear();
            if !self.restful.knows(number) {
                path.push(number);
                self.own(&now, &mut own);
            }
            let Some(action) = own.first() else {
                let rests = path.last() != Some(&number) || is_as_declared(&now);
                if rests {
                    self.restful.learn(&path);
                }
                return rests;
            };
            happen(&mut now, *action, self.mistake);
        }
        false
    }
}

impl Restful {
    fn knows(&self, number: u64) -> bool {
        self.0.lock().expect("nobody panics with it").contains(&number)
    }

    fn learn(&self, numbers: &[u64]) {
        self.0.lock().expect("nobody panics with it").extend(numbers);
    }
}

fn number(system: &System) -> u64 {
    let mut hasher = Plain::default();
    system.hash(&mut hasher);
    hasher.finish()
}
