//! The daemon's log: lines on standard error, filtered by `SODIUMD_LOG`.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. `SODIUMD_LOG=debug` says why, `SODIUMD_LOG=info,sodiumd::store=trace` says it of one module, and
/// `SODIUMD_LOG_FORMAT=json` says it to programs.
pub fn start() {
    let asked = std::env::var("SODIUMD_LOG").unwrap_or_default();
    let filter = asked.parse::<Targets>().ok().filter(|_| !asked.is_empty());
    let refused = filter.is_none() && !asked.is_empty();
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let json = std::env::var("SODIUMD_LOG_FORMAT").is_ok_and(|format| format == "json");
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    // Fails only if somebody logs already, which then is what is wanted.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if refused {
        tracing::warn!(%asked, "SODIUMD_LOG is no filter, such as debug or info,sodiumd::store=trace; info is taken");
    }
}
