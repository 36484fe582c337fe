//! Who asks, from where, and for how long that is good.
//!
//! Found out once for each request, before anything else is done for it, and carried by whatever the request opens:
//! what is open ends when the token that opened it is replaced.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::header::UPGRADE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use crate::api::auth::{self, Token};
use crate::api::rate::{Rate, peer_key};
use crate::api::seat::Seat;
use crate::api::{Api, ApiError, Shared};
use sodium_sys as sys;

/// What is open is gone this long after its token, whether or not its client hears why.
pub(super) const GONE_WITHIN: Duration = Duration::from_millis(500);
/// The WebSocket's close code,
pub(super) const REVOKED_CLOSE: u16 = 4003;
/// and the words, for clients that do hear it.
pub(super) const REVOKED: &str = "the token was replaced; sign in with the new one";

/// The other end of a connection, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A process of this machine, over the local socket.
    Local {
        uid: u32,
        /// It runs in a sandbox: where the daemon is not root, that may be as the daemon's own user.
        is_inside: bool,
    },
}

impl Peer {
    /// Whom its connections and requests count for. `None`: it is of this machine, and counts for nobody.
    pub(super) fn key(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(peer_key(address.ip())),
            Self::Local { .. } => None,
        }
    }

    /// Whether it needs no token: root, and whoever the daemon runs as.
    pub(super) fn is_owner(self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Local { uid, is_inside } => !is_inside && (uid == 0 || uid == sys::own_ids().0),
        }
    }
}

/// How somebody was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Without anything that is good.
    Stranger,
    /// Over the local socket.
    Local { uid: u32 },
    /// The token, by the beginning of its digest; in the query it is good for the console alone.
    Token { id: Arc<str>, in_query: bool },
    /// A ticket, by its beginning, which may be used still.
    Ticket { id: Arc<str> },
}

/// See the module.
#[derive(Clone)]
pub(super) struct Caller {
    pub who: Who,
    pub from: Option<IpAddr>,
    pub grant: Grant,
    /// Of the connection. A WebSocket has it for as long as it has its caller.
    seat: Option<Seat>,
}

/// As events name them.
impl fmt::Display for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Stranger => out.write_str("nobody")?,
            Who::Local { uid } => write!(out, "local uid={uid}")?,
            Who::Token { id, .. } => write!(out, "token {id}")?,
            Who::Ticket { id } => write!(out, "ticket {id}")?,
        }
        match self.from {
            Some(from) => write!(out, " from {from}"),
            None => Ok(()),
        }
    }
}

impl Caller {
    /// Whether they have shown anything that is good.
    pub(super) fn is_known(&self) -> bool {
        self.who != Who::Stranger
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.who, Who::Local { .. })
    }

    /// Whether they may ask for everything. A token in the query is of the console alone, since queries are kept in
    /// logs and histories.
    pub(super) fn may_ask(&self) -> bool {
        match self.who {
            Who::Local { .. } => true,
            Who::Token { in_query, .. } => !in_query,
            Who::Stranger | Who::Ticket { .. } => false,
        }
    }

    /// Whether they have the token, wherever it stands, or need none.
    pub(super) fn may_do_all(&self) -> bool {
        match self.who {
            Who::Local { .. } | Who::Token { .. } => true,
            Who::Stranger | Who::Ticket { .. } => false,
        }
    }
}

/// That somebody was let in, until the token by which they were is replaced.
#[derive(Debug, Clone)]
pub(super) struct Grant(Option<(watch::Receiver<Arc<Token>>, Arc<Token>)>);

impl Grant {
    /// One that nothing takes back.
    pub(super) fn for_good() -> Self {
        Self(None)
    }

    /// By a token, until the one in force is another.
    pub(super) fn by(token: Arc<Token>, tokens: watch::Receiver<Arc<Token>>) -> Self {
        Self(Some((tokens, token)))
    }

    /// Whether its token was replaced.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.as_ref().is_some_and(|(tokens, token)| !Arc::ptr_eq(&tokens.borrow(), token))
    }

    /// Waits until its token is replaced. Cancel-safe, and may be waited for again.
    pub(super) async fn revoked(&mut self) {
        match &mut self.0 {
            // An error says that the daemon ends, which ends everything.
            Some((tokens, token)) => drop(tokens.wait_for(|now| !Arc::ptr_eq(now, token)).await),
            None => std::future::pending::<()>().await,
        }
    }
}

