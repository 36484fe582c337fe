//! The API's suites once more, with a daemon that keeps what the API is told in files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects; the rest fails")]
#![allow(unreachable_pub, reason = "pub says what a test module offers to the others")]
#![allow(dead_code, reason = "the other binary uses all of the desk")]

mod api_seed;
mod api_v1;
mod contract;
mod desk;
mod disk;
mod power;

/// Where the API of the daemons under test writes.
pub const STORE: &str = "files";
