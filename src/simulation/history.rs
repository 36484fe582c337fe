//! One history: everything that can happen, in an order that the seed decides, then rest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

use crate::simulation::checks::Checks;
use crate::simulation::daemon::{Daemon, Shared, Turn};
use crate::simulation::directory::Directory;
use crate::simulation::scene::{Scene, Swarm, spec};
use crate::store::Snapshot;
use sodium_model::{Hold, Iid, Owner, Phase, Sandbox, SandboxName};

/// Events until the faults stop.
const EVENTS: u64 = 120;
/// How long it may take then until everything is as declared: longer than the longest pause.
const REST_MS_MAX: u64 = 1_800_000;
/// And for how long nothing may happen afterwards.
const STILL_MS: u64 = 1_200_000;

/// Lines of each part of a history that failed.
const TAIL: usize = 80;

/// A daemon that is started again whenever it is killed, and everything around it.
pub(super) struct History {
    pub(super) scene: Shared,
    pub(super) daemon: Option<Daemon>,
    checks: Checks,
    dir: tempfile::TempDir,
}

/// Plays a seed. The error ends with what led to it.
pub(super) fn run(seed: u64) -> Result<(), String> {
    let mut history = History::new(seed);
    let swarm = Swarm::roll(&mut history.scene.borrow_mut().dice);
    history.scene.borrow_mut().swarm = swarm;
    let done = history.play();
    done.map_err(|why| format!("{why}\n{}", history.tail()))
}

/// Everything that happens in a seed.
pub(super) fn trace(seed: u64) -> Vec<String> {
    let mut history = History::new(seed);
    let swarm = Swarm::roll(&mut history.scene.borrow_mut().dice);
    history.scene.borrow_mut().swarm = swarm;
    history.play().unwrap();
    let scene = history.scene.borrow();
    scene.trace.clone()
}

impl History {
    pub(super) fn new(seed: u64) -> Self {
        // Whether a disk keeps what it was given is not what is tried here, and memory is fast.
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("sodium-sim-").tempdir_in(place).unwrap();
        let scene = Rc::new(RefCell::new(Scene::new(seed)));
        Self { scene, daemon: None, checks: Checks::default(), dir }
    }

    fn play(&mut self) -> Result<(), String> {
        for _ in 0..EVENTS {
            self.event()?;
        }
        self.rest()
    }

    fn event(&mut self) -> Result<(), String> {
        let kind = self.scene.borrow_mut().dice.roll(12);
        match kind {
            0..=4 => drop(self.turn()?),
            5 => {
                let complete = self.scene.borrow_mut().dice.roll(4) > 0;
                self.scan(complete)?;
            }
            6 => {
                let mut scene = self.scene.borrow_mut();
                let ms = scene.dice.pick(&[1, 100, 1_000, 5_000, 70_000]);
                scene.pass_time(ms);
            }
            7 => {
                let dies = {
                    let mut scene = self.scene.borrow_mut();
                    let rate = scene.swarm.die * 4;
                    scene.dice.chance(rate)
                };
                if dies {
                    self.kill();
                }
            }
            _ => self.scene.borrow_mut().happen(),
        }
        self.check()
    }

    /// A turn of the daemon, which is started first if there is none.
    pub(super) fn turn(&mut self) -> Result<Turn, String> {
        if !self.start() {
            return Ok(Turn::Killed);
        }
        let Some(daemon) = &mut self.daemon else { return Ok(Turn::Killed) };
        let turn = daemon.turn(&self.scene);
        if turn == Turn::Killed {
            self.kill();
        }
        self.check()?;
        Ok(turn)
    }

    pub(super) fn scan(&mut self, complete: bool) -> Result<(), String> {
        if !self.start() {
            return Ok(());
        }
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        if daemon.scan(&self.scene, complete)? == Turn::Killed {
            self.kill();
        }
        self.check()
    }

