//! Stories that every daemon lives through, told again with its death at each point of them, once and
//! twice. Whatever is cut short, the end is that of the story that was not.

use std::collections::BTreeSet;

use crate::simulation::directory::body;
use crate::simulation::history::History;
use crate::simulation::scene::spec;
use crate::store::edit::Verb;
use sodium_model::ExitKind;
use sodium_runtime::fake::machine::What;

use Act::{
    Alone, Delete, Drain, Edit, End, KillShims, Power, Put, Reboot, Remove, Rename, Restart, Run,
    Scan, Write,
};

/// One thing that happens in a story.
#[derive(Debug, Clone, Copy)]
enum Act {
    Put(&'static str, &'static str),
    /// The limit on memory, which is applied to what runs.
    Edit(&'static str, u64),
    Power(&'static str, Verb),
    Delete(&'static str),
    /// Every workload ends with this code.
    End(i32),
    KillShims,
    Reboot,
    Write(&'static str, &'static str),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    Scan,
    /// The daemon is replaced by another, as by an upgrade.
    Restart,
    Drain(bool),
    /// Without a daemon, for so long.
    Alone(u64),
    /// Everything that is due, for so long.
    Run(u64),
}

/// Long enough for every pause in here to end.
const LONG: u64 = 90_000;

const STORIES: [(&str, &[Act]); 15] = [
    ("out of time", &[Put("a", "timed"), Run(10_000), Run(LONG), Run(LONG)]),
    ("out of time while nobody looks", &[Put("a", "timed"), Run(10_000), Alone(60_000), Run(LONG)]),
    (
        "drain",
        &[
            Put("a", "sleep"),
            Put("b", "trap"),
            Run(LONG),
            Drain(true),
            Run(LONG),
            Put("c", "sleep"),
            Run(LONG),
            Restart,
            Run(LONG),
            Drain(false),
            Run(LONG),
        ],
    ),
    ("create", &[Put("a", "sleep"), Run(LONG)]),
    ("edit in place", &[Put("a", "sleep"), Run(LONG), Edit("a", 64), Run(LONG)]),
    ("edit with a restart", &[Put("a", "sleep"), Run(LONG), Put("a", "trap"), Run(LONG)]),
    ("crash and back-off", &[Put("a", "sleep"), Run(LONG), End(1), Run(LONG), End(3), Run(LONG)]),
    ("it ends well", &[Put("a", "sleep"), Run(LONG), End(0), Run(LONG)]),
    (
        "stop, kill, start",
        &[
            Put("a", "trap"),
            Run(LONG),
            Power("a", Verb::Stop),
            Run(LONG),
            Power("a", Verb::Start),
            Run(LONG),
            Power("a", Verb::Kill),
            Run(LONG),
        ],
    ),
    (
        "pause, resume, restart",
        &[
            Put("a", "fork"),
            Run(LONG),
            Power("a", Verb::Pause),
            Run(LONG),
            Power("a", Verb::Resume),
            Run(LONG),
            Power("a", Verb::Restart),
            Run(LONG),
        ],
    ),
    (
        "delete",
        &[Put("a", "fork"), Run(LONG), Delete("a"), Run(LONG), Put("a", "sleep"), Run(LONG)],
    ),
    (
        "adopt",
        &[Put("a", "sleep"), Put("b", "true"), Run(LONG), Restart, Run(LONG), End(1), Run(LONG)],
    ),
    (
        "shims die, and a reboot",
        &[Put("a", "sleep"), Run(LONG), KillShims, Run(LONG), Reboot, Run(LONG)],
    ),
    (
        "files",
        &[
            Write("x.yaml", "a"),
            Scan,
            Run(LONG),
            Rename("x.yaml", "y.yaml"),
            Scan,
            Run(LONG),
            Scan,
            Write("y.yaml", "b"),
            Scan,
            Run(LONG),
            Scan,
            Run(LONG),
        ],
    ),
    (
        "two who claim a name",
        &[
            Put("a", "sleep"),
            Run(LONG),
            Write("x.yaml", "a"),
            Scan,
            Run(LONG),
            Delete("a"),
            Run(LONG),
            Scan,
            Run(LONG),
            Remove("x.yaml"),
            Scan,
            Run(LONG),
            Scan,
            Run(LONG),
        ],
    ),
];

/// How near to the first the second death is, unless somebody has the time for all.
const NEAR: u64 = 3;

/// What a story came to.
struct Told {
    end: String,
    points: u64,
    trace: String,
}

/// The end of a story, and how many points it has.
fn tell(acts: &[Act], deaths: &[u64]) -> Result<Told, String> {
    let mut history = History::new(1);
    history.scene.borrow_mut().deaths = deaths.to_vec();
    for act in acts {
        history.start();
        happen(&mut history, *act)
            .and_then(|()| history.check())
            .map_err(|why| format!("{act:?}: {why}\n{}", history.tail()))?;
    }
    Ok(Told {
        end: end(&mut history),
        points: history.scene.borrow().points,
        trace: history.tail(),
    })
}

fn happen(history: &mut History, act: Act) -> Result<(), String> {
    let scene = std::rc::Rc::clone(&history.scene);
    let one = |name: &'static str| BTreeSet::from([name]);
    match act {
        Put(name, command) => {
            scene.borrow_mut().put(name, spec(&[command], "on-failure", 32));
        }
        Edit(name, memory) => scene.borrow_mut().put(name, spec(&["sleep"], "on-failure", memory)),
        Power(name, verb) => scene.borrow_mut().power(name, verb),
        Delete(name) => scene.borrow_mut().delete(name, false),
        End(code) => {
            let scene = scene.borrow();
            let mut machine = scene.machine();
            let first = machine.pids(|what| matches!(what, What::Workload { .. }));
            first.into_iter().for_each(|pid| machine.end(pid, ExitKind::Exited { code }));
        }
        KillShims => {
            let scene = scene.borrow();
            let mut machine = scene.machine();
            machine.processes.retain(|_, process| !matches!(process.what, What::Shim(_)));
        }
        Reboot => scene.borrow().machine().reboot(true),
        Write(path, name) => {
            let text = body(&["sleep", "1"], "on-failure", 32);
            scene.borrow_mut().directory.write(path, &one(name), &text);
        }
        Remove(path) => scene.borrow_mut().directory.remove(path),
        Rename(from, to) => scene.borrow_mut().directory.rename(from, to),
        // A daemon that dies in it looks again when it is back.
        Scan => loop {
            history.scan(true)?;
            if history.daemon.is_some() {
                break;
            }
        },
        Restart => history.kill(),
        Drain(drained) => scene.borrow_mut().drain(drained),
        Alone(ms) => {
            history.kill();
            scene.borrow().settle();
            let mut scene = scene.borrow_mut();
            scene.pass_time(ms);
            scene.settle();
            scene.pass_time(ms);
            scene.settle();
        }
        Run(ms) => {
            let until = scene.borrow().elapsed_ms + ms;
            history.go_on(until)?;
        }
    }
    Ok(())
}

/// What people can see, and what is on the machine.
fn end(history: &mut History) -> String {
    history.start();
    let scene = history.scene.borrow();
    let store = scene.store.as_ref().unwrap();
    let machine = scene.machine();
    let mut lines = vec![format!(
        "{} run, {} left, {} exits",
        machine.running().len(),
        machine.residues().len(),
        machine.exits.len()
    )];
    for sandbox in store.snapshot().sandboxes.values() {
        lines.push(format!(
            "{} of {}, generation {} ({}), {:?}, {:?}, deleted: {}, {} failures, last: {:?}",
            sandbox.name,
            sandbox.owner,
            sandbox.generation,
            sandbox.status.observed_generation,
            sandbox.power,
            sandbox.status.phase,
            sandbox.deletion.is_some(),
            sandbox.history.failures,
            sandbox.last_exit().map(|exit| &exit.kind),
        ));
    }
    lines.join("\n")
}

/// Every story with a death at each point, and with a second one after it.
fn sweep(near: u64) {
    for (name, acts) in STORIES {
        let whole = tell(acts, &[]).unwrap_or_else(|why| panic!("{name}: {why}"));
        let points = whole.points;
        let compare = |deaths: &[u64]| {
            let cut = tell(acts, deaths).unwrap_or_else(|why| panic!("{name}, {deaths:?}: {why}"));
            assert_eq!(cut.end, whole.end, "{name}, killed at {deaths:?}\n{}", cut.trace);
            cut.points
        };
        for first in 0..points {
            let points = compare(&[first]);
            for second in first + 1..points.min(first + 1 + near) {
                compare(&[first, second]);
            }
        }
    }
}

#[test]
fn a_story_cut_short_anywhere_ends_as_the_whole_one() {
    let all = std::env::var_os("ALL_PAIRS").is_some();
    sweep(if all { u64::MAX / 2 } else { NEAR });
}
