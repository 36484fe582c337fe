//! The API's port: taken over from the service manager, bound, or waited for.
//!
//! The daemon does its work without it. Whoever has taken the port while there was no daemon keeps no sandbox from being
//! adopted, and nobody who has the local socket from being served; it is tried again until the port is free.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener as TokioListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::api::Api;
use crate::config::Config;
use crate::daemon::{serve_on, told};
use crate::reconcile;
use crate::store::Store;
use sodium_model::{Level, Time};
use sodium_sys::error::chain;
use sodium_sys::service::{self, Listener};
use sodium_sys::{clock, port};

/// How often a port that is taken is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(3);

/// Where the API is to be.
#[derive(Debug)]
pub(super) struct Port {
    host: String,
    port: u16,
    /// The listeners that the service manager has kept for us.
    kept: Vec<(Listener, TcpListener)>,
}

/// What the API listens on.
#[derive(Debug)]
pub(super) struct Doors {
    first: TokioListener,
    twin: Option<Twin>,
}

impl Doors {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.first.local_addr().ok()
    }
}

/// `localhost` is two addresses. Whoever has one of them has the other one, too, or anybody on the host could have it,
/// and be sent tokens.
#[derive(Debug)]
struct Twin {
    at: SocketAddr,
    bound: SocketAddr,
    /// An error: it is tried again.
    listener: io::Result<TokioListener>,
}

impl Port {
    /// To be called once, and first of all: what the service manager has opened for us is known by its number.
    pub(super) fn take(config: &Config) -> Self {
        let (host, port) = (config.host.clone(), config.port);
        let kept = service::listeners(|which, address| match which {
            Listener::Api => is_at(address, &host, port),
            Listener::Twin => twin_of(address).is_some_and(|first| is_at(first, &host, port)),
        });
        Self { host, port, kept }
    }

    /// The listener that was kept, or a new one; and at once the other that localhost leads to, so that nobody else has
    /// it in between.
    pub(super) async fn listen(&mut self) -> io::Result<Doors> {
        let first = match self.take_kept(|which, _| which == Listener::Api) {
            Some(kept) => kept,
            None => self.bind().await,
        }?;
        let mut twin = None;
        if let Some((bound, at)) = first.local_addr().ok().and_then(|at| Some((at, twin_of(at)?))) {
            let listener = match self.take_kept(|_, address| address == at) {
                Some(kept) => kept,
                None => Twin::bind(at).await,
            };
            twin = Some(Twin { at, bound, listener });
        }
        // What else was kept is closed: nobody would answer there.
        if self.kept.drain(..).any(|(which, _)| which == Listener::Twin) {
            service::forget(Listener::Twin);
        }
        Ok(Doors { first, twin })
    }

    fn take_kept(
        &mut self,
        is_it: impl Fn(Listener, SocketAddr) -> bool,
    ) -> Option<io::Result<TokioListener>> {
        let fits = |(which, one): &(Listener, TcpListener)| {
            one.local_addr().is_ok_and(|address| is_it(*which, address))
        };
        let (_, kept) = self.kept.remove(self.kept.iter().position(fits)?);
        Some(kept.set_nonblocking(true).and_then(|()| TokioListener::from_std(kept)))
    }

    /// A new listener, which the service manager is given to keep. It shares its port with nobody: SO_REUSEADDR is
    /// set, SO_REUSEPORT is not.
    async fn bind(&self) -> io::Result<TokioListener> {
        let listener = TokioListener::bind((self.host.as_str(), self.port)).await?;
        keep(&listener, Listener::Api);
        Ok(listener)
    }

    /// Why there is no listener, and what to do about it. `None`: there is one.
    pub(super) async fn missing(
        &self,
        listener: &io::Result<Doors>,
        store: &Store,
    ) -> Option<String> {
        match listener {
            Ok(_) => None,
            Err(fault) => Some(self.explain(fault, store).await),
        }
    }

    async fn explain(&self, fault: &io::Error, store: &Store) -> String {
        let (at, number) = (format!("{}:{}", self.host, self.port), self.port);
        if fault.kind() != io::ErrorKind::AddrInUse {
            return format!("{at}: {fault}; see \"host\" and \"port\" in config.json");
        }
        let Some(holder) = reconcile::blocking(move || port::holder(number)).await else {
            return format!("{at} is taken; find out by whom: ss -ltnp 'sport = :{number}'");
        };
        let snapshot = store.snapshot();
        let tenant = snapshot
            .sandboxes
            .values()
            .find(|one| one.host_uid == holder.uid && one.live().is_some());
        match tenant {
            Some(one) => {
                let name = &one.name;
                format!(
                    "{at} is taken by the sandbox {name}, {holder}; stop it: sodiumd stop {name}"
                )
            }
            None => {
                format!("{at} is taken by {holder}; end that, or change \"port\" in config.json")
            }
        }
    }

