//! Running a program inside what runs: the order for the process that does it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::begin::environment;
use super::{Bundle, SEARCH_PATH, Shimmed, ledger};
use crate::process::View;
use crate::shown::MADE;
use crate::{DriverError, ExecOrder, process, runsc};
use sodium_model::{Iid, Network};
use sodium_shim::exec::order::{Confined, ExecOrder as Written, OfRoom, Way};
use sodium_shim::exec::{FILES, PID};
use sodium_shim::launch::Confinement;
use sodium_shim::protocol::Phase;
use sodium_sys::path;

/// Programs so far; each has files of its own.
static COUNT: AtomicU64 = AtomicU64::new(0);

impl Shimmed {
    pub(super) fn run_inside(
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
        let in_room = matches!(self.bundle, Bundle::Process) && self.has_room(iid);
        let view = match self.bundle {
            Bundle::Process if !in_room => {
                View::on_host(&workspace, tmp.as_deref(), &self.host.paths.run.join(MADE))
            }
            Bundle::Process | Bundle::Bubblewrap(_) | Bundle::Gvisor(_) => View::inside(),
        };
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
        let way = match &self.bundle {
            Bundle::Bubblewrap(_) => Way::Namespaces {
                pid,
                confined,
                shares_network: order.spec.network == Network::Host,
            },
            Bundle::Process => Way::Beside {
                confined,
                read_only: process::read_only(&view.init),
                writable: process::writable(view.writable(), in_room),
                without_tcp: !in_room && order.spec.network == Network::None,
                room: in_room
                    .then_some(OfRoom { pid, shares_network: order.spec.network == Network::Host }),
            },
            Bundle::Gvisor(gvisor) => {
                let (process, pid_file) =
                    (stem.with_extension(FILES[1]), stem.with_extension(FILES[2]));
                let about =
                    runsc::exec_process(order.command, &env, &work_dir, order.tty.is_some());
                write_private(&process, &about)?;
                // runsc's own; the program's is in the file.
                env = [("PATH".to_owned(), SEARCH_PATH.to_owned())].into();
                let (own, state) =
                    (self.host.known_as(iid), self.host.run_dir(iid).join(runsc::STATE));
                Way::Gvisor {
                    program: gvisor.runsc()?.program.to_string_lossy().into_owned(),
                    args: runsc::exec_args(&state, &process, &pid_file, &own),
                    kill_args: runsc::kill_args(&state, PID, &own),
                    pid_file,
                }
            }
        };
        let (args, env) = (order.command.to_vec(), env.into_iter().collect());
        let helpers = self.host.family(iid).helpers.clone();
        Ok(Written { args, env, work_dir, tty: order.tty, helpers, way })
    }

    /// Whether a plain process has a room: one that an earlier release started has none.
    fn has_room(&self, iid: &Iid) -> bool {
        let launch = self.host.launch(iid);
        launch.is_some_and(|launch| {
            matches!(launch.confinement, Confinement::Itself { room: Some(_), .. })
        })
    }
}

/// Environments hold secrets.
fn write_private(path: &Path, value: &impl Serialize) -> Result<(), DriverError> {
    let json = serde_json::to_vec(value).expect("an order has string keys");
    let failed = |source| DriverError::Host { stage: "write order", source };
    path::write_private(path, &json).map_err(failed)
}
