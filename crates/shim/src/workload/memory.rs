//! Out of memory: what version 2 of cgroups does by itself, for version 1. One process that is killed takes the whole
//! sandbox with it, since half of one helps nobody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sodium_sys::cgroup::Group;
use sodium_sys::poll;

/// The kernel tells before it kills: looks at whether it has, and how often it is looked.
const LOOK_MS: u64 = 2;
const LOOKS_MAX: u32 = 50;

#[derive(Debug, Default)]
pub(super) struct Memory {
    event: Option<OwnedFd>,
    /// Kills that were counted before it was anybody's.
    before: u64,
    looks_left: u32,
    look_at_ms: Option<u64>,
    over: bool,
}

impl Memory {
    /// Nothing is known yet of a group that was just made.
    pub(super) fn watch(group: &Group) -> Self {
        let event = group.watch_memory();
        let before = if event.is_some() { group.oom_kills() } else { 0 };
        Self { event, before, ..Self::default() }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().filter(|_| !self.over).map(AsFd::as_fd)
    }

    /// The kernel has told.
    pub(super) fn heard(&mut self, now_ms: u64) {
        if let Some(event) = &self.event {
            let _ = poll::read_some(event.as_fd(), &mut [0; 8]);
        }
        (self.looks_left, self.look_at_ms) = (LOOKS_MAX, Some(now_ms));
    }

    pub(super) fn next_look(&self) -> Option<u64> {
        self.look_at_ms
    }

    /// Whether something has been killed, found out just now.
    pub(super) fn look(&mut self, group: &Group, now_ms: u64) -> bool {
        if self.over || self.look_at_ms.is_none_or(|at| at > now_ms) {
            return false;
        }
        self.over = group.oom_kills() > self.before;
        self.looks_left = self.looks_left.saturating_sub(1);
        let again = !self.over && self.looks_left > 0;
        self.look_at_ms = again.then_some(now_ms + LOOK_MS);
        self.over
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}
