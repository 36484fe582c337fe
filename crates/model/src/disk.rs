//! How this host limits disks.

use serde::{Deserialize, Serialize};

/// Which mechanism an operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskChoice {
    /// The first of these that works.
    #[default]
    Auto,
    /// Project quotas of XFS and ext4.
    Quota,
    Btrfs,
    /// A file system in a file for each sandbox.
    Image,
    /// Nothing that the kernel keeps: counted now and then.
    Polled,
}

/// The key `disk` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskRules {
    pub mechanism: DiskChoice,
    /// What stays free on the host, whatever images may still grow to.
    pub reserve_mb: u64,
}

impl Default for DiskRules {
    fn default() -> Self {
        Self { mechanism: DiskChoice::Auto, reserve_mb: 1024 }
    }
}
