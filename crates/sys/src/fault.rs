//! Where tests may make things go wrong: at named points, a call fails or the daemon dies, and bugs that
//! were once imagined can be switched on to show that the tests would find them. Outside the tests of this
//! crate, nothing here does anything.

/// A mistake that somebody could make. Each is found by the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The instance is started before the store says that it may exist.
    StartBeforeIntent,
    /// A shim that does not answer is taken for a dead one.
    UnknownIsDead,
    /// The shim tells the exit before it is on the disk.
    ExitBeforeSync,
    /// Shims inherit the lock of the daemon.
    LockInherited,
    /// A step that failed is not tried again.
    LostRetry,
    /// A pass believes what an earlier one saw.
    StaleObservation,
    /// A pid that was noted is killed, whoever has it now.
    KillNotedPid,
    /// A step writes what it read when it was planned, whatever was wished since.
    LostUpdate,
    /// The pause after a failure is not kept.
    ForgottenPause,
    /// A change is acknowledged before it is committed.
    AnswerBeforeCommit,
    /// A directory that was replaced by an empty one is believed.
    EmptyMountBelieved,
    /// A commit is acknowledged that the disk was not made to keep.
    CommitNotSynced,
    /// The remains are removed before the exit is in the store.
    CleanUpBeforeRecord,
}

/// Something happens here: in a test it may be the end of this daemon. True: the call is to fail.
#[must_use]
pub fn reach(point: &'static str) -> bool {
    inner::reach(point)
}

/// Whether somebody made that mistake.
pub fn has(bug: Bug) -> bool {
    inner::has(bug)
}

#[cfg(not(feature = "faults"))]
mod inner {
    pub(super) fn reach(_: &str) -> bool {
        false
    }

    pub(super) fn has(_: super::Bug) -> bool {
        false
    }
}

#[cfg(feature = "faults")]
pub use inner::{set_bug, with_hook};

#[cfg(feature = "faults")]
mod inner {
    use std::cell::{Cell, RefCell};

    use super::Bug;

    type Hook = Box<dyn FnMut(&'static str) -> bool>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
        static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// What the hook does is not hooked itself.
    pub(super) fn reach(point: &'static str) -> bool {
        let Some(mut hook) = HOOK.take() else { return false };
        let fails = hook(point);
        HOOK.set(Some(hook));
        fails
    }

    pub(super) fn has(bug: Bug) -> bool {
        BUG.get() == Some(bug)
    }

    pub fn set_bug(bug: Option<Bug>) {
        BUG.set(bug);
    }

    /// Runs `work` in this thread with the hook in place. The hook may unwind; then it is gone.
    pub fn with_hook<T>(hook: Hook, work: impl FnOnce() -> T) -> T {
        HOOK.set(Some(hook));
        let done = work();
        HOOK.set(None);
        done
    }
}
