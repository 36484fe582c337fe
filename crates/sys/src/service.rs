//! The service manager, if one has started us: what it is told, and what it keeps for the next daemon.
//!
//! It speaks systemd's protocol (sd_notify(3), sd_listen_fds(3)). Without one, nothing of this does anything.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::SysError;

/// A listener that the service manager keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Api,
    /// At the other address of localhost.
    Twin,
}

impl Listener {
    const ALL: [Self; 2] = [Self::Api, Self::Twin];

    /// What it is called meanwhile.
    fn name(self) -> &'static str {
        match self {
            Self::Api => "sodiumd-api",
            Self::Twin => "sodiumd-api-twin",
        }
    }
}

/// What the manager is told of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// Requests are served.
    Ready(&'a str),
    /// The configuration is being read again; [`Told::Ready`] ends it.
    Reloading,
    Stopping,
    /// Everything still moves.
    Alive,
}

/// Tells it. One that does not listen is not waited for.
pub fn tell(what: Told<'_>) -> Result<(), SysError> {
    let sent = match what {
        Told::Ready(status) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
        }
        Told::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Told::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Told::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    };
    sent.map_err(|source| SysError { call: format!("notify({what:?})"), source })
}

/// How often it wants to hear [`Told::Alive`], at least; `None`: it does not.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Has it keep the listener, so that whoever connects while there is no daemon waits for the next one.
pub fn keep(listener: &impl AsFd, which: Listener) -> Result<(), SysError> {
    let states = [NotifyState::FdStore, NotifyState::FdName(which.name())];
    sd_notify::notify_with_fds(&states, &[listener.as_fd()])
        .map_err(|source| SysError { call: "notify(FDSTORE)".to_owned(), source })
}

/// Forgets what it kept.
pub fn forget(which: Listener) {
    let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(which.name())]);
}

/// The listeners that it has for us: one that it was told to make, and those that an earlier daemon had it keep,
/// if they are still wanted. Call it once, before anything else is opened.
pub fn listeners(is_wanted: impl Fn(Listener, SocketAddr) -> bool) -> Vec<(Listener, TcpListener)> {
    let mut found = Vec::new();
    for (fd, name) in sd_notify::listen_fds_with_names().into_iter().flatten() {
        // SAFETY: the manager has opened this descriptor for us, the protocol says so and that it begins at
        // 3; this is called once and before anything else is opened, so nothing of ours owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let listener = TcpListener::from(fd);
        let Ok(address) = listener.local_addr() else { continue };
        match Listener::ALL.into_iter().find(|which| which.name() == name) {
            Some(which) if !is_wanted(which, address) => forget(which),
            which => found.push((which.unwrap_or(Listener::Api), listener)),
        }
    }
    found
}
