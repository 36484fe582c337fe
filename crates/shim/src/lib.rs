//! The small process beside each instance. It does what must go on while the daemon is dead: it owns
//! the workload's terminal or pipes, keeps the console, reaps every descendant, runs the grace and
//! the run timeout, and writes down how the workload ended.
//!
//! Shims are forked from one `forkserver` per daemon, and outlive both. So is the process behind each
//! program that is run inside what runs ([`exec`]), which outlives nobody.
//!
//! It has no policy: whether to start again is never its question. It has one thread, one poll, and
//! no memory of clients; whoever connects is told the whole state. It links only [`sodium_sys`].
//!
//! ```text
//!   launch.json --> child (cgroup, uid, filters, exec) --> workload
//!                                                            | stdout, stderr | stdin
//!   daemon <-- state, console head, credit --  shim  <-------+                ^
//!          --- stop, kill, resize, stdin --->    |----> spool (files) --> any number of readers
//!                                                +----> exit.json
//! ```

pub mod claim;
pub mod client;
pub mod exec;
pub mod exit;
pub mod init;
pub mod launch;
pub mod probe;
pub mod protocol;
pub mod spool;

mod child;
mod connection;
mod forkserver;
mod run;
mod runtime;
mod stdin;
mod stdio;
mod workload;

use std::io::Write;

pub use run::run;

/// Standard error is a file of the daemon's; nobody waits for it.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "sodium-shim: {message}");
}
