//! The daemon's log: lines on standard error, filtered by `SODIUMD_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `SODIUMD_LOG=debug` says why, `SODIUMD_LOG_FORMAT=json` says it to programs.
pub fn start() {
    let filter = EnvFilter::try_from_env("SODIUMD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let json = std::env::var("SODIUMD_LOG_FORMAT").is_ok_and(|format| format == "json");
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // Fails only if somebody logs already, which then is what is wanted.
    let _ = if json { log.json().try_init() } else { log.try_init() };
}
