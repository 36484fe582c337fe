//! sodiumd runs other people's code on one Linux machine.
//!
//! People declare sandboxes, in a directory of YAML or over REST; a loop makes the machine match:
//! it starts real gVisor and bubblewrap sandboxes or plain processes, keeps them inside their limits, starts
//! again what crashed, stops what ran out of time, and says what it sees. It survives its own death.
//!
//! ```text
//!  desired/*.yaml --hint--> scan --\                                  /--> shim socket --> runsc | bwrap | process
//!                                   merge -> SQLite tx -> snapshot -> queue[name] -> observe -> plan -> one step
//!  REST, console, CLI -------------/            ^                                                      |
//!                                               +------------- status, instance, event tx <------------+
//!  shim events, timers, resync: they only enqueue a name
//! ```
//!
//! # Reading order
//!
//! Five crates stand below this one, and the compiler holds who may use whom:
//!
//! - [`sodium_model`]: the nouns. [`sodium_model::plan`]: what to do about them, pure and total; start there.
//! - [`sodium_api`]: the wire, as types: what is asked for and answered, and the documents that say so.
//! - [`sodium_sys`]: the kernel made safe. [`sodium_shim`]: the small process beside each instance; uses that alone.
//! - [`sodium_runtime`]: ways to run one, over all three.
//!
//! In this one, from below:
//!
//! - [`config`], [`desired`], [`image`], [`store`]: where wishes come from and what is remembered.
//! - [`reconcile`]: the loop that carries plans out.
//! - [`api`], [`cli`], [`daemon`]: the ways in, and the whole put together. [`doctor`]: whether it can work here.
//! - [`live`]: what a reload of the configuration may change while it is used.
//! - [`sodium_sys::fault`], `simulation`, `protocol_model`: how all of it is made to fail, and what must hold then.
//!
//! # Invariants, as absences
//!
//! - Nothing but `plan` decides; nothing in `plan` does anything, or reads a clock.
//! - No HTTP handler touches a process; no runtime has an opinion.
//! - Nothing is spawned without a committed row that says so; no row dies without proof.
//! - No signal goes to a stored pid; no path that a tenant controls is followed.
//! - Nothing waits for all sandboxes, and no sandbox's failure ends a pass of another.
//! - No `unsafe` outside `sodium-sys`, no tokio below `reconcile` but in `desired::watch` and channels.

pub mod live;

// The world, one adapter each.
pub mod config;
pub mod desired;
pub mod image;
pub mod store;

// The loop, and the ways in.
pub mod api;
pub mod cli;
pub mod daemon;
pub mod doctor;
pub mod reconcile;
pub mod telemetry;

#[cfg(test)]
mod protocol_model;
#[cfg(test)]
mod simulation;
