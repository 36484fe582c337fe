//! Sandbox names. Holding a [`SandboxName`] is the proof that it was checked.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name accepted, in bytes.
pub const NAME_LEN_MAX: usize = 63;

/// A DNS label: `a-z`, `0-9` and inner `-`, at most [`NAME_LEN_MAX`] bytes.
///
/// A name becomes a path segment of the API and a file under `desired/`, so this alphabet is what
/// keeps `/` and `..` out of both. Nothing downstream checks again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(Arc<str>);

/// Why a string is not a [`SandboxName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("name is empty")]
    Empty,
    #[error("name is {len} bytes, the limit is {NAME_LEN_MAX}")]
    TooLong { len: usize },
    /// A character outside the alphabet, or a hyphen at an end.
    #[error("name has {found:?} at byte {at}; use a-z, 0-9 and inner '-'")]
    BadChar { found: char, at: usize },
}

impl TryFrom<&str> for SandboxName {
    type Error = NameError;

    fn try_from(raw: &str) -> Result<Self, NameError> {
        if raw.is_empty() {
            return Err(NameError::Empty);
        }
        if NAME_LEN_MAX < raw.len() {
            return Err(NameError::TooLong { len: raw.len() });
        }
        let last = raw.len() - 1;
        for (at, found) in raw.char_indices() {
            let allowed = match found {
                'a'..='z' | '0'..='9' => true,
                '-' => at != 0 && at != last,
                _ => false,
            };
            if !allowed {
                return Err(NameError::BadChar { found, at });
            }
        }
        Ok(Self(raw.into()))
    }
}

impl TryFrom<String> for SandboxName {
    type Error = NameError;

    fn try_from(raw: String) -> Result<Self, NameError> {
        Self::try_from(raw.as_str())
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> Self {
        name.0.to_string()
    }
}

impl Borrow<str> for SandboxName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl SandboxName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(raw: &str, want: Result<(), NameError>) {
        assert_eq!(SandboxName::try_from(raw).map(|_| ()), want);
    }

    #[test]
    fn names_are_dns_labels() {
        check("web-1", Ok(()));
        check("", Err(NameError::Empty));
        check("..", Err(NameError::BadChar { found: '.', at: 0 }));
        check("a/b", Err(NameError::BadChar { found: '/', at: 1 }));
        check("Web", Err(NameError::BadChar { found: 'W', at: 0 }));
        check("web-", Err(NameError::BadChar { found: '-', at: 3 }));
        check(&"x".repeat(64), Err(NameError::TooLong { len: 64 }));
    }
}
