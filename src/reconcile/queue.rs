//! Names to look at, now or later. Each is in it at most once, so it is bounded by the number of
//! sandboxes; asking again for a name that is being looked at makes it be looked at again.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use sodium_model::SandboxName;

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    names: Mutex<Names>,
    wake: Notify,
    /// Who wants to know that somebody still looks here.
    pulses: Mutex<Vec<oneshot::Sender<()>>>,
}

#[derive(Debug, Default)]
struct Names {
    ready: VecDeque<SandboxName>,
    waiting: HashSet<SandboxName>,
    running: HashSet<SandboxName>,
    timers: BTreeSet<(Instant, SandboxName)>,
    due: HashMap<SandboxName, Instant>,
}

impl Queue {
    /// Asks for a look.
    pub fn push(&self, name: &SandboxName) {
        let mut names = self.lock();
        if names.waiting.insert(name.clone()) && !names.running.contains(name) {
            names.ready.push_back(name.clone());
            drop(names);
            self.wake.notify_one();
        }
    }

    /// Answered when the loop next comes round.
    pub fn pulse(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.pulses.lock().expect("nobody panics while holding the pulses").push(sender);
        self.wake.notify_one();
        receiver
    }

    /// The loop has come round.
    pub fn beat(&self) {
        let mut pulses = self.pulses.lock().expect("nobody panics while holding the pulses");
        for pulse in pulses.drain(..) {
            let _ = pulse.send(());
        }
    }

    /// The next name, which is then being looked at until [`Queue::done`].
    pub fn take(&self, now: Instant) -> Option<SandboxName> {
        let mut names = self.lock();
        while let Some((at, name)) = names.timers.first().cloned()
            && at <= now
        {
            names.unschedule(&name);
            if names.waiting.insert(name.clone()) && !names.running.contains(&name) {
                names.ready.push_back(name);
            }
        }
        let name = names.ready.pop_front()?;
        names.waiting.remove(&name);
        names.unschedule(&name);
        names.running.insert(name.clone());
        Some(name)
    }

    /// A look has ended; the next is due at `again`, or sooner if somebody asked meanwhile.
    pub fn done(&self, name: &SandboxName, again: Option<Instant>) {
        let mut names = self.lock();
        names.running.remove(name);
        if names.waiting.contains(name) {
            names.ready.push_back(name.clone());
        } else if let Some(at) = again {
            names.unschedule(name);
            names.timers.insert((at, name.clone()));
            names.due.insert(name.clone(), at);
        }
        drop(names);
        self.wake.notify_one();
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.lock().timers.first().map(|(at, _)| *at)
    }

    /// Waits until there may be something to take. Cancel-safe: a wake-up that nobody waited for is
    /// kept for the next who does.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().expect("nobody panics while holding the queue")
    }
}

impl Names {
    fn unschedule(&mut self, name: &SandboxName) {
        if let Some(at) = self.due.remove(name) {
            self.timers.remove(&(at, name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_at_once_at_a_time_and_never_forgotten() {
        let queue = Queue::default();
        let name = SandboxName::try_from("web").unwrap();
        queue.push(&name);
        queue.push(&name);
        assert_eq!(queue.take(Instant::now()), Some(name.clone()));
        assert_eq!(queue.take(Instant::now()), None);
        // Asked for while it is looked at: again, and not at the same time.
        queue.push(&name);
        assert_eq!(queue.take(Instant::now()), None);
        queue.done(&name, Some(Instant::now() + Duration::from_secs(60)));
        assert_eq!(queue.take(Instant::now()), Some(name.clone()));
        let later = Instant::now() + Duration::from_secs(60);
        queue.done(&name, Some(later));
        assert_eq!((queue.take(Instant::now()), queue.next_due()), (None, Some(later)));
        assert_eq!(queue.take(later), Some(name.clone()));
        // A look that came sooner replaces the one that was due.
        queue.done(&name, Some(later));
        queue.push(&name);
        queue.take(Instant::now()).unwrap();
        queue.done(&name, None);
        assert_eq!(queue.next_due(), None);
    }
}