    pub(super) fn start(&mut self) -> bool {
        let alive = self.daemon.as_ref().is_some_and(|daemon| daemon.lives(&self.scene.borrow()));
        if !alive {
            self.kill();
            self.daemon = Daemon::start(&self.scene, self.dir.path());
        }
        self.daemon.is_some()
    }

    pub(super) fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill(&self.scene);
            self.checks.daemon_died();
        }
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        let scene = self.scene.borrow();
        self.checks.machine(&scene)?;
        match &self.daemon {
            Some(daemon) => self.checks.store(&scene, &daemon.world.store),
            None => Ok(()),
        }
    }

    /// Everything that is due, and what becomes due, until `elapsed_ms`.
    pub(super) fn go_on(&mut self, until: u64) -> Result<(), String> {
        for _ in 0..20_000 {
            self.scene.borrow().settle();
            if self.turn()? == Turn::Passed {
                continue;
            }
            let mut scene = self.scene.borrow_mut();
            if scene.elapsed_ms >= until {
                return Ok(());
            }
            let deadline = {
                let machine = scene.machine();
                machine.next_deadline().map(|at| at.saturating_sub(machine.up_ms))
            };
            let due = self.daemon.as_ref().and_then(Daemon::next_due);
            let elapsed = scene.elapsed_ms;
            let due = due.map_or(1_000, |at| at.saturating_sub(elapsed));
            let step = due.min(deadline.unwrap_or(u64::MAX)).clamp(1, until - elapsed);
            scene.pass_time(step);
        }
        Err("it does not rest: 20000 turns".to_owned())
    }

    /// The faults stop: everything becomes as declared, and stays so.
    fn rest(&mut self) -> Result<(), String> {
        self.scene.borrow_mut().calm();
        self.start();
        self.scene.borrow_mut().drain(false);
        let ends = self.scene.borrow().elapsed_ms + REST_MS_MAX;
        // A file is missed for a while before it is believed, and people confirm.
        for _ in 0..3 {
            self.scan(true)?;
            self.scene.borrow_mut().confirm();
            self.scene.borrow_mut().pass_time(3_000);
        }
        self.ask_to_run();
        loop {
            let now = self.scene.borrow().elapsed_ms;
            self.go_on((now + 20_000).min(ends))?;
            // What was being deleted may have kept a file waiting.
            self.scan(true)?;
            let unsettled = self.unsettled();
            match unsettled {
                None => break,
                Some(why) if self.scene.borrow().elapsed_ms >= ends => {
                    return Err(format!("it never became as declared: {why}"));
                }
                Some(_) => (),
            }
        }
        self.stay()
    }

    fn stay(&mut self) -> Result<(), String> {
        let (rv, starts) = self.position();
        let until = self.scene.borrow().elapsed_ms + STILL_MS;
        self.go_on(until)?;
        let (rv_after, starts_after) = self.position();
        if starts_after != starts {
            return Err("something was started although everything was as declared".to_owned());
        }
        // At most one word for each that it has been healthy long enough.
        if rv_after > rv + 6 {
            return Err(format!("the store does not rest: {} changes", rv_after - rv));
        }
        self.unsettled().map_or(Ok(()), |why| Err(format!("it did not stay: {why}")))
    }

    fn position(&self) -> (u64, u64) {
        let store = self.scene.borrow().store.clone();
        let rv = store.map_or(0, |store| store.snapshot().rv);
        (rv, self.scene.borrow().machine().truth.starts)
    }

    /// Everything of people's is to run on, so that what is declared is simple to tell.
    fn ask_to_run(&mut self) {
        self.start();
        let mut scene = self.scene.borrow_mut();
        let Some(store) = scene.store.clone() else { return };
        for (name, sandbox) in &store.snapshot().sandboxes {
            if sandbox.owner == Owner::Api && sandbox.deletion.is_none() {
                scene.put(name.as_str(), spec(&["sleep", "1"], "always", 32));
            }
        }
    }

    /// What is not as declared, if anything.
    fn unsettled(&self) -> Option<String> {
        let Some(daemon) = &self.daemon else { return Some("there is no daemon".to_owned()) };
        let scene = self.scene.borrow();
        let running: BTreeSet<Iid> = scene.machine().running().into_iter().collect();
        let mut live = BTreeSet::new();
        let snapshot = daemon.world.store.snapshot();
        for sandbox in snapshot.sandboxes.values() {
            if let Some(why) = wrong(sandbox, &running) {
                return Some(format!("{}: {why}", sandbox.name));
            }
            live.extend(sandbox.live().map(|live| live.iid.clone()));
        }
        if let Some(why) = not_as_declared(&scene.directory, &snapshot) {
            return Some(why);
        }
        let machine = scene.machine();
        let residues = machine.residues();
        if residues != live || !machine.exits.is_empty() {
            return Some(format!("left on the machine: {residues:?} of {live:?}"));
        }
        drop(machine);
        (scene.waiting_exits() > 0).then(|| "a shim waits to be released".to_owned())
    }

    /// What happened last while faults were about, and last of all.
    pub(super) fn tail(&self) -> String {
        let scene = self.scene.borrow();
        let calm = scene.trace.iter().position(|line| line.ends_with(" calm"));
        let (faults, rest) = scene.trace.split_at(calm.unwrap_or(scene.trace.len()));
        let faults = &faults[faults.len().saturating_sub(TAIL)..];
        let (begin, end) = rest.split_at(rest.len().min(TAIL));
        let end = &end[end.len().saturating_sub(TAIL)..];
        [faults, begin, end].concat().join("\n")
    }
}

