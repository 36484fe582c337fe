//! How much the API serves at once, to whom, and how fast.

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// Each bound has an end that its client is told of; 0 is no bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// With the token or a ticket, WebSockets among them. An eighth of this, and 64 at least, may be open beside
    /// them that have shown neither; the same number again may be open at the local socket.
    pub connections_max: usize,
    /// With the token or a ticket, from one address.
    pub connections_per_peer_max: usize,
    /// With the token.
    pub requests_per_second: u64,
    /// With the token or a ticket, from one address.
    pub requests_per_second_per_peer: u64,
    /// With neither, from everywhere. Of whoever has one, nothing is used up.
    pub anonymous_per_second: u64,
    /// The same, from one address.
    pub anonymous_per_second_per_peer: u64,
    /// Streams of changes.
    pub watches_max: usize,
    /// Streams of console output and of events.
    pub followers_max: usize,
    pub consoles_max: usize,
    /// WebSockets of exec.
    pub execs_max: usize,
    /// A request's head is there within this time, or its connection is closed; so is one that asks nothing.
    pub head_within: Span,
    /// A request's body is there within this time.
    pub body_within: Span,
    /// A peer that takes nothing for so long, though there is something for it, is gone.
    pub stalled_after: Span,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 8_192,
            connections_per_peer_max: 2_048,
            requests_per_second: 2_000,
            requests_per_second_per_peer: 1_000,
            anonymous_per_second: 500,
            anonymous_per_second_per_peer: 50,
            watches_max: 256,
            followers_max: 1_024,
            consoles_max: 2_048,
            execs_max: 256,
            head_within: Span::seconds(30),
            body_within: Span::seconds(30),
            stalled_after: Span::seconds(60),
        }
    }
}
