//! The loop: look, plan, act, publish. Everything here is order and plumbing; the thinking is in
//! [`sodium_model::plan`].
//!
//! A queue of names, not a sweep: one change costs the same with 10 and with 10,000 sandboxes. At
//! most one pass per name runs at a time, names do not wait for each other, and what triggered a
//! pass is never more than a reason to look.
//!
//! ```text
//!   store changes, shim events, timers --name--> queue --> pass (in the blocking pool)
//!                                                  ^        observe -> plan -> one step -> commit
//!                                                  +-- again: now | at | resync
//! ```

pub mod activity;
pub mod adopt;
pub mod console;
pub mod exec;
pub mod handle;
pub mod link;
pub mod meter;
pub mod pass;
pub mod queue;
pub mod task;
pub mod turns;
pub mod warm;
pub mod world;

mod execute;

pub use handle::Handle;
pub use sodium_runtime::{DriverError, Space, Usage};
pub use task::run;
pub use world::World;

/// The one door to the blocking pool.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work neither panics nor is cancelled")
}

#[cfg(test)]
mod tests;
