//! How gVisor intercepts the system calls of its guests.

use serde::{Deserialize, Serialize};

/// See <https://gvisor.dev/docs/architecture_guide/platforms/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    Systrap,
    Ptrace,
    Kvm,
}

impl Platform {
    const NAMES: [(&'static str, Self); 3] =
        [("systrap", Self::Systrap), ("ptrace", Self::Ptrace), ("kvm", Self::Kvm)];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Systrap => "systrap",
            Self::Ptrace => "ptrace",
            Self::Kvm => "kvm",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, platform)| *platform)
    }
}
