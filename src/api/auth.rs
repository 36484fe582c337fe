//! Who may ask: the token, compared in constant time and never logged, or a ticket made for a
//! browser, which cannot set headers on a WebSocket and must not keep the token in a page.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::api::{ApiError, Shared};
use crate::live::Live;
use crate::model::Time;

/// A ticket is used at once or not at all.
pub(super) const TICKET_MS: u64 = 30_000;
/// Tickets that wait to be used. More is somebody asking for nothing else.
const TICKET_COUNT_MAX: usize = 1_024;

/// 256 random bits as text: a token, or a ticket.
pub fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The token.
pub struct Auth {
    token: Live<String>,
}

impl Auth {
    pub fn new(token: String) -> Self {
        Self { token: Live::new(token) }
    }

    /// From now on it is another one.
    pub fn change(&self, token: String) {
        self.token.set(token);
    }

    fn is_token(&self, given: &str) -> bool {
        bool::from(self.token.get().as_bytes().ct_eq(given.as_bytes()))
    }

    /// Whether the header carries the token.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        token.is_some_and(|token| self.is_token(token))
    }

    /// Whether the query carries it, as the seed's console wants it.
    pub(super) fn admits_query(&self, uri: &Uri) -> bool {
        query(uri, "token").is_some_and(|token| self.is_token(&token))
    }
}

/// Set where the caller was let in before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trusted(pub bool);

/// Lets in whoever has the token.
pub(super) async fn guard(State(api): State<Shared>, request: Request, next: Next) -> Response {
    if !api.auth.admits(request.headers()) {
        return ApiError::Unauthorized.into_response();
    }
    match api.pace_token() {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// A value of the query, decoded.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    let pairs = axum::extract::Query::<HashMap<String, String>>::try_from_uri(uri).ok()?;
    pairs.0.get(name).cloned()
}

/// One-use tickets, each for one sandbox and for reading alone or for everything.
#[derive(Debug, Default)]
pub struct Tickets {
    tickets: Mutex<HashMap<String, Ticket>>,
}

/// What a ticket allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub sandbox: Uuid,
    pub read_only: bool,
    pub expires_at: Time,
}

impl Tickets {
    /// Makes one. `None`: too many wait already.
    pub(super) fn issue(&self, ticket: Ticket, now: Time) -> Option<String> {
        let text = secret().ok()?;
        let mut tickets = self.lock();
        tickets.retain(|_, ticket| ticket.expires_at > now);
        if tickets.len() >= TICKET_COUNT_MAX {
            return None;
        }
        tickets.insert(text.clone(), ticket);
        Some(text)
    }

    /// Takes one out; it works once.
    pub(super) fn redeem(&self, text: &str, sandbox: Uuid, now: Time) -> Option<Ticket> {
        let ticket = self.lock().remove(text)?;
        (ticket.sandbox == sandbox && ticket.expires_at > now).then_some(ticket)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Ticket>> {
        self.tickets.lock().expect("nobody panics while holding the tickets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_works_once_for_its_sandbox_and_for_a_while() {
        let tickets = Tickets::default();
        let sandbox = Uuid::now_v7();
        let ticket = Ticket { sandbox, read_only: true, expires_at: Time(100) };
        let text = tickets.issue(ticket, Time(0)).unwrap();
        assert_eq!(tickets.redeem(&text, sandbox, Time(50)), Some(ticket));
        assert_eq!(tickets.redeem(&text, sandbox, Time(50)), None);
        let other = tickets.issue(ticket, Time(0)).unwrap();
        assert_eq!(tickets.redeem(&other, Uuid::nil(), Time(50)), None);
        let late = tickets.issue(ticket, Time(0)).unwrap();
        assert_eq!(tickets.redeem(&late, sandbox, Time(100)), None);
    }

    #[test]
    fn only_the_token_is_the_token() {
        let auth = Auth::new("secret".to_owned());
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            auth.admits(&headers)
        };
        assert!(with("Bearer secret") && with("bearer secret"));
        assert!(!with("Bearer secre") && !with("Bearer secrets") && !with("secret"));
        assert!(!with("Bearer ") && !auth.admits(&HeaderMap::new()));
    }
}
