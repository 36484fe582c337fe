//! What a new text of config.json changes while the daemon runs, and what waits for the next start.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use crate::api::Api;
use crate::config::{self, Config};
use crate::daemon;
use crate::live::Live;
use crate::reconcile::World;
use sodium_model::Span;
use sodium_model::admission::Rules;
use sodium_sys::error::chain;

/// See the module.
pub(super) struct Reload {
    pub path: PathBuf,
    pub started_with: Config,
    pub api: Arc<Api>,
    pub world: Arc<World>,
    pub undo: Arc<Live<Span>>,
    /// Whether the configuration that was read last has a token in it.
    pub has_token: bool,
}

impl Reload {
    /// Reads the file and the images again. With a fault in it, everything stays as it was.
    pub(super) fn reload(&mut self) {
        let next = match config::load(&self.path) {
            Ok(next) => next,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "config reload failed; keeping the current configuration"
                );
                if !self.has_token {
                    // That of the state directory is no part of it, and may be replaced since others know it.
                    self.take_token(None);
                }
                return;
            }
        };
        self.has_token = next.token.is_some();
        self.take_token(next.token.as_deref());
        self.api.bounds.set(next.bounds.clone());
        self.take_rules(daemon::rules(&next));
        self.world.idle_freeze.set(next.gvisor_idle_freeze);
        self.undo.set(next.workspace_undo);
        if let Some(host) = &self.world.host {
            host.keep_console_bytes(next.console_bytes);
        }
        // A spec that was at fault by the old rules may be none by these.
        self.api.watch.reread();
        let waiting = waiting(&self.started_with, &next);
        if waiting.is_empty() {
            info!("config reloaded");
        } else {
            let keys = waiting.join(", ");
            warn!(keys, "config reloaded; restart required for these keys");
        }
    }

    fn take_token(&self, configured: Option<&str>) {
        match daemon::token(configured, &self.started_with.state_path) {
            Ok((token, _)) => {
                if self.api.auth.change(token) {
                    info!("token replaced; what the one before has opened is closed");
                }
            }
            Err(error) => warn!(error = format!("{error:#}"), "the token stays as it was"),
        }
    }

    /// From now on these hold, for what is declared already too.
    fn take_rules(&self, rules: Rules) {
        let changed = self.api.rules.get().allowed != rules.allowed;
        self.world.store.bound(rules.allowed.totals);
        self.api.rules.set(rules);
        if changed {
            for name in self.world.store.snapshot().sandboxes.keys() {
                self.api.handle.look_at(name);
            }
        }
    }
}

/// Keys whose new value has no effect yet. Every key is either here or above.
fn waiting(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        host,
        port,
        token: _,
        isolation: _,
        allowed: _,
        sandboxes_path,
        state_path,
        run_path,
        desired_path,
        images_path: _,
        store,
        default_limits: _,
        ids,
        gvisor_program,
        gvisor_platform,
        gvisor_idle_freeze: _,
        gvisor_timer_slack,
        disk,
        bounds: _,
        console_bytes: _,
        workspace_undo: _,
    } = old;
    let changed = [
        ("host", *host != new.host),
        ("port", *port != new.port),
        ("sandboxes_path", *sandboxes_path != new.sandboxes_path),
        ("state_path", *state_path != new.state_path),
        ("run_path", *run_path != new.run_path),
        ("desired_path", *desired_path != new.desired_path),
        ("store", *store != new.store),
        ("gvisor.program", *gvisor_program != new.gvisor_program),
        ("gvisor.platform", *gvisor_platform != new.gvisor_platform),
        ("gvisor.timer_slack", *gvisor_timer_slack != new.gvisor_timer_slack),
        ("disk", *disk != new.disk),
        ("uids", *ids != new.ids),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}
