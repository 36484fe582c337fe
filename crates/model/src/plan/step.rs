//! What a plan can ask for. One step changes one thing and can be repeated.

use crate::{ExitRecord, Status, StopReason, Time};

/// One thing the executor can do without having to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Intend, then start, the next instance.
    Start,
    /// Intend, then start, the next instance from where its checkpoint left off.
    Restore,
    /// Keep the memory of what runs and go on.
    Checkpoint,
    /// Keep the memory of what runs, then end it.
    Hibernate,
    /// Note that the program runs.
    MarkRunning { pid: Option<u32>, started_at: Time },
    /// Note that it has run well for long enough to forget its failures.
    MarkHealthy,
    /// Apply to the running instance what can be applied to one.
    Adjust,
    /// Have the kernel stop its processes where they are.
    Freeze,
    /// Let them go on.
    Thaw,
    /// Intend, then order, its end.
    Stop(Stopping),
    /// Kill what runs without a shim.
    KillOrphan,
    /// Kill a shim that has not answered for too long; the workload dies with it.
    KillShim,
    /// Note how it ended.
    RecordExit(Box<ExitRecord>),
    /// Release the shim and remove what is left on the host.
    CleanUp,
    /// Remove the workspace and the sandbox itself.
    Forget,
}

impl Step {
    /// A word for logs, tables and dry runs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Checkpoint => "checkpoint",
            Self::Hibernate => "hibernate",
            Self::MarkRunning { .. } => "mark running",
            Self::MarkHealthy => "mark healthy",
            Self::Adjust => "adjust in place",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Stop(stopping) if stopping.force => "kill",
            Self::Stop(_) => "stop",
            Self::KillOrphan => "kill orphan",
            Self::KillShim => "kill shim",
            Self::RecordExit(_) => "record exit",
            Self::CleanUp => "clean up",
            Self::Forget => "forget",
        }
    }
}

/// How and why to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    pub reason: StopReason,
    /// Without grace.
    pub force: bool,
    pub why: String,
}

/// What is next for one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Do(Step),
    /// Nothing now; ask again then.
    Wait(Time),
    /// Nothing, until something changes.
    Settled,
}

/// The answer for one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub next: Next,
    /// For people.
    pub why: String,
    pub status: Status,
}