impl Api {
    /// Finds out who asks.
    fn identify(&self, request: &mut Request, trusted: bool) -> Result<Caller, ApiError> {
        let seat = request.extensions_mut().remove::<Seat>();
        let peer = request.extensions().get::<Peer>().copied();
        let from = match peer {
            Some(Peer::Tcp(address)) => Some(address.ip().to_canonical()),
            Some(Peer::Local { .. }) | None => None,
        };
        if trusted {
            // Without a connection, it is a part of this very process that asks.
            let peer =
                peer.unwrap_or_else(|| Peer::Local { uid: sys::own_ids().0, is_inside: false });
            return match peer {
                Peer::Local { uid, .. } if peer.is_owner() => {
                    let who = Who::Local { uid };
                    Ok(Caller { who, from, grant: Grant::for_good(), seat })
                }
                Peer::Local { is_inside: true, .. } => Err(ApiError::Inside),
                Peer::Local { uid, .. } => Err(ApiError::Forbidden(uid)),
                Peer::Tcp(_) => Err(ApiError::Unauthorized),
            };
        }
        let stranger = || (Who::Stranger, Grant::for_good());
        let by_token = self.auth.identify(request.headers(), request.uri());
        let by_ticket = || {
            // Where it is not used up by this, it would be worth the place of a token as often as it is shown.
            let id = redeemed_at(request)?;
            let text = auth::query(request.uri(), "ticket")?;
            let sandbox = self.store.snapshot().find(id)?.uid;
            let grant = self.tickets.grant(&text, sandbox, self.now())?;
            Some((Who::Ticket { id: auth::ticket_id(&text) }, grant))
        };
        let (who, grant) = by_token.or_else(by_ticket).unwrap_or_else(stranger);
        Ok(Caller { who, from, grant, seat })
    }

    /// Counts a request for whoever asks, among those of their kind.
    pub(super) fn pace(&self, caller: &Caller) -> Result<(), ApiError> {
        let (bounds, load) = (self.bounds.get(), &self.load);
        let peer = caller.from.map(peer_key);
        let by_peer = |rate: &Rate<IpAddr>, per_second| {
            peer.map_or(Ok(()), |peer| rate.ask(peer, per_second))
        };
        let asked = match caller.who {
            Who::Local { .. } => Ok(()),
            Who::Stranger if peer.is_none() => Ok(()),
            Who::Stranger => by_peer(&load.strangers_by_peer, bounds.anonymous_per_second_per_peer)
                .and_then(|()| load.strangers.ask((), bounds.anonymous_per_second)),
            Who::Token { .. } => by_peer(&load.by_peer, bounds.requests_per_second_per_peer)
                .and_then(|()| load.by_token.ask((), bounds.requests_per_second)),
            Who::Ticket { .. } => by_peer(&load.by_peer, bounds.requests_per_second_per_peer),
        };
        asked.map_err(ApiError::TooFast)
    }
}

/// The sandbox that a ticket would be used for, by its name or number.
fn redeemed_at(request: &Request) -> Option<&str> {
    let opens = request.method() == Method::GET && request.headers().contains_key(UPGRADE);
    let path = Some(request.uri().path()).filter(|_| opens)?;
    let of_exec = || path.strip_prefix("/v1/sandboxes/")?.strip_suffix("/exec");
    path.strip_prefix("/console/").or_else(of_exec)
}

/// Finds out who asks, and serves them as often as their kind may ask. Those with nothing to show have a budget of
/// their own, so that they use up nobody's.
pub(super) async fn admit(
    State((api, trusted)): State<(Shared, bool)>,
    mut request: Request,
    next: Next,
) -> Response {
    let admitted = api.identify(&mut request, trusted).and_then(|caller| {
        if let Some(seat) = &caller.seat {
            seat.sit(&caller)?;
        }
        api.pace(&caller)?;
        Ok(caller)
    });
    match admitted {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Uri};

    use super::*;

    #[tokio::test]
    async fn what_was_granted_by_a_token_ends_with_it_and_what_was_not_does_not() {
        let auth = auth::Auth::new("one".to_owned());
        let with = |token: &'static str| {
            let uri = Uri::from_static(token);
            auth.identify(&HeaderMap::new(), &uri).map(|(_, grant)| grant)
        };
        let (mut granted, local) = (with("/console/a?token=one").unwrap(), Grant::for_good());
        assert!(!auth.change("one".to_owned()) && !granted.is_revoked());
        assert!(auth.change("two".to_owned()));
        granted.revoked().await;
        // Whoever asks again is told again.
        granted.clone().revoked().await;
        assert!(granted.is_revoked() && !local.is_revoked());
        assert!(
            with("/console/a?token=one").is_none()
                && !with("/console/a?token=two").unwrap().is_revoked()
        );
        // The same text is another token once it was replaced.
        assert!(auth.change("one".to_owned()) && granted.is_revoked());
    }
}
