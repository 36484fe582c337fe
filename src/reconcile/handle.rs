//! What the API may ask of the loop: look sooner, tell what it would do, reach a console. It cannot
//! make the loop do anything; wishes go through the store.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::reconcile::blocking;
use crate::reconcile::exec::{self, ExecError, Program, Session, Share};
use crate::reconcile::link::{Command, Head, InputError};
use crate::reconcile::queue::Queue;
use crate::reconcile::world::World;
use sodium_model::plan::Plan;
use sodium_model::{InUse, Sandbox, SandboxName, Spec, Time};
use sodium_runtime::{DriverError, Space, Usage};

/// Clone it freely.
#[derive(Clone)]
pub struct Handle {
    world: Arc<World>,
    queue: Arc<Queue>,
}

impl Handle {
    pub fn new(world: Arc<World>, queue: Arc<Queue>) -> Self {
        Self { world, queue }
    }

    /// Asks for a look at a sandbox.
    pub fn look_at(&self, name: &SandboxName) {
        self.queue.push(name);
    }

    /// Somebody has turned to a sandbox: it is not idle, and what is frozen for that goes on.
    pub fn touch(&self, sandbox: &Sandbox) {
        self.world.activity.touch(sandbox.uid);
        self.queue.push(&sandbox.name);
    }

    /// Whether this host can make a sandbox stand still.
    pub fn can_freeze(&self, sandbox: &Sandbox) -> bool {
        let driver = self.world.driver(sandbox.spec.isolation);
        driver.is_some_and(|driver| driver.can_freeze())
    }

    /// Whether somebody runs something inside.
    pub fn is_busy(&self, sandbox: &Sandbox) -> bool {
        self.world.sessions.any(sandbox.uid)
    }

    /// What would run this spec, with its version; or why nothing can.
    pub fn runtime(&self, spec: &Spec) -> Result<String, String> {
        self.world.runtime(spec.isolation)
    }

    /// Gives a sandbox that is about to be made a checkpoint of another one.
    pub async fn copy_checkpoint(
        &self,
        from: Uuid,
        to: Uuid,
        dir: String,
    ) -> Result<(), DriverError> {
        let world = Arc::clone(&self.world);
        let copy =
            move || world.host.as_ref().map_or(Ok(()), |host| host.copy_checkpoint(from, to, &dir));
        blocking(copy).await
    }

    /// Takes that back. What is left over goes when the daemon next starts.
    pub async fn drop_checkpoints(&self, uid: Uuid) {
        let world = Arc::clone(&self.world);
        let drop = move || world.host.as_ref().map(|host| host.sweep_checkpoints(uid, &[]));
        let _ = blocking(drop).await;
    }

    /// What the loop would do next, and why.
    pub async fn explain(&self, name: SandboxName, now: Time) -> Option<Plan> {
        let world = Arc::clone(&self.world);
        blocking(move || world.explain(&name, now)).await
    }

    /// Where the console's bytes are.
    pub fn spool(&self, uid: Uuid) -> Option<PathBuf> {
        self.world.consoles.spool(uid)
    }

    /// Follows a console from instance to instance.
    pub fn watch_console(&self, uid: Uuid) -> watch::Receiver<Head> {
        self.world.consoles.watch(uid)
    }

    /// Hands input to what runs, and waits until it was taken.
    pub async fn input(&self, sandbox: &Sandbox, bytes: Vec<u8>) -> Result<(), InputError> {
        let commands = self.world.consoles.commands(sandbox.uid);
        let (_, commands) = commands.ok_or(InputError::NotRunning)?;
        self.touch(sandbox);
        let (reply, answer) = oneshot::channel();
        let sent = bytes.len();
        commands
            .try_send(Command::Input { bytes, reply })
            .map_err(|_| InputError::Full { taken: 0, sent })?;
        answer.await.unwrap_or(Err(InputError::NotRunning))
    }

    /// Closes stdin, or sets the size of the terminal.
    pub fn command(&self, sandbox: &Sandbox, command: Command) -> Result<(), InputError> {
        let commands = self.world.consoles.commands(sandbox.uid);
        let (_, commands) = commands.ok_or(InputError::NotRunning)?;
        let sent = commands.try_send(command);
        // Whoever asks faster than it is done does not have it looked at more often.
        sent.map(|()| self.touch(sandbox)).map_err(|_| InputError::Full { taken: 0, sent: 0 })
    }

    /// Runs a program inside what runs.
    pub async fn exec(
        &self,
        sandbox: Arc<Sandbox>,
        program: Program,
        share: Share,
    ) -> Result<Session, ExecError> {
        self.touch(&sandbox);
        exec::start(Arc::clone(&self.world), sandbox, program, share).await
    }

    /// What the running instance has used; zeros when none runs.
    pub async fn usage(&self, sandbox: &Sandbox) -> Usage {
        let Some(instance) = sandbox.live().cloned() else { return Usage::default() };
        let world = Arc::clone(&self.world);
        blocking(move || world.measured(&instance)).await
    }

    /// What a sandbox holds of its disk, console included, running or not; `None` where it has no limit of its own.
    pub async fn disk(&self, sandbox: &Sandbox) -> Option<Space> {
        let (world, uid, owner) = (Arc::clone(&self.world), sandbox.uid, sandbox.host_uid);
        blocking(move || world.host.as_ref().and_then(|host| host.disk(uid, owner))).await
    }

    /// What each of these uses, in this order, and what their disks hold; nothing of what does not run. All at once,
    /// by as many threads as there are cpus.
    pub async fn usages(&self, sandboxes: Vec<Arc<Sandbox>>) -> Vec<(Usage, Option<Space>)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = sandboxes.len().div_ceil(threads).max(1);
        let parts = sandboxes.chunks(share).map(|part| {
            let (world, part) = (Arc::clone(&self.world), part.to_vec());
            let usage = move |sandbox: &Arc<Sandbox>| match sandbox.live() {
                Some(live) => world.usage(sandbox, live),
                None => (Usage::default(), None),
            };
            blocking(move || part.iter().map(usage).collect::<Vec<_>>())
        });
        futures_util::future::join_all(parts).await.into_iter().flatten().collect()
    }

    /// What the running instance holds; nothing when none runs.
    pub async fn in_use(&self, sandbox: &Arc<Sandbox>) -> InUse {
        let (world, sandbox) = (Arc::clone(&self.world), Arc::clone(sandbox));
        blocking(move || world.in_use(&sandbox)).await
    }

    /// How many sandboxes wait for whoever wants one of an image next.
    pub fn warm(&self) -> BTreeMap<String, usize> {
        let rules = self.world.rules.get();
        let wanting = rules.images.values().filter(|image| image.warm > 0);
        let driver = self.world.waiting();
        wanting
            .map(|image| (image.id.clone(), driver.map_or(0, |driver| driver.warm(&image.id))))
            .collect()
    }

    /// Isolations, with what is behind each, or why it is unavailable.
    pub fn isolations(&self) -> Vec<(&'static str, Result<String, String>)> {
        let all = self.world.drivers.iter();
        all.map(|(isolation, driver)| (isolation.as_str(), driver.runtime())).collect()
    }
}
