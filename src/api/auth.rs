//! Who may ask: the token, compared in constant time and never logged, or a ticket made for a
//! browser, which cannot set headers on a WebSocket and must not keep the token in a page.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Extension;
use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use uuid::Uuid;

use crate::api::ApiError;
use crate::api::caller::{Caller, Grant, Who};
use sodium_model::Time;

/// A ticket is used at once or not at all.
pub(super) const TICKET_MS: u64 = 30_000;
/// Tickets that wait to be used. More is somebody asking for nothing else.
const TICKET_COUNT_MAX: usize = 1_024;
/// Of a digest or a ticket, what tells one from another in events and gives nothing of it away.
const ID_BYTES: usize = 4;

/// 256 random bits as text: a token, or a ticket.
pub fn secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What lets in for everything.
pub(super) struct Token {
    text: String,
    /// What events call it: the beginning of its digest, since people choose short ones.
    id: Arc<str>,
}

impl Token {
    fn new(text: String) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        let id: String = digest.iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Self { text, id: id.into() }
    }

    fn is(&self, given: &str) -> bool {
        bool::from(self.text.as_bytes().ct_eq(given.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token({})", self.id)
    }
}

/// The token that is in force, and word of its replacement.
pub struct Auth {
    tokens: watch::Sender<Arc<Token>>,
}

impl Auth {
    pub fn new(token: String) -> Self {
        Self { tokens: watch::Sender::new(Arc::new(Token::new(token))) }
    }

    /// From now on it is another one, and what the one before has opened ends. False: it is the same.
    pub fn change(&self, token: String) -> bool {
        self.tokens.send_if_modified(|now| {
            let changed = !now.is(&token);
            if changed {
                *now = Arc::new(Token::new(token));
            }
            changed
        })
    }

    /// Word of each token that is in force after this.
    pub(super) fn tokens(&self) -> watch::Receiver<Arc<Token>> {
        self.tokens.subscribe()
    }

    /// That somebody has the token in the header, or, as the seed's console wants it, in the query.
    pub(super) fn identify(&self, headers: &HeaderMap, uri: &Uri) -> Option<(Who, Grant)> {
        let token = Arc::clone(&self.tokens.borrow());
        let in_header = bearer(headers).is_some_and(|given| token.is(given));
        // Anywhere else a query lets nobody in.
        let of_console = uri.path().starts_with("/console") || uri.path().ends_with("/exec");
        let in_query = || of_console && query(uri, "token").is_some_and(|given| token.is(&given));
        if !in_header && !in_query() {
            return None;
        }
        let who = Who::Token { id: Arc::clone(&token.id), in_query: !in_header };
        Some((who, Grant::by(token, self.tokens.subscribe())))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Lets in whoever may ask for everything.
pub(super) async fn guard(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if caller.may_ask() { next.run(request).await } else { ApiError::Unauthorized.into_response() }
}

/// A value of the query, decoded.
pub(super) fn query(uri: &Uri, name: &str) -> Option<String> {
    let text = uri.query().filter(|text| text.len() <= QUERY_BYTES_MAX)?;
    let mut pairs = form_urlencoded::parse(text.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// A query that is longer is nobody's token or ticket.
const QUERY_BYTES_MAX: usize = 8 << 10;

/// One-use tickets, each for one sandbox and for reading alone or for everything.
#[derive(Debug, Default)]
pub struct Tickets {
    tickets: Mutex<HashMap<String, Ticket>>,
}

/// What a ticket allows, and by whose leave.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub sandbox: Uuid,
    pub read_only: bool,
    pub expires_at: Time,
    /// Of whoever had it made: it is good for as long as they are let in.
    pub grant: Grant,
    /// And who that is, for events.
    pub by: String,
}

impl Ticket {
    fn is_good(&self, now: Time) -> bool {
        self.expires_at > now && !self.grant.is_revoked()
    }
}

/// What events call a ticket: its beginning.
pub(super) fn ticket_id(text: &str) -> Arc<str> {
    text.chars().take(2 * ID_BYTES).collect::<String>().into()
}

impl Tickets {
    /// Makes one. `None`: too many wait already.
    pub(super) fn issue(&self, ticket: Ticket, now: Time) -> Option<String> {
        let text = secret().ok()?;
        let mut tickets = self.lock();
        tickets.retain(|_, ticket| ticket.is_good(now));
        if tickets.len() >= TICKET_COUNT_MAX {
            return None;
        }
        tickets.insert(text.clone(), ticket);
        Some(text)
    }

    /// Takes one out; it works once.
    pub(super) fn redeem(&self, text: &str, sandbox: Uuid, now: Time) -> Option<Ticket> {
        let ticket = self.lock().remove(text)?;
        (ticket.sandbox == sandbox && ticket.is_good(now)).then_some(ticket)
    }

    /// For how long whoever holds it is let in, if it could be used now for that sandbox.
    pub(super) fn grant(&self, text: &str, sandbox: Uuid, now: Time) -> Option<Grant> {
        let tickets = self.lock();
        let is_good = |ticket: &&Ticket| ticket.sandbox == sandbox && ticket.is_good(now);
        tickets.get(text).filter(is_good).map(|ticket| ticket.grant.clone())
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
        let grant = Grant::for_good();
        let (expires_at, by) = (Time(100), String::new());
        let ticket = Ticket { sandbox, read_only: true, expires_at, grant, by };
        let works = |text: &str, sandbox, now| tickets.redeem(text, sandbox, Time(now)).is_some();
        let text = tickets.issue(ticket.clone(), Time(0)).unwrap();
        assert!(tickets.grant(&text, sandbox, Time(50)).is_some());
        assert!(tickets.grant(&text, Uuid::nil(), Time(50)).is_none());
        assert!(tickets.grant(&text, sandbox, Time(100)).is_none());
        assert!(works(&text, sandbox, 50));
        assert!(!works(&text, sandbox, 50));
        let other = tickets.issue(ticket.clone(), Time(0)).unwrap();
        assert!(!works(&other, Uuid::nil(), 50));
        let late = tickets.issue(ticket, Time(0)).unwrap();
        assert!(!works(&late, sandbox, 100));
    }

    #[test]
    fn a_ticket_is_good_no_longer_than_the_token_that_it_was_made_with() {
        let (auth, tickets) = (Auth::new("one".to_owned()), Tickets::default());
        let (sandbox, expires_at) = (Uuid::now_v7(), Time(100));
        let (_, grant) = auth.identify(&header("Bearer one"), &Uri::default()).unwrap();
        let by = String::new();
        let ticket = Ticket { sandbox, read_only: false, expires_at, grant, by };
        let text = tickets.issue(ticket, Time(0)).unwrap();
        assert!(auth.change("two".to_owned()));
        assert!(tickets.grant(&text, sandbox, Time(1)).is_none());
        assert!(tickets.redeem(&text, sandbox, Time(1)).is_none());
    }

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn only_the_token_is_the_token() {
        let auth = Auth::new("secret".to_owned());
        let with = |value: &str| auth.identify(&header(value), &Uri::default()).is_some();
        assert!(with("Bearer secret") && with("bearer secret"));
        assert!(!with("Bearer secre") && !with("Bearer secrets") && !with("secret"));
        assert!(!with("Bearer ") && auth.identify(&HeaderMap::new(), &Uri::default()).is_none());
        let in_query = |query: &'static str| {
            let found = auth.identify(&HeaderMap::new(), &Uri::from_static(query));
            found.is_some_and(|(who, _)| matches!(who, Who::Token { in_query: true, .. }))
        };
        assert!(in_query("/console/a?token=secret") && !in_query("/console/a?token=secre"));
    }
}