    /// Serves the API, once there is a listener.
    pub(super) async fn serve(
        self,
        first: io::Result<Doors>,
        api: Arc<Api>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let doors = match first {
            Ok(doors) => Some(doors),
            Err(fault) => self.wait(fault, &api, &shutdown).await,
        };
        let Some(Doors { first, twin }) = doors else { return Ok(()) };
        let twin = async {
            match twin {
                Some(twin) => twin.serve(Arc::clone(&api), shutdown.clone()).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(serve_on(first, Arc::clone(&api), false, shutdown.clone()), twin).map(drop)
    }

    /// Tries until it succeeds. `None`: the daemon ends.
    async fn wait(
        mut self,
        mut fault: io::Error,
        api: &Api,
        shutdown: &CancellationToken,
    ) -> Option<Doors> {
        let mut said = None;
        loop {
            if said != Some(fault.kind()) {
                said = Some(fault.kind());
                let why = self.explain(&fault, &api.store).await;
                error!(why, "the API has no port; it is tried again, and the local socket serves");
                note(&api.store, Level::Warning, ("ApiUnreachable", why)).await;
            }
            // Both arms only wait.
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(RETRY_EVERY) => (),
            }
            match self.listen().await {
                Ok(doors) => {
                    let address = doors.address();
                    api.about.address.set(address);
                    let at = address.map_or_else(String::new, |address| address.to_string());
                    info!(address = at, "the API listens");
                    note(&api.store, Level::Normal, ("ApiListening", at)).await;
                    told(service::Told::Ready("serving"));
                    return Some(doors);
                }
                Err(next) => fault = next,
            }
        }
    }
}

impl Twin {
    async fn bind(at: SocketAddr) -> io::Result<TokioListener> {
        let listener = TokioListener::bind(at).await?;
        keep(&listener, Listener::Twin);
        Ok(listener)
    }

    async fn serve(self, api: Arc<Api>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (mut listener, mut said) = (self.listener, None);
        loop {
            match listener {
                Ok(listener) => return serve_on(listener, api, false, shutdown).await,
                Err(error) if said == Some(error.kind()) => (),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    said = Some(error.kind());
                    let (at, bound) = (self.at, self.bound);
                    let why = format!(
                        "{at} is taken by somebody else, to whom \"localhost\" may lead: clients have to ask for {bound}"
                    );
                    warn!("{why}");
                    note(&api.store, Level::Warning, ("LocalhostTaken", why)).await;
                }
                // Of a host without IPv6, nobody can take it, until it has it.
                Err(error) => {
                    said = Some(error.kind());
                    debug!(at = %self.at, %error, "address unavailable");
                }
            }
            // Both arms only wait.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_EVERY) => (),
            }
            listener = Self::bind(self.at).await;
        }
    }
}

fn keep(listener: &TokioListener, which: Listener) {
    if let Err(error) = service::keep(listener, which) {
        debug!(error = chain(&error), "the service manager does not keep the listener");
    }
}

/// Where localhost leads as well. Of all addresses of the newer kind, the older one is among them.
fn twin_of(bound: SocketAddr) -> Option<SocketAddr> {
    let other: IpAddr = match bound.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST | Ipv4Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    Some(SocketAddr::new(other, bound.port()))
}

/// Whether a listener is where the configuration wants one.
fn is_at(address: SocketAddr, host: &str, port: u16) -> bool {
    let wanted = (host, port).to_socket_addrs();
    let fits = |one: SocketAddr| one == address || port == 0 && one.ip() == address.ip();
    wanted.is_ok_and(|mut wanted| wanted.any(fits))
}

async fn note(store: &Store, level: Level, (reason, message): (&'static str, String)) {
    let now = Time(clock::wall_ms());
    let noted = store.write(move |core| core.event(None, level, (reason, message), now)).await;
    if let Err(error) = noted {
        warn!(error = chain(&error), reason, "event not written");
    }
}
