//! A checkpoint: the memory of a sandbox, kept to go on from.

use serde::{Deserialize, Serialize};

use crate::instance::Iid;
use crate::spec::Spec;
use crate::time::Time;

/// What is read as a name leads to no other directory.
fn plain_name<'de, D: serde::Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let name = String::deserialize(input)?;
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(serde::de::Error::custom(format!("{name:?} names no checkpoint")));
    }
    Ok(name)
}

/// One checkpoint, as the store knows it. What it consists of lies in a directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The instance it was taken of.
    pub iid: Iid,
    /// The name of its directory.
    #[serde(deserialize_with = "plain_name")]
    pub dir: String,
    pub taken_at: Time,
    /// The program that took it, with its version: no other can go on from it.
    pub runtime: String,
    pub bytes: u64,
    /// Whether the workspace was kept with it. Without, the workspace has not changed since.
    pub has_workspace: bool,
    /// What the instance ran, to tell what a later spec changes.
    pub spec: Spec,
}
