//! Who is followed, and what those who watch consoles are told: one entry per sandbox, from its first
//! start to its deletion, across instances.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::reconcile::link::{self, Command, Head};
use crate::reconcile::queue::Queue;
use sodium_model::{Iid, LimitStatus, Observed, Sandbox, SandboxName};
use sodium_runtime::supervise::host::Host;
use sodium_runtime::{Driver, Started};
use sodium_shim::spool::Reader;

/// Requests that wait for one shim. Beyond it, whoever asks is told to slow down.
const COMMAND_COUNT_MAX: usize = 16;

/// All consoles.
#[derive(Debug)]
pub struct Consoles {
    entries: Mutex<HashMap<Uuid, Entry>>,
    limits: Mutex<HashMap<Iid, Vec<LimitStatus>>>,
    queue: Arc<Queue>,
    runtime: tokio::runtime::Handle,
    /// What shims are told of us.
    epoch: u64,
    /// Where consoles are; a simulation has none.
    host: Option<Arc<Host>>,
}

#[derive(Debug)]
struct Entry {
    head: watch::Sender<Head>,
    link: Option<(Iid, mpsc::Sender<Command>)>,
}

impl Consoles {
    pub fn new(
        queue: Arc<Queue>,
        runtime: tokio::runtime::Handle,
        epoch: u64,
        host: Option<Arc<Host>>,
    ) -> Self {
        Self { entries: Mutex::default(), limits: Mutex::default(), queue, runtime, epoch, host }
    }

    /// Follows a sandbox's console, running or not.
    pub fn watch(&self, uid: Uuid) -> watch::Receiver<Head> {
        let mut entries = self.lock();
        let entry = entries.entry(uid).or_insert_with(|| Entry::new(self.spool(uid)));
        entry.head.subscribe()
    }

    /// Where the console's bytes are.
    pub fn spool(&self, uid: Uuid) -> Option<PathBuf> {
        self.host.as_ref().map(|host| host.console(uid))
    }

    /// The way to the shim of a running sandbox.
    pub fn commands(&self, uid: Uuid) -> Option<(Iid, mpsc::Sender<Command>)> {
        self.lock().get(&uid)?.link.clone()
    }

    /// Where the console ends.
    pub(super) fn next(&self, uid: Uuid) -> u64 {
        self.lock().get(&uid).map_or(0, |entry| entry.head.borrow().next)
    }

    /// Has somebody look at a sandbox.
    pub(super) fn look_at(&self, name: &SandboxName) {
        self.queue.push(name);
    }

    pub fn forget(&self, uid: Uuid) {
        self.lock().remove(&uid);
    }

    /// A start succeeded: follow it from its first moment, and keep what its limits are until it is
    /// seen running.
    pub(super) fn started(self: &Arc<Self>, sandbox: &Sandbox, iid: &Iid, started: Started) {
        self.limits().insert(iid.clone(), started.limits);
        if let Some(stream) = started.link {
            self.attach(sandbox, iid, stream);
        }
    }

    pub(super) fn take_limits(&self, iid: &Iid) -> Option<Vec<LimitStatus>> {
        self.limits().remove(iid)
    }

    /// Follows an instance that runs and is not followed: adopted, or its connection broke.
    pub(super) fn follow(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        observed: &Observed,
        driver: Option<&dyn Driver>,
    ) {
        let alive = matches!(
            observed,
            Observed::Launching | Observed::Running { .. } | Observed::Stopping { .. }
        );
        let Some(instance) = sandbox.live().filter(|_| alive) else { return };
        let followed = self.commands(sandbox.uid).is_some_and(|(iid, _)| iid == instance.iid);
        if followed {
            return;
        }
        if let Some(stream) = driver.and_then(|driver| driver.connect(&instance.iid)) {
            self.attach(sandbox, &instance.iid, stream);
        }
    }

    fn attach(self: &Arc<Self>, sandbox: &Sandbox, iid: &Iid, stream: UnixStream) {
        let (commands, inbox) = mpsc::channel(COMMAND_COUNT_MAX);
        let uid = sandbox.uid;
        let head = {
            let mut entries = self.lock();
            let entry = entries.entry(uid).or_insert_with(|| Entry::new(self.spool(uid)));
            entry.link = Some((iid.clone(), commands));
            entry.head.clone()
        };
        let following = link::Following {
            name: sandbox.name.clone(),
            iid: iid.clone(),
            epoch: self.epoch,
            head,
            inbox,
            queue: Arc::clone(&self.queue),
        };
        let consoles = Arc::clone(self);
        self.runtime.spawn(async move {
            let (name, iid) = (following.name.clone(), following.iid.clone());
            link::follow(stream, following).await;
            consoles.lost(uid, &iid, &name);
        });
    }

    /// The connection is gone; whether the instance is, a look will tell.
    fn lost(&self, uid: Uuid, iid: &Iid, name: &SandboxName) {
        if let Some(entry) = self.lock().get_mut(&uid)
            && entry.link.as_ref().is_some_and(|(linked, _)| linked == iid)
        {
            entry.link = None;
            entry.head.send_if_modified(|head| {
                let was = head.running.take();
                was.is_some()
            });
        }
        self.queue.push(name);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Entry>> {
        self.entries.lock().expect("nobody panics while holding the consoles")
    }

    fn limits(&self) -> MutexGuard<'_, HashMap<Iid, Vec<LimitStatus>>> {
        self.limits.lock().expect("nobody panics while holding the limits")
    }
}

impl Entry {
    fn new(spool: Option<PathBuf>) -> Self {
        let bounds = spool.and_then(|dir| Reader::bounds(&dir).ok());
        let next = bounds.map_or(0, |bounds| bounds.end);
        Self { head: watch::channel(Head { next, running: None }).0, link: None }
    }
}
