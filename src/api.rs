//! HTTP and WebSocket. Handlers translate: they write what people want into the store and wait for
//! what becomes of it. They decide nothing and touch no process.
//!
//! ```text
//!   seed.rs      the paths of the first daemon, unchanged       /health /sandboxes ...
//!   console.rs   its WebSocket                                  /console/ID
//!   upgrade.rs   every WebSocket, and what one may make us keep
//!   listen.rs    connections; seat.rs: how many; caller.rs: who asks; rate.rs: how often
//!   v1: sandboxes.rs apply.rs exec.rs explain.rs limits.rs power.rs checkpoint.rs watch.rs logs.rs events.rs files.rs openapi.rs
//!   audit.rs     who did what, where the store does not say so anyway
//!   list.rs      long answers, piece by piece
//! ```

mod apply;
mod audit;
mod auth;
mod caller;
mod checkpoint;
mod console;
mod declare;
mod drain;
mod error;
mod events;
mod exec;
mod explain;
mod files;
mod limits;
mod list;
mod listen;
mod logs;
mod metrics;
mod openapi;
mod power;
mod rate;
mod request;
mod sandboxes;
mod seat;
mod seed;
mod text;
mod upgrade;
mod wait;
mod watch;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use tokio_util::task::TaskTracker;

use crate::desired::watch::Watch;
use crate::live::Live;
use crate::reconcile::Handle;
use crate::store::{Core, Store, StoreError};
use sodium_api::{ErrorBody, ErrorCode};
use sodium_model::admission::Rules;
use sodium_model::{Bounds, Time};

use caller::Caller;
use rate::{Place, Places, Rate};
use seat::{Newcomers, Peers};

pub use audit::{Audit, audit};
pub use auth::{Auth, Tickets, secret};
pub use caller::Peer;
pub use console::{ClientFrame, read_frame};
pub use declare::Declare;
pub use error::ApiError;
pub use exec::first_frame;
pub use listen::{Doorway, serve};

/// Largest body accepted: a spec of the largest size allowed, as JSON with everything escaped.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What every handler works with.
pub struct Api {
    pub store: Store,
    pub handle: Handle,
    pub rules: Arc<Live<Rules>>,
    pub auth: Auth,
    pub tickets: Tickets,
    pub declare: Declare,
    pub watch: Watch,
    pub bounds: Live<Bounds>,
    pub load: Load,
    pub audit: Audit,
    pub about: About,
    pub clock: fn() -> u64,
    /// What was begun for a client and is done to its end, whether or not he waits for it.
    pub running: TaskTracker,
}

/// What is being served now.
#[derive(Debug, Default)]
pub struct Load {
    /// Connections that have shown a token or a ticket.
    connections: Places,
    peers: Peers,
    newcomers: Newcomers,
    streams: Streams,
    /// Those of the local socket take nobody's places, and nobody takes theirs.
    local_connections: Places,
    local_streams: Streams,
    /// Requests with the token or a ticket.
    by_peer: Rate<IpAddr>,
    by_token: Rate<()>,
    /// Requests with neither.
    strangers_by_peer: Rate<IpAddr>,
    strangers: Rate<()>,
    /// When a write was last tried for whoever asks, and whether it was taken.
    readiness: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

/// What is open for as long as its client likes, by kind.
#[derive(Debug, Default)]
struct Streams {
    watches: Places,
    followers: Places,
    consoles: Places,
    execs: Places,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Watch,
    Follower,
    Console,
    Exec,
}

/// What the daemon says of itself.
#[derive(Debug, Clone)]
pub struct About {
    pub version: &'static str,
    pub started_at_ms: u64,
    /// Where it listens; nowhere while another program has its port.
    pub address: Arc<Live<Option<SocketAddr>>>,
    pub boot_ms: fn() -> u64,
}

impl Api {
    fn now(&self) -> Time {
        Time((self.clock)())
    }

    /// Changes what is declared, in a transaction whose events say who asked for it.
    async fn write_for<T: Send + 'static>(
        &self,
        caller: &Caller,
        work: impl FnOnce(&mut Core) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let asker = caller.to_string();
        let work = move |core: &mut Core| {
            core.act_for(asker);
            work(core)
        };
        self.store.write(work).await
    }

    /// A place among those that follow something, for as long as what it is given to lasts.
    fn place(&self, kind: Kind, caller: &Caller) -> Result<Place, ApiError> {
        let (bounds, load) = (self.bounds.get(), &self.load);
        let streams = if caller.is_local() { &load.local_streams } else { &load.streams };
        let (places, max, what) = match kind {
            Kind::Watch => (&streams.watches, bounds.watches_max, "watches"),
            Kind::Follower => (&streams.followers, bounds.followers_max, "followers"),
            Kind::Console => (&streams.consoles, bounds.consoles_max, "consoles"),
            Kind::Exec => (&streams.execs, bounds.execs_max, "exec sockets"),
        };
        places.take(max).ok_or(ApiError::TooMany(what, max))
    }
}

type Shared = Arc<Api>;

/// Everything that can be asked. With `trusted` no token is needed: the local socket is its owner's, and root's.
pub fn router(api: Shared, trusted: bool) -> Router {
    let v1 = Router::new()
        .route("/sandboxes", get(sandboxes::list))
        .route(
            "/sandboxes/{name}",
            get(sandboxes::show).put(sandboxes::put).delete(sandboxes::delete),
        )
        .route("/sandboxes/{name}/explain", get(explain::explain))
        .route("/sandboxes/{name}/limits", get(limits::limits))
        .route("/sandboxes/{name}/logs", get(logs::logs))
        .route("/sandboxes/{name}/transfer", post(sandboxes::transfer))
        .route("/sandboxes/{name}/exec", post(exec::run))
        .route("/sandboxes/{name}/ticket", post(power::ticket))
        .route("/sandboxes/{name}/input", post(power::input))
        .route("/sandboxes/{name}/resize", post(power::resize))
        .route("/sandboxes/{name}/{verb}", post(power::verb))
        .route("/apply", post(apply::apply))
        .route("/plan", get(apply::plan))
        .route("/events", get(events::list))
        .route("/drain", post(drain::drain).delete(drain::undrain))
        .route("/files", get(files::list))
        .route("/files/confirm", post(files::confirm))
        .route("/images", get(files::images));
    let seed = Router::new()
        .route("/sandboxes", get(seed::list).post(seed::create))
        .route("/sandboxes/{id}", get(seed::show).delete(seed::delete))
        .route("/sandboxes/{id}/start", post(seed::start))
        .route("/sandboxes/{id}/stop", post(seed::stop))
        .route("/sandboxes/{id}/kill", post(seed::kill))
        .route("/sandboxes/{id}/input", post(seed::input));
    // What is sent along is only read of those who were let in.
    let guarded = Router::new()
        .nest("/v1", v1)
        .merge(seed)
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), request::gather))
        .layer(middleware::from_fn(auth::guard));
    // The console is let in by token or ticket, which may stand in its query.
    let console = Router::new()
        .route("/console", any(console::without_id))
        .route("/console/", any(console::without_id))
        .route("/console/{id}", any(console::console))
        .route("/v1/sandboxes/{name}/exec", get(exec::attach));
    let open = Router::new()
        .route("/health", get(seed::health))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(files::ready))
        .route("/v1/openapi.json", get(openapi::document));
    guarded
        .merge(console)
        .merge(open)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                Json(ErrorBody::new("Method not allowed", ErrorCode::MethodNotAllowed)),
            )
        })
        .layer(middleware::from_fn_with_state((Arc::clone(&api), trusted), caller::admit))
        .with_state(api)
}
