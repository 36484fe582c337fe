//! x
#![allow(dead_code)]
pub mod error;
#[allow(unsafe_code)]
pub mod sys;
pub mod shim;
pub mod model;
pub mod plan;
pub mod store;
pub mod config;
pub mod desired;
pub mod image;
pub mod driver;
pub mod reconcile;
