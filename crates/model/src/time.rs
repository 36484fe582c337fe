//! Points and lengths of time, as people write them. Nothing here reads a clock.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Milliseconds since 1970, written as RFC 3339.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    pub fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long from `self` to `later`; zero when it is not later.
    pub fn until(self, later: Self) -> Span {
        Span(later.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Year 9999 is as far as RFC 3339 goes.
        let at = UNIX_EPOCH + Duration::from_millis(self.0.min(253_402_300_799_999));
        write!(out, "{}", humantime::format_rfc3339_millis(at))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = humantime::parse_rfc3339(&text).map_err(de::Error::custom)?;
        let since = at.duration_since(UNIX_EPOCH).map_err(de::Error::custom)?;
        u64::try_from(since.as_millis()).map(Self).map_err(de::Error::custom)
    }
}

/// A length in milliseconds, written like `1m 30s`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

impl Span {
    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds * 1000)
    }

    /// Parses `10s`, `1m 30s`, `250ms`.
    pub fn parse(text: &str) -> Result<Self, humantime::DurationError> {
        let length = humantime::parse_duration(text)?;
        Ok(Self(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)))
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", humantime::format_duration(self.duration()))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans_read_as_they_are_written() {
        let time = Time(1_769_367_165_729);
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""2026-01-25T18:52:45.729Z""#);
        assert_eq!(serde_json::from_str::<Time>(r#""2026-01-25T18:52:45.729Z""#).unwrap(), time);
        assert_eq!(Span::parse("1m 30s").unwrap(), Span(90_000));
        assert_eq!(Span(90_000).to_string(), "1m 30s");
        assert!(Span::parse("soon").is_err());
    }
}
