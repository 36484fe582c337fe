//! Where each connection is counted, from its first byte to its last.
//!
//! ```text
//!   accepted --> newcomer --(shows a token or a ticket)--> seated --(shows nothing good any more)--> newcomer
//!                   |                                         |
//!                   '-(one too many: the oldest goes)         '-(one too many: 503)
//! ```
//!
//! Newcomers have a few places of their own, so that whoever shows nothing cannot fill those of the others; and they
//! give way to later ones, so that they cannot keep anybody out. A WebSocket keeps the seat of its connection until
//! it ends. The local socket has places of its own.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::auth::Token;
use crate::api::caller::{Caller, Grant, Peer};
use crate::api::rate::Place;
use crate::api::{ApiError, Shared};

/// Beside each so many places of those who were let in, one for newcomers,
const SEATED_PER_NEWCOMER: usize = 8;
/// and never fewer than this.
const NEWCOMERS_MIN: usize = 64;

/// How many connections each peer has.
#[derive(Debug, Default, Clone)]
pub(super) struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, until this is dropped.
#[derive(Debug)]
struct Counted(Peers, IpAddr);

impl Peers {
    fn count(&self, peer: IpAddr, max: usize) -> Option<Counted> {
        let mut peers = self.0.lock().expect("nobody panics while counting");
        let count = peers.entry(peer).or_insert(0);
        if max > 0 && *count >= max {
            return None;
        }
        *count += 1;
        drop(peers);
        Some(Counted(self.clone(), peer))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut peers = self.0.0.lock().expect("nobody panics while counting");
        if let Some(count) = peers.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.1);
            }
        }
    }
}

/// Connections that have shown nothing yet.
#[derive(Debug, Default, Clone)]
pub(super) struct Newcomers(Arc<Mutex<Crowd>>);

/// By age.
#[derive(Debug, Default)]
struct Crowd {
    next: u64,
    entries: BTreeMap<u64, (Option<IpAddr>, CancellationToken)>,
}

/// One of them, until this is dropped.
#[derive(Debug)]
struct Newcomer(Newcomers, u64);

impl Newcomers {
    /// Lets one more in; if that is one too many, the oldest of whoever has the most of them gives way.
    fn enter(
        &self,
        peer: Option<IpAddr>,
        gives_way: &CancellationToken,
        connections_max: usize,
    ) -> Newcomer {
        let mut crowd = self.lock();
        let max = (connections_max / SEATED_PER_NEWCOMER).max(NEWCOMERS_MIN);
        if connections_max > 0 && crowd.entries.len() >= max {
            crowd.make_room();
        }
        let id = crowd.next;
        crowd.next += 1;
        crowd.entries.insert(id, (peer, gives_way.clone()));
        Newcomer(self.clone(), id)
    }

    fn lock(&self) -> MutexGuard<'_, Crowd> {
        self.0.lock().expect("nobody panics while counting")
    }
}

impl Crowd {
    fn make_room(&mut self) {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for (peer, _) in self.entries.values() {
            *counts.entry(*peer).or_default() += 1;
        }
        let most = counts.values().max().copied();
        let oldest = self.entries.iter().find(|(_, (peer, _))| counts.get(peer).copied() == most);
        let oldest = oldest.map(|(id, _)| *id);
        if let Some((_, gives_way)) = oldest.and_then(|id| self.entries.remove(&id)) {
            gives_way.cancel();
        }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.0.lock().entries.remove(&self.1);
    }
}

/// The place of a connection; given back with the last clone.
#[derive(Clone)]
pub(super) struct Seat(Arc<Held>);

struct Held {
    api: Shared,
    peer: Peer,
    /// Cancelled when the connection is to be closed for another one.
    gives_way: CancellationToken,
    standing: Mutex<Standing>,
}

/// What it is counted as.
enum Standing {
    Newcomer { _newcomer: Newcomer },
    Seated { grant: Grant, _counted: Option<Counted>, _place: Place },
}

