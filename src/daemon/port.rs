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
use crate::error::chain;
use crate::model::{Level, Time};
use crate::reconcile;
use crate::store::Store;
use crate::sys::{clock, port, service};

/// How often a port that is taken is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(3);

/// Where the API is to be.
#[derive(Debug)]
pub(super) struct Port {
    host: String,
    port: u16,
    /// The listener that the service manager has kept for us.
    kept: Option<TcpListener>,
}

impl Port {
    /// To be called once, and first of all: what the service manager has opened for us is known by its number.
    pub(super) fn take(config: &Config) -> Self {
        let (host, port) = (config.host.clone(), config.port);
        let kept = service::listener(|address| is_at(address, &host, port));
        Self { host, port, kept }
    }

    /// The listener that was kept, or a new one.
    pub(super) async fn listen(&mut self) -> io::Result<TokioListener> {
        match self.kept.take() {
            Some(kept) => {
                kept.set_nonblocking(true)?;
                TokioListener::from_std(kept)
            }
            None => self.bind().await,
        }
    }

    /// A new listener, which the service manager is given to keep. It shares its port with nobody: SO_REUSEADDR is
    /// set, SO_REUSEPORT is not.
    async fn bind(&self) -> io::Result<TokioListener> {
        let listener = TokioListener::bind((self.host.as_str(), self.port)).await?;
        if let Err(error) = service::keep(&listener) {
            debug!(error = chain(&error), "the service manager does not keep the listener");
        }
        Ok(listener)
    }

    /// `localhost` is two addresses. Whoever has one of them has the other one, too, or anybody on the host could have
    /// it, and be sent tokens. One that is taken is tried again until it is free.
    async fn serve_twin(
        bound: SocketAddr,
        api: Arc<Api>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let other: IpAddr = match bound.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
        };
        let (at, mut is_told) = (SocketAddr::new(other, bound.port()), false);
        loop {
            match TokioListener::bind(at).await {
                Ok(listener) => return serve_on(listener, api, false, shutdown).await,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if !std::mem::replace(&mut is_told, true) {
                        Self::tell_taken(&api, at, bound).await;
                    }
                }
                // Of a host without IPv6, nobody can take it.
                Err(error) => {
                    debug!(%at, %error, "not to be had");
                    return Ok(());
                }
            }
            // Both arms only wait.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_EVERY) => (),
            }
        }
    }

    async fn tell_taken(api: &Api, at: SocketAddr, bound: SocketAddr) {
        let message = format!(
            "{at} is taken by somebody else, to whom \"localhost\" may lead: clients have to ask for {bound}"
        );
        warn!("{message}");
        let now = Time(clock::wall_ms());
        let told = move |core: &mut crate::store::Core| {
            core.event(None, Level::Warning, ("LocalhostTaken", message), now)
        };
        if let Err(error) = api.store.write(told).await {
            warn!(error = chain(&error), "event not stored");
        }
    }

    /// Why there is no listener, and what to do about it. `None`: there is one.
    pub(super) async fn missing(
        &self,
        listener: &io::Result<TokioListener>,
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
        first: io::Result<TokioListener>,
        api: Arc<Api>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let listener = match first {
            Ok(listener) => listener,
            Err(fault) => match self.wait(fault, &api, &shutdown).await {
                Some(listener) => listener,
                None => return Ok(()),
            },
        };
        let Ok(bound) = listener.local_addr() else {
            return serve_on(listener, api, false, shutdown).await;
        };
        let twin = Self::serve_twin(bound, Arc::clone(&api), shutdown.clone());
        tokio::try_join!(serve_on(listener, api, false, shutdown), twin).map(drop)
    }

    /// Tries until it succeeds. `None`: the daemon ends.
    async fn wait(
        &self,
        mut fault: io::Error,
        api: &Api,
        shutdown: &CancellationToken,
    ) -> Option<TokioListener> {
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
            match self.bind().await {
                Ok(listener) => {
                    let address = listener.local_addr().ok();
                    api.about.address.set(address);
                    let at = address.map_or_else(String::new, |address| address.to_string());
                    info!(address = at, "the API listens");
                    note(&api.store, Level::Normal, ("ApiListening", at)).await;
                    told(service::Told::Ready("serving"));
                    return Some(listener);
                }
                Err(next) => fault = next,
            }
        }
    }
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