/// Which document of the healed directory is not in force. Sandboxes of people's go before files.
fn not_as_declared(directory: &Directory, snapshot: &Snapshot) -> Option<String> {
    let wanted = spec(&["sleep", "1"], "always", 32);
    directory.documents().find_map(|(path, name)| {
        let mine = |(_, other): &(&str, &str)| *other == name;
        let paths: Vec<&str> = directory.documents().filter(mine).map(|(path, _)| path).collect();
        let Some(sandbox) = snapshot.sandboxes.get(&SandboxName::try_from(name).unwrap()) else {
            // Where several declare what does not exist, none of them is believed.
            let alone = paths.len() == 1;
            return alone.then(|| format!("{path} declares {name}, which does not exist"));
        };
        match &sandbox.owner {
            Owner::Api => None,
            Owner::File(owner) if !paths.contains(&owner.as_str()) => {
                Some(format!("{path} declares {name}, and {owner} has it"))
            }
            Owner::File(owner) if *sandbox.spec != wanted => {
                Some(format!("{name} is not as {owner} declares it: {:?}", sandbox.spec))
            }
            Owner::File(_) => None,
        }
    })
}

fn wrong(sandbox: &Sandbox, running: &BTreeSet<Iid>) -> Option<String> {
    if sandbox.deletion.is_some() {
        return Some("it is still being deleted".to_owned());
    }
    if sandbox.status.observed_generation != sandbox.generation {
        return Some("its status speaks of an earlier edit".to_owned());
    }
    let held = matches!(sandbox.power.hold, Some(Hold::Stopped | Hold::Killed));
    let runs = sandbox.live().is_some_and(|live| running.contains(&live.iid));
    match (held, runs) {
        (true, false) => return None,
        (true, true) => return Some("it is held, and it runs".to_owned()),
        (false, false) => return Some(format!("it does not run: {:?}", sandbox.status)),
        (false, true) => (),
    }
    let current = sandbox.live().is_some_and(|live| live.generation == sandbox.generation);
    let told = matches!(sandbox.status.phase, Phase::Running | Phase::Paused);
    (!current || !told).then(|| format!("it runs, and its status says {:?}", sandbox.status.phase))
}
