//! Running a program inside what runs: the order for the process that does it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::launch::environment;
use super::{Supervisor, ledger};
use crate::runtime::Enter;
use crate::{DriverError, ExecOrder};
use sodium_model::Iid;
use sodium_shim::exec::FILES;
use sodium_shim::exec::order::{Confined, ExecOrder as Written};
use sodium_shim::protocol::Phase;
use sodium_sys::path;

/// Programs so far; each has files of its own.
static COUNT: AtomicU64 = AtomicU64::new(0);

impl Supervisor {
    pub(crate) fn run_inside(
        &self,
        iid: &Iid,
        order: &ExecOrder<'_>,
    ) -> Result<UnixStream, DriverError> {
        let shim = |source| DriverError::Shim { stage: "exec", source };
        let (_, state) = self.client(iid).map_err(shim)?;
        let pid = state.pid.filter(|_| state.phase == Phase::Running);
        let pid = pid.ok_or_else(|| DriverError::Absent { iid: iid.to_string() })?;
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let stem = self.host.run_dir(iid).join(format!("exec-{}-{n}", std::process::id()));
        let written = self.written(iid, order, pid, &stem)?;
        let path = stem.with_extension(FILES[0]);
        write_private(&path, &written)?;
        let program = self.host.paths.shim.clone();
        let sent = self.host.forks.order_exec(&path);
        sent.map_err(|source| DriverError::Spawn { program, source })
    }

    fn written(
        &self,
        iid: &Iid,
        order: &ExecOrder<'_>,
        pid: u32,
        stem: &Path,
    ) -> Result<Written, DriverError> {
        let workspace = self.host.workspaces.path(order.uid);
        let volume = self.host.workspaces.volumes.find(order.uid);
        let tmp = volume.map(|volume| volume.tmp());
        let view = self.runtime.view_of(&self.host, iid, &workspace, tmp.as_deref());
        let mut env = environment(order.name, order.spec, &view);
        let work_dir = order.work_dir.map_or_else(|| view.home.clone(), PathBuf::from);
        // As it was asked for, though a link may lead there.
        env.insert("PWD".to_owned(), work_dir.to_string_lossy().into_owned());
        env.extend(order.env.clone());
        let open_files = ledger::open_files(&order.spec.limits).map(|(value, _)| value);
        let confined = Confined {
            user: sodium_sys::is_root().then_some((order.host_uid, order.host_uid)),
            group: self.host.group(iid).clone(),
            open_files_max: open_files,
        };
        let entered = self.runtime.enter(Enter {
            host: &self.host,
            iid,
            pid,
            order,
            view: &view,
            env,
            work_dir: &work_dir,
            confined,
            stem,
        })?;
        Ok(Written {
            args: order.command.to_vec(),
            env: entered.env.into_iter().collect(),
            work_dir,
            tty: order.tty,
            helpers: self.host.family(iid).helpers.clone(),
            way: entered.way,
        })
    }
}

/// Environments hold secrets.
pub(crate) fn write_private(path: &Path, value: &impl Serialize) -> Result<(), DriverError> {
    let json = serde_json::to_vec(value).expect("an order has string keys");
    let failed = |source| DriverError::Host { stage: "write order", source };
    path::write_private(path, &json).map_err(failed)
}