impl Seat {
    /// For a connection that was just made. `None`: one too many at the local socket.
    pub(super) fn take(api: &Shared, peer: Peer) -> Option<Self> {
        let gives_way = CancellationToken::new();
        let connections_max = api.bounds.get().connections_max;
        let standing = if peer.is_owner() {
            let place = api.load.local_connections.take(connections_max)?;
            Standing::Seated { grant: Grant::for_good(), _counted: None, _place: place }
        } else {
            let newcomer = api.load.newcomers.enter(peer.key(), &gives_way, connections_max);
            Standing::Newcomer { _newcomer: newcomer }
        };
        let (api, standing) = (Arc::clone(api), Mutex::new(standing));
        Some(Self(Arc::new(Held { api, peer, gives_way, standing })))
    }

    pub(super) fn peer(&self) -> Peer {
        self.0.peer
    }

    /// Waits until it is to be closed for another one.
    pub(super) async fn gives_way(&self) {
        self.0.gives_way.cancelled().await;
    }

    /// Whether what it was given for has been taken back.
    pub(super) fn is_revoked(&self) -> bool {
        match &*self.0.standing.lock().expect("nobody panics while counting") {
            Standing::Seated { grant, .. } => grant.is_revoked(),
            Standing::Newcomer { .. } => false,
        }
    }

    /// Word of each time at which that may change.
    pub(super) fn tokens(&self) -> watch::Receiver<Arc<Token>> {
        self.0.api.auth.tokens()
    }

    /// Counts it by what a request on it has shown.
    pub(super) fn sit(&self, caller: &Caller) -> Result<(), ApiError> {
        let held = &self.0;
        let mut standing = held.standing.lock().expect("nobody panics while counting");
        let is_newcomer = match &mut *standing {
            Standing::Seated { grant, .. } if caller.is_known() => {
                *grant = caller.grant.clone();
                return Ok(());
            }
            Standing::Seated { .. } => false,
            Standing::Newcomer { .. } => true,
        };
        if caller.is_known() {
            *standing = self.seated(&caller.grant)?;
        } else if !is_newcomer {
            let max = held.api.bounds.get().connections_max;
            let newcomer = held.api.load.newcomers.enter(held.peer.key(), &held.gives_way, max);
            *standing = Standing::Newcomer { _newcomer: newcomer };
        }
        Ok(())
    }

    fn seated(&self, grant: &Grant) -> Result<Standing, ApiError> {
        let (load, bounds) = (&self.0.api.load, self.0.api.bounds.get());
        let counted = match self.0.peer.key() {
            Some(peer) => {
                let counted = load.peers.count(peer, bounds.connections_per_peer_max);
                Some(counted.ok_or(ApiError::Crowded)?)
            }
            None => None,
        };
        let place = load.connections.take(bounds.connections_max).ok_or(ApiError::Crowded)?;
        Ok(Standing::Seated { grant: grant.clone(), _counted: counted, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_newcomer_of_whoever_has_the_most_gives_way() {
        let newcomers = Newcomers::default();
        let from = |text: &str| Some(text.parse().unwrap());
        let enter = |peer| {
            let gives_way = CancellationToken::new();
            (newcomers.enter(peer, &gives_way, 8), gives_way)
        };
        let quiet = enter(from("10.0.0.1"));
        let mut flood: Vec<_> = (0..NEWCOMERS_MIN - 1).map(|_| enter(from("10.0.0.2"))).collect();
        flood.extend((0..3).map(|_| enter(from("10.0.0.2"))));
        let gone = flood.iter().take_while(|(_, gives_way)| gives_way.is_cancelled()).count();
        assert_eq!(gone, 3);
        assert!(flood[gone..].iter().all(|(_, gives_way)| !gives_way.is_cancelled()));
        assert!(!quiet.1.is_cancelled());
        let late = enter(from("10.0.0.3"));
        assert!(flood[3].1.is_cancelled() && !quiet.1.is_cancelled());
        assert_eq!(newcomers.lock().entries.len(), NEWCOMERS_MIN);
        drop((quiet, flood, late));
        assert!(newcomers.lock().entries.is_empty());
    }

    #[test]
    fn without_a_bound_nobody_gives_way() {
        let (newcomers, gives_way) = (Newcomers::default(), CancellationToken::new());
        let all: Vec<_> = (0..100).map(|_| newcomers.enter(None, &gives_way, 0)).collect();
        assert_eq!((newcomers.lock().entries.len(), all.len()), (100, 100));
        assert!(!gives_way.is_cancelled());
    }
}
