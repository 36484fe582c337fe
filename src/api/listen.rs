//! Connections: taken one after the other, and how long they may take their time. How many: seat.rs.
//!
//! Each is a task of its own. One too many is told so and closed; one that asks nothing, or takes nothing of
//! what it asked for, is closed after a while, so that whoever holds connections open holds nobody up.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use tracing::debug;

use crate::api::Shared;
use crate::api::caller::{GONE_WITHIN, Peer};
use crate::api::seat::Seat;
use sodium_model::Bounds;
use sodium_sys::{self as sys, confined, socket};

/// A request's line and headers, in bytes and in number. Beyond: 431.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADER_COUNT_MAX: usize = 64;

/// What one connection too many is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
content-length: 61\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
{\"error\":\"too many connections are open\",\"code\":\"too_many\"}\r\n";

/// Something that is listened at.
pub trait Doorway: Listener {
    /// Who is at the other end.
    fn peer(io: &Self::Io, address: &Self::Addr) -> Peer;

    /// What is to be set before anything is said.
    fn settle(io: &Self::Io, bounds: &Bounds);
}

impl Doorway for TcpListener {
    fn peer(_: &Self::Io, address: &Self::Addr) -> Peer {
        Peer::Tcp(*address)
    }

    fn settle(io: &Self::Io, bounds: &Bounds) {
        // Neither is needed for being served.
        let _ = io.set_nodelay(true);
        let _ = socket::keep_alive(io);
        if bounds.stalled_after.0 > 0 {
            let _ = socket::give_up_after(io, bounds.stalled_after.duration());
        }
    }
}

impl Doorway for UnixListener {
    fn peer(io: &Self::Io, _: &Self::Addr) -> Peer {
        // One whom the kernel does not name is nobody's.
        let Ok(found) = io.peer_cred() else {
            return Peer::Local { uid: u32::MAX, is_inside: false };
        };
        // As root, whoever is in a sandbox is somebody else.
        let is_inside = !sys::is_root() && found.uid() != 0 && {
            let pid = found.pid().and_then(|pid| u32::try_from(pid).ok());
            pid.is_none_or(|pid| confined::is_inside(pid, io))
        };
        Peer::Local { uid: found.uid(), is_inside }
    }

    fn settle(_: &Self::Io, _: &Bounds) {}
}

/// Serves until shut down; requests that run are given their end.
pub async fn serve<L: Doorway>(
    mut listener: L,
    api: Shared,
    router: Router,
    shutdown: CancellationToken,
) {
    let tasks = TaskTracker::new();
    loop {
        // Both arms only wait.
        let (io, address) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let bounds = api.bounds.get();
        L::settle(&io, &bounds);
        match Seat::take(&api, L::peer(&io, &address)) {
            Some(seat) => {
                let connection = Connection { io, router: router.clone(), seat, bounds };
                tasks.spawn(connection.serve(shutdown.clone()));
            }
            None => drop(tasks.spawn(turn_away(io))),
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn turn_away(mut io: impl tokio::io::AsyncWrite + Unpin) {
    // Fits into what the kernel takes at once; a peer that is gone needs no answer.
    let _ = io.write_all(TOO_MANY).await;
    let _ = io.shutdown().await;
}

struct Connection<I> {
    io: I,
    router: Router,
    seat: Seat,
    bounds: Arc<Bounds>,
}

impl<I> Connection<I>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    async fn serve(self, shutdown: CancellationToken) {
        let Self { io, router, seat, bounds } = self;
        let (shown, mut tokens) = (seat.clone(), seat.tokens());
        let service = service_fn(move |mut request: hyper::Request<_>| {
            request.extensions_mut().insert(shown.peer());
            request.extensions_mut().insert(shown.clone());
            router.clone().call(request.map(Body::new))
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADER_COUNT_MAX);
        if bounds.head_within.0 > 0 {
            builder.header_read_timeout(bounds.head_within.duration());
        }
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        let mut connection = pin!(connection);
        let done = loop {
            // Each arm only waits; the connection goes on after the last two.
            tokio::select! {
                done = connection.as_mut() => break done,
                () = seat.gives_way() => {
                    debug!("connection closed: it has shown no token, and others wait");
                    return;
                }
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.as_mut().await;
                }
                Ok(()) = tokens.changed() => if seat.is_revoked() {
                    // What is being answered may come to its end, and streams say why they do.
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(GONE_WITHIN, connection.as_mut()).await;
                    return;
                },
            }
        };
        if let Err(error) = done {
            debug!(%error, "connection ended");
        }
    }
}
