//! A workload that was started ahead, and becomes somebody's.

use super::{Ending, Life, Memory, Pace, Workload};
use crate::claim::{self, Claim};
use crate::launch::Launch;
use crate::spool::Writer;
use sodium_sys::{SysError, clock};

impl Workload {
    /// What was started ahead becomes somebody's: from here on it is as if it had just been started.
    pub(crate) fn claim(&mut self) -> Result<(), SysError> {
        if !self.launch.warm || self.life != Life::Running {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(SysError { call: "claim".to_owned(), source });
        }
        let Claim { launch, trees, order } = claim::read()?;
        trees.iter().try_for_each(claim::attach)?;
        self.spool = Some(open_spool(&launch)?);
        let (now, wall) = (clock::boot_ms(), clock::wall_ms());
        self.ending = Ending::of(launch.timeout_ms, now);
        self.pace = launch.output_bytes_per_second.map(Pace::new);
        self.before = launch.group.usage();
        self.memory = Memory::watch(&launch.group);
        (self.launched_boot_ms, self.launched_at_ms) = (now, wall);
        self.started_at_ms = Some(wall);
        self.secret = Some(order.secret.clone());
        self.launch = launch;
        self.console_from = self.spool_next();
        self.stdin.put_first(&order.encode());
        Ok(())
    }

    /// Whether this is the program of the guest saying that it could not become the workload. It is the
    /// first to speak, or silent for ever.
    pub(super) fn heard_secret(&mut self, count: usize) -> bool {
        let Some(secret) = self.secret.take() else { return false };
        let said = self.buffer[..count].strip_prefix(secret.as_bytes());
        if let Some(message) = said {
            let message = String::from_utf8_lossy(message).into_owned();
            self.failed = Some(("exec".to_owned(), message));
            return true;
        }
        false
    }
}

pub(super) fn open_spool(launch: &Launch) -> Result<Writer, SysError> {
    Writer::open(&launch.spool_dir, launch.spool_bytes_max)
        .map_err(|source| SysError::io("open spool", &launch.spool_dir, source))
}
