//! Everything but the daemon: the machine, the people, the clock, and what was promised to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use uuid::Uuid;

use crate::simulation::dice::Dice;
use crate::simulation::directory::Directory;
use crate::store::edit::{self, Delete, Precondition, Put, Refusal, Verb};
use crate::store::{Store, StoreError, Uids, files};
use sodium_model::draft::read_spec;
use sodium_model::tree::Faults;
use sodium_model::{
    Deletion, ExitKind, Hold, Isolation, Limits, Owner, Power, RestartPolicy, Sandbox, SandboxName,
    Spec, Time, admission,
};
use sodium_runtime::fake::machine::{Machine, What, killed};
use sodium_runtime::fake::shim::Stage;

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
pub(super) const COMMANDS: [&[&str]; 7] = [
    &["sleep", "1"],
    &["true"],
    &["false"],
    &["no-such-program"],
    &["trap"],
    &["fork"],
    &["timed"],
];
/// What `timed` is given.
pub(super) const TIMED_SECONDS: u64 = 20;
pub(super) const POLICIES: [&str; 3] = ["always", "on-failure", "never"];
const VERBS: [Verb; 6] =
    [Verb::Start, Verb::Stop, Verb::Kill, Verb::Restart, Verb::Pause, Verb::Resume];

/// How often what goes wrong in this history: each is off in about half of all.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    pub(super) die: u64,
    pub(super) fail: u64,
    pub(super) disk_full: u64,
    pub(super) meddle: u64,
    pub(super) lose_news: u64,
    shim_dies: u64,
    shim_stops: u64,
    reboot: u64,
    jump: u64,
}

impl Swarm {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        let mut often = |max: u64| if dice.roll(2) == 0 { 0 } else { 1 + dice.roll(max) };
        Self {
            die: often(60),
            fail: often(100),
            disk_full: often(80),
            meddle: often(300),
            lose_news: often(900),
            shim_dies: often(60),
            shim_stops: often(60),
            reboot: often(30),
            jump: often(30),
        }
    }
}

/// What somebody was told about a sandbox that only people edit.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    pub(super) name: SandboxName,
    pub(super) generation: u64,
    pub(super) spec: Arc<Spec>,
    pub(super) power: Power,
    pub(super) deletion: Option<Deletion>,
}

/// See the module.
pub(super) struct Scene {
    pub(super) dice: Dice,
    pub(super) swarm: Swarm,
    machine: Arc<Mutex<Machine>>,
    /// Since the beginning, whatever the clock on the wall says.
    pub(super) elapsed_ms: u64,
    pub(super) now: Time,
    /// Whether the clock on the wall ever jumped.
    pub(super) jumped: bool,
    /// Of the daemon that lives, if one does.
    pub(super) store: Option<Store>,
    pub(super) directory: Directory,
    pub(super) promises: BTreeMap<Uuid, Promise>,
    /// Whom somebody wanted to be gone, whoever owns it.
    pub(super) deleted: BTreeSet<Uuid>,
    /// What is to stay down, as somebody was told, and how many instances it had until then.
    pub(super) ended: BTreeMap<Uuid, u64>,
    /// What was last acknowledged about the host as a whole.
    pub(super) drained: Option<bool>,
    /// Whether somebody confirmed that what is missing may go.
    pub(super) confirmed: bool,
    pub(super) trace: Vec<String>,
    uids: Arc<AtomicU64>,
    /// Points reached, and at which of them the daemon is to die.
    pub(super) points: u64,
    pub(super) deaths: Vec<u64>,
}

