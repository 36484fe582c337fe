//! What an instance was seen to use at one moment.

use crate::time::Time;

/// See the module. The counters count from the beginning of the instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    pub at: Time,
    pub ran_seconds: u64,
    /// Without what is only kept because there is room.
    pub memory_bytes: u64,
    pub oom_kills: u64,
    pub cpu_usec: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub processes_refused: u64,
    pub disk: Option<DiskReading>,
}

/// What a running instance holds now, and what can be done about its disk: for changes of its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InUse {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    /// Whether its disk can be made larger, and smaller, while it runs.
    pub disk_grows: bool,
    pub disk_shrinks: bool,
}

/// The part of a disk that it may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskReading {
    pub used_bytes: u64,
    pub total_bytes: u64,
    pub is_full: bool,
}
