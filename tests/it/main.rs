//! All tests that see the crate from outside, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects; the rest fails")]
#![allow(unreachable_pub, reason = "pub says what a test module offers to the others")]

mod alarms;
mod anywhere;
mod api_seed;
mod api_v1;
mod bounds;
mod checkpoint;
mod contract;
mod corpora;
mod daemon;
mod desk;
mod disk;
mod doctor;
mod door;
mod driver_contract;
mod exec;
mod fair;
mod filter;
mod freeze;
mod golden;
mod gvisor;
mod limits;
mod openapi;
mod pays;
mod policy;
mod power;
mod spool;
mod store;
mod tidy;
mod trees;
mod uninstall;
mod upgrade;
mod version_1;
mod walls;
mod walls_ledger;
mod warm;

/// Where the API of the daemons under test writes.
pub const STORE: &str = "sqlite";