impl Scene {
    pub(super) fn new(seed: u64) -> Self {
        let machine: Arc<Mutex<Machine>> = Arc::default();
        let now = Time(1_000_000_000);
        machine.lock().unwrap().now = now;
        Self {
            dice: Dice::new(seed),
            swarm: Swarm::default(),
            machine,
            elapsed_ms: 0,
            now,
            jumped: false,
            store: None,
            directory: Directory::default(),
            promises: BTreeMap::new(),
            deleted: BTreeSet::new(),
            ended: BTreeMap::new(),
            drained: None,
            confirmed: false,
            trace: Vec::new(),
            uids: Arc::default(),
            points: 0,
            deaths: Vec::new(),
        }
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    pub(super) fn shared_machine(&self) -> Arc<Mutex<Machine>> {
        Arc::clone(&self.machine)
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.trace.push(format!("{:>9} {what}", self.elapsed_ms));
    }

    /// The same ones in every run of a seed, and never one twice.
    pub(super) fn uids(&self) -> Uids {
        let count = Arc::clone(&self.uids);
        Box::new(move || {
            let n = count.fetch_add(1, Ordering::Relaxed) + 1;
            Uuid::from_u128(u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 7 << 76)
        })
    }

    pub(super) fn pass_time(&mut self, ms: u64) {
        self.elapsed_ms += ms;
        self.now = Time(self.now.0 + ms);
        let now = self.now;
        let mut machine = self.machine();
        machine.up_ms += ms;
        machine.now = now;
    }

    /// One thing that may happen beside the daemon.
    pub(super) fn happen(&mut self) {
        match self.dice.roll(10) {
            0..=1 => self.edit(),
            2 => {
                let what = self.directory.change(&mut self.dice);
                self.note(what);
            }
            3..=6 => self.step(),
            _ => self.misfortune(),
        }
    }

    /// Some process does its next thing, or a workload ends.
    fn step(&mut self) {
        let pids: Vec<u32> = self.machine().processes.keys().copied().collect();
        if pids.is_empty() {
            return;
        }
        let pid = self.dice.pick(&pids);
        let end = self.dice.chance(150);
        let code = i32::try_from(self.dice.roll(2)).unwrap();
        let mut machine = self.machine();
        let of_workload = matches!(
            machine.processes.get(&pid).map(|process| &process.what),
            Some(What::Workload { .. })
        );
        if end && of_workload {
            machine.end(pid, ExitKind::Exited { code });
            drop(machine);
            self.note(format!("{pid} ends with {code}"));
        } else if machine.step(pid) {
            drop(machine);
            self.note(format!("{pid} does something"));
        }
    }

    fn misfortune(&mut self) {
        let (dice, swarm) = (&mut self.dice, &self.swarm);
        let dies = dice.chance(swarm.shim_dies);
        let stops = dice.chance(swarm.shim_stops);
        let reboots = dice.chance(swarm.reboot);
        let power_lost = dice.roll(3) > 0;
        let jumps = dice.chance(swarm.jump);
        let with_shim = dice.roll(2) == 0;
        let chosen = dice.roll(64);
        if dies || stops {
            self.hit_shim(chosen, dies, with_shim);
        }
        if jumps {
            let year = 365 * 86_400_000;
            let by = self.dice.pick(&[1_000, 60_000, year]);
            let back = self.dice.roll(2) == 0;
            let then = self.now.0;
            self.now = Time(if back { then.saturating_sub(by) } else { then + by });
            self.jumped = true;
            let now = self.now;
            self.machine().now = now;
            self.note(format!("the clock jumps to {now}"));
        }
        if reboots {
            self.machine().reboot(power_lost);
            self.note(format!("reboot, power lost: {power_lost}"));
        }
    }

    fn hit_shim(&mut self, chosen: u64, dies: bool, with_workload: bool) {
        let mut machine = self.machine();
        let shims = machine.pids(|what| matches!(what, What::Shim(_)));
        if shims.is_empty() {
            return;
        }
        let pid = shims[usize::try_from(chosen).unwrap() % shims.len()];
        let iid = machine.processes[&pid].iid.clone().unwrap();
        if !dies {
            machine.processes.get_mut(&pid).unwrap().stopped = true;
            drop(machine);
            return self.note(format!("the shim of {iid} stops"));
        }
        machine.end(pid, killed());
        if with_workload {
            machine.kill_group(&iid);
        }
        // Whoever comes next is given the number.
        machine.spawn(None, What::Stranger);
        drop(machine);
        self.note(format!("the shim of {iid} is killed, its workload too: {with_workload}"));
    }

    /// Somebody uses the API.
    pub(super) fn edit(&mut self) {
        let name = self.dice.pick(&NAMES);
        match self.dice.roll(11) {
            0..=3 => {
                let command = self.dice.pick(&COMMANDS);
                let policy = self.dice.pick(&POLICIES);
                let memory = 32 + self.dice.roll(2);
                self.put(name, spec(command, policy, memory));
            }
            4..=7 => {
                let verb = self.dice.pick(&VERBS);
                self.power(name, verb);
            }
            8 => {
                let force = self.dice.roll(2) == 0;
                self.delete(name, force);
            }
            9 => self.confirm(),
            _ => {
                let drained = self.dice.roll(2) == 0;
                self.drain(drained);
            }
        }
    }

    /// Somebody empties the host, or lets everything run again.
    pub(super) fn drain(&mut self, drained: bool) {
        let Some(store) = self.store.clone() else { return };
        let now = self.now;
        let done = store.write_blocking(move |core| core.set_drained(drained, now));
        self.note(format!("drained: {drained}, {}", done.is_ok()));
        if done.is_ok() {
            self.drained = Some(drained);
        }
    }

    pub(super) fn put(&mut self, name: &str, spec: Spec) {
        let put = wish(name, spec);
        let now = self.now;
        let done = self.ask(move |core| {
            Ok(edit::put(core, put, now)?.map(|edited| Arc::clone(edited.sandbox())))
        });
        self.note(format!("put {name}: {}", said(&done)));
        self.promise(done);
    }

    pub(super) fn power(&mut self, name: &'static str, verb: Verb) {
        let now = self.now;
        let done = self.ask(move |core| edit::power(core, name, verb, now));
        self.note(format!("{verb:?} {name}: {}", said(&done)));
        self.promise(done);
    }

    pub(super) fn delete(&mut self, name: &'static str, force: bool) {
        let (how, now) = (Delete { uid: None, keep_workspace: false, force }, self.now);
        let done = self.ask(move |core| edit::delete(core, name, how, now));
        self.note(format!("delete {name}: {}", said(&done)));
        if let Some(Ok(Ok(sandbox))) = &done {
            self.deleted.insert(sandbox.uid);
        }
        self.promise(done);
    }

    pub(super) fn confirm(&mut self) {
        let Some(store) = self.store.clone() else { return };
        let done = store.write_blocking(files::confirm);
        self.confirmed |= done.is_ok_and(|names| !names.is_empty());
        self.note("confirm");
    }

    fn ask(
        &self,
        work: impl FnOnce(&mut crate::store::Core) -> edit::Outcome<Arc<Sandbox>> + Send + 'static,
    ) -> Option<edit::Outcome<Arc<Sandbox>>> {
        // Nobody listens while there is no daemon.
        self.store.as_ref().map(|store| store.write_blocking(work))
    }

    fn promise(&mut self, done: Option<edit::Outcome<Arc<Sandbox>>>) {
        let Some(Ok(Ok(sandbox))) = done else { return };
        let is_held = matches!(sandbox.power.hold, Some(Hold::Stopped | Hold::Killed));
        if is_held || sandbox.deletion.is_some() {
            self.ended.entry(sandbox.uid).or_insert(sandbox.history.instances);
        } else {
            self.ended.remove(&sandbox.uid);
        }
        if sandbox.owner != Owner::Api {
            return;
        }
        let promise = Promise {
            name: sandbox.name.clone(),
            generation: sandbox.generation,
            spec: Arc::clone(&sandbox.spec),
            power: sandbox.power,
            deletion: sandbox.deletion,
        };
        self.promises.insert(sandbox.uid, promise);
    }

    /// No more faults; what is wrong stays wrong until somebody sees to it.
    pub(super) fn calm(&mut self) {
        self.swarm = Swarm::default();
        self.directory.heal();
        self.note("calm");
    }

    /// Whether something on the machine has something to do.
    pub(super) fn settle(&self) {
        self.machine().settle();
    }

    /// Shims that told an exit and were never heard.
    pub(super) fn waiting_exits(&self) -> usize {
        let machine = self.machine();
        let exited = |what: &What| matches!(what, What::Shim(shim) if matches!(shim.stage, Stage::Exited(_)));
        machine.processes.values().filter(|process| exited(&process.what)).count()
    }
}

fn said(done: &Option<Result<Result<Arc<Sandbox>, Refusal>, StoreError>>) -> String {
    match done {
        None => "nobody listens".to_owned(),
        Some(Ok(Ok(sandbox))) => format!("generation {}", sandbox.generation),
        Some(Ok(Err(refusal))) => refusal.to_string(),
        Some(Err(error)) => error.to_string(),
    }
}

pub(super) fn wish(name: &str, spec: Spec) -> Put {
    Put {
        name: SandboxName::try_from(name).unwrap(),
        labels: BTreeMap::new(),
        spec,
        owner: Owner::Api,
        uid: None,
        precondition: Precondition::None,
    }
}

pub(super) fn rules() -> admission::Rules {
    admission::Rules {
        default_isolation: Isolation::Bubblewrap,
        default_limits: Limits { timeout_seconds: 0, ..Limits::DEFAULT },
        allowed: Default::default(),
        images: BTreeMap::new(),
        default_policy: RestartPolicy::OnFailure,
    }
}

pub(super) fn timeout_seconds(command: &[&str]) -> u64 {
    if command == ["timed"] { TIMED_SECONDS } else { 0 }
}

pub(super) fn spec(command: &[&str], policy: &str, memory: u64) -> Spec {
    let limits = json!({"memory_mb": memory, "timeout_seconds": timeout_seconds(command)});
    let written = json!({"command": command, "restart": {"policy": policy}, "limits": limits});
    admission::admit(&read_spec(&mut Faults::default(), "", &written.into()), &rules()).unwrap()
}
