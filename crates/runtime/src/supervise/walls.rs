//! Walls, one by one: what an isolation promises, what puts it up, and what the kernel says of the process that runs.
//! Not how they are put up: this looks from outside, after the start, and believes nothing that was asked for.
//!
//! ```text
//!   Promise (isolation, network, user) + Seen (/proc of the first process, and of our own) --> WallStatus, each
//! ```

use super::Supervisor;
use crate::runtime::Runtime;
use crate::{Behind, Driver};
use sodium_model::{Isolation, Network, Wall, WallStatus, WallVerdict};
use sodium_sys::confined::{self, Namespace, Privileges, Root};
use sodium_sys::landlock;

const NAMESPACES: [(Wall, Namespace); 7] = [
    (Wall::UserNamespace, Namespace::User),
    (Wall::MountNamespace, Namespace::Mount),
    (Wall::PidNamespace, Namespace::Pid),
    (Wall::IpcNamespace, Namespace::Ipc),
    (Wall::UtsNamespace, Namespace::Uts),
    (Wall::NetworkNamespace, Namespace::Network),
    (Wall::CgroupNamespace, Namespace::Cgroup),
];

/// Those that plain processes have to themselves.
const OF_PROCESSES: [Wall; 4] =
    [Wall::MountNamespace, Wall::PidNamespace, Wall::IpcNamespace, Wall::NetworkNamespace];

/// Whom gVisor of 2022 has its kernel run as, in all its sandboxes.
const NOBODY: u32 = 65_534;

const NOT_ROOT: &str = "the daemon does not run as root and cannot give it a user of its own";
const NO_NAMESPACE: &str = "the daemon does not run as root and makes none for plain processes";
const UNREADABLE: &str = "/proc does not say";

/// What is promised of one sandbox.
#[derive(Debug, Clone)]
struct Promise {
    isolation: Isolation,
    behind: Behind,
    /// Whether the daemon runs as root.
    is_root: bool,
    /// The kernel between it and the host's, if it is to have one.
    kernel: String,
}

/// One process, as the kernel has it.
#[derive(Debug, Clone, Copy)]
struct Standing {
    namespaces: [Option<u64>; NAMESPACES.len()],
    privileges: Privileges,
}

/// Everything that is read, before anything of it is judged.
#[derive(Debug, Clone, Copy)]
struct Seen {
    theirs: Standing,
    /// What is not another one than this is the host's.
    ours: Standing,
    root: Option<Root>,
    is_gvisor: bool,
    landlock_abi: i64,
}

impl Standing {
    /// Privileges last: if they can be read, it was there for the rest, too.
    fn of(pid: u32) -> Option<Self> {
        let namespaces = NAMESPACES.map(|(_, kind)| kind.of(pid));
        Some(Self { namespaces, privileges: Privileges::of(pid)? })
    }
}

impl Seen {
    /// `None`: it has ended.
    fn look(pid: u32, runtime: &dyn Runtime) -> Option<Self> {
        let root = Root::of(pid);
        let is_gvisor = runtime.is_kernel(pid);
        let (theirs, ours) = (Standing::of(pid)?, Standing::of(std::process::id())?);
        Some(Self { theirs, ours, root, is_gvisor, landlock_abi: landlock::abi() })
    }

    /// Whether a namespace is its own. `None`: the kernel does not say.
    fn is_own(&self, wall: Wall) -> Option<bool> {
        let index = NAMESPACES.iter().position(|(one, _)| *one == wall)?;
        let (theirs, ours) = (self.theirs.namespaces[index]?, self.ours.namespaces[index]?);
        Some(theirs != ours)
    }
}

impl Supervisor {
    fn promise(&self, behind: Behind) -> Promise {
        let kernel = self.runtime.kernel();
        Promise { isolation: self.isolation(), behind, is_root: sodium_sys::is_root(), kernel }
    }

    pub(crate) fn look_at_walls(&self, pid: u32, behind: Behind) -> Vec<WallStatus> {
        let seen = Seen::look(pid, &*self.runtime);
        seen.map(|seen| statuses(&self.promise(behind), &seen)).unwrap_or_default()
    }

    pub(crate) fn foresee_walls(&self, behind: Behind) -> Vec<WallStatus> {
        missing(&self.promise(behind), landlock::abi())
    }
}

impl Promise {
    /// Whether a namespace is to be its own; or why not.
    fn of(&self, wall: Wall) -> Result<(), &'static str> {
        if wall == Wall::NetworkNamespace && self.behind.network == Network::Host {
            return Err("the spec asks for the host's");
        }
        match self.isolation {
            Isolation::Gvisor if matches!(wall, Wall::PidNamespace | Wall::CgroupNamespace) => {
                Err("gVisor's own process shares it; its guest sees gVisor's alone")
            }
            Isolation::Gvisor | Isolation::Bubblewrap => Ok(()),
            Isolation::Process if OF_PROCESSES.contains(&wall) => Ok(()),
            Isolation::Process => Err("isolation process has none of its own"),
        }
    }

    /// Whether it is in a network with others, whose abstract sockets nothing but Landlock keeps away.
    fn shares_sockets(&self) -> bool {
        let has_own = self.isolation != Isolation::Process || self.is_root;
        self.behind.network == Network::Host || !has_own
    }

    /// Of bubblewrap's nothing else is Landlock's.
    fn wants_landlock(&self) -> bool {
        match self.isolation {
            Isolation::Process => true,
            Isolation::Bubblewrap => self.shares_sockets(),
            Isolation::Gvisor => false,
        }
    }

    /// Who makes namespaces.
    fn maker(&self) -> &'static str {
        match self.isolation {
            Isolation::Gvisor => "runsc",
            Isolation::Bubblewrap => "bubblewrap",
            Isolation::Process => "sodium-shim",
        }
    }
}

/// What became of each. Pure.
fn statuses(promise: &Promise, seen: &Seen) -> Vec<WallStatus> {
    let kernel = (promise.isolation == Isolation::Gvisor).then(|| kernel(promise, seen));
    let landlock = promise.wants_landlock().then(|| landlock_status(promise, seen.landlock_abi));
    let namespaces = NAMESPACES.iter().map(|(wall, _)| namespace(*wall, promise, seen));
    let privileges =
        [user(promise, seen), capabilities(promise, seen), no_new_privs(seen), filter(seen)];
    let rootfs = rootfs(promise, seen);
    kernel.into_iter().chain(namespaces).chain(privileges).chain(landlock).chain([rootfs]).collect()
}

/// Those that are known to be missing before any start. Pure.
fn missing(promise: &Promise, landlock_abi: i64) -> Vec<WallStatus> {
    let landlock = promise.wants_landlock().then(|| landlock_status(promise, landlock_abi));
    let landlock = landlock.filter(WallStatus::is_open);
    if promise.isolation != Isolation::Process {
        return landlock.into_iter().collect();
    }
    let absent = |wall, why: &str| promised(wall, "own", None, Err(why.to_owned()));
    let namespaces = OF_PROCESSES.into_iter().filter(|wall| promise.of(*wall).is_ok());
    let of_root = namespaces
        .map(|wall| absent(wall, NO_NAMESPACE))
        .chain([absent(Wall::User, NOT_ROOT)])
        .filter(|_| !promise.is_root);
    of_root.chain(landlock).collect()
}

/// What puts a wall up that stands; or why it does not.
type Stands = Result<String, String>;

fn promised(wall: Wall, requested: &str, effective: Option<String>, stands: Stands) -> WallStatus {
    let verdict = if stands.is_ok() { WallVerdict::Enforced } else { WallVerdict::NotEnforced };
    let (mechanism, reason) = match stands {
        Ok(mechanism) => (mechanism, String::new()),
        Err(reason) => (String::new(), reason),
    };
    WallStatus { wall, requested: requested.to_owned(), mechanism, effective, verdict, reason }
}

fn unpromised(wall: Wall, effective: Option<String>, reason: &str) -> WallStatus {
    WallStatus {
        wall,
        requested: "host".to_owned(),
        mechanism: String::new(),
        effective,
        verdict: WallVerdict::None,
        reason: reason.to_owned(),
    }
}

fn kernel(promise: &Promise, seen: &Seen) -> WallStatus {
    let found = if seen.is_gvisor { "gVisor's" } else { "host" };
    let stands = match seen.is_gvisor {
        true => Ok(promise.kernel.clone()),
        false => Err("the process that runs is not gVisor's kernel".to_owned()),
    };
    promised(Wall::Kernel, "own", Some(found.to_owned()), stands)
}

fn namespace(wall: Wall, promise: &Promise, seen: &Seen) -> WallStatus {
    let is_own = seen.is_own(wall);
    let effective = is_own.map(|own| if own { "own" } else { "host" }.to_owned());
    if let Err(reason) = promise.of(wall) {
        return unpromised(wall, effective, reason);
    }
    let stands = match is_own {
        Some(true) => Ok(promise.maker().to_owned()),
        Some(false) if promise.isolation == Isolation::Process && !promise.is_root => {
            Err(NO_NAMESPACE.to_owned())
        }
        Some(false) => Err("the kernel shows the host's".to_owned()),
        None => Err(UNREADABLE.to_owned()),
    };
    promised(wall, "own", effective, stands)
}

fn user(promise: &Promise, seen: &Seen) -> WallStatus {
    let read = &seen.theirs.privileges;
    let id = promise.behind.host_uid;
    let effective = Some(who(read));
    let changed = || Ok("setuid".to_owned());
    let stands = match promise.isolation {
        Isolation::Bubblewrap if !promise.is_root => {
            let why = "the daemon does not run as root: namespaces alone keep its sandboxes apart";
            return unpromised(Wall::User, effective, why);
        }
        Isolation::Process if !promise.is_root => Err(NOT_ROOT.to_owned()),
        // Its guest's user is another one than its kernel's, and both are the sandbox's own.
        Isolation::Gvisor => {
            let [_, ours, ..] = seen.ours.privileges.uids;
            let is_other = !read.uids.contains(&ours) && !read.uids.contains(&0);
            if is_other { changed() } else { Err("it is the daemon's own".to_owned()) }
        }
        Isolation::Bubblewrap | Isolation::Process if read.is_only(id) => changed(),
        Isolation::Bubblewrap | Isolation::Process => {
            Err(format!("it is not user and group {id} alone"))
        }
    };
    let mut status = promised(Wall::User, "own", effective, stands);
    if status.reason.is_empty() && read.uids == [NOBODY; 4] {
        "gVisor of 2022 runs its kernel as nobody in all sandboxes".clone_into(&mut status.reason);
    }
    status
}

/// `uid 200007`, with whatever else it could be.
fn who(read: &Privileges) -> String {
    let ids = |kind: &str, ids: [u32; 4]| match ids {
        [real, effective, saved, files] if [effective, saved, files] == [real; 3] => {
            format!("{kind} {real}")
        }
        _ => format!("{kind}s {ids:?}"),
    };
    let uids = ids("uid", read.uids);
    match read.group_count {
        0 if read.uids == read.gids => uids,
        0 => format!("{uids}, {}", ids("gid", read.gids)),
        count => format!("{uids}, {}, {count} supplementary groups", ids("gid", read.gids)),
    }
}

fn capabilities(promise: &Promise, seen: &Seen) -> WallStatus {
    let read = &seen.theirs.privileges;
    let apart = seen.is_own(Wall::UserNamespace) == Some(true);
    let names = match read.held {
        0 => "none".to_owned(),
        held => confined::capability_names(held),
    };
    // They are good for nothing in anybody else's namespaces.
    let gvisors = promise.isolation == Isolation::Gvisor && apart;
    let effective = match (apart, read.held, read.bounding) {
        (true, 0, _) | (false, 0, 0) => names,
        (false, 0, _) => format!("{names}; the bounding set is not empty"),
        (true, ..) => format!("{names}, in its own user namespace"),
        (false, ..) => format!("{names}, on the host"),
    };
    let stands = match (read.held, gvisors) {
        (0, _) => Ok("capset".to_owned()),
        (_, true) => Ok("user namespace".to_owned()),
        (_, false) => Err("it holds some".to_owned()),
    };
    promised(Wall::Capabilities, "none", Some(effective), stands)
}

fn no_new_privs(seen: &Seen) -> WallStatus {
    let is_set = seen.theirs.privileges.no_new_privs;
    let stands = match is_set {
        true => Ok("prctl".to_owned()),
        false => Err("a program that it runs could be given more than it has".to_owned()),
    };
    let effective = if is_set { "set" } else { "not set" };
    promised(Wall::NoNewPrivs, "set", Some(effective.to_owned()), stands)
}

fn filter(seen: &Seen) -> WallStatus {
    let (theirs, ours) = (&seen.theirs.privileges, &seen.ours.privileges);
    let own = theirs.filter_count.zip(ours.filter_count);
    let effective = match (theirs.has_filter, own) {
        (false, _) => "none".to_owned(),
        (true, Some((all, inherited))) => format!("{} of its own", all.saturating_sub(inherited)),
        (true, None) => "set".to_owned(),
    };
    let stands = match theirs.is_filtered_beyond(ours) {
        true => Ok("seccomp".to_owned()),
        false => Err("it is under no filter that the daemon is not under itself".to_owned()),
    };
    promised(Wall::Filter, "set", Some(effective), stands)
}

/// Known from what a start does: it fails where the kernel has Landlock and does not apply it.
fn landlock_status(promise: &Promise, abi: i64) -> WallStatus {
    let why = match (abi, promise.shares_sockets()) {
        (..=0, _) => {
            "this kernel has no Landlock; hint: CONFIG_SECURITY_LANDLOCK, and lsm= with landlock"
        }
        (..landlock::SCOPES_SINCE, true) => {
            "this kernel's Landlock does not keep the host's abstract sockets away; hint: Linux 6.12"
        }
        _ => "",
    };
    if !why.is_empty() {
        return promised(Wall::Landlock, "set", None, Err(why.to_owned()));
    }
    let mut status = promised(Wall::Landlock, "set", None, Ok(format!("Landlock, ABI {abi}")));
    "applied by the start, which fails without; the kernel shows nobody who is under it"
        .clone_into(&mut status.reason);
    status
}

fn rootfs(promise: &Promise, seen: &Seen) -> WallStatus {
    let effective = seen.root.map(|root| {
        let whose = if root.is_ours { "host" } else { "own" };
        let how = if root.is_read_only { "read-only" } else { "writable" };
        format!("{whose}, {how}")
    });
    let is_host = seen.root.is_some_and(|root| root.is_ours);
    match promise.isolation {
        Isolation::Process => {
            unpromised(Wall::Rootfs, effective, "it is the host's, as far as Landlock lets it")
        }
        // What the guest sees is gVisor's to tell.
        Isolation::Gvisor if seen.root.is_some() && !is_host => {
            let mut status =
                promised(Wall::Rootfs, "read-only", effective, Ok("gVisor's kernel".to_owned()));
            "the guest's is in the bundle, and not read back; this is of gVisor's own process"
                .clone_into(&mut status.reason);
            status
        }
        Isolation::Bubblewrap if seen.root.is_some_and(|root| root.is_read_only) && !is_host => {
            promised(Wall::Rootfs, "read-only", effective, Ok("bubblewrap".to_owned()))
        }
        Isolation::Gvisor | Isolation::Bubblewrap => {
            let why = if is_host { "it has the host's root" } else { "it can be written to" };
            let why = if seen.root.is_none() { UNREADABLE } else { why };
            promised(Wall::Rootfs, "read-only", effective, Err(why.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: [Option<u64>; 7] = [Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(7)];
    const OWN: [Option<u64>; 7] =
        [Some(11), Some(12), Some(13), Some(14), Some(15), Some(16), Some(17)];
    const ID: u32 = 200_007;

    fn privileges(id: u32) -> Privileges {
        Privileges {
            uids: [id; 4],
            gids: [id; 4],
            group_count: 0,
            held: 0,
            bounding: 0,
            no_new_privs: true,
            filter_count: Some(1),
            has_filter: true,
        }
    }

    /// A sandbox as it should be, beside a daemon that runs as root.
    fn seen(namespaces: [Option<u64>; 7]) -> Seen {
        let daemon = Privileges {
            held: u64::MAX,
            no_new_privs: false,
            filter_count: Some(0),
            has_filter: false,
            ..privileges(0)
        };
        Seen {
            theirs: Standing { namespaces, privileges: privileges(ID) },
            ours: Standing { namespaces: HOST, privileges: daemon },
            root: Some(Root { is_ours: false, is_read_only: true }),
            is_gvisor: true,
            landlock_abi: 7,
        }
    }

    fn promise(isolation: Isolation) -> Promise {
        let behind = Behind { host_uid: ID, network: Network::None };
        Promise { isolation, behind, is_root: true, kernel: "gVisor systrap".to_owned() }
    }

    /// The walls that are promised and do not stand.
    #[track_caller]
    fn check(promise: &Promise, seen: &Seen, want: &[Wall]) {
        let all = statuses(promise, seen);
        let open: Vec<&WallStatus> = all.iter().filter(|one| one.is_open()).collect();
        assert_eq!(open.iter().map(|one| one.wall).collect::<Vec<_>>(), want, "{all:#?}");
        assert!(open.iter().all(|one| !one.reason.is_empty()), "{all:#?}");
    }

    #[test]
    fn a_sandbox_as_it_should_be_has_every_wall() {
        for isolation in [Isolation::Bubblewrap, Isolation::Gvisor, Isolation::Process] {
            check(&promise(isolation), &seen(OWN), &[]);
        }
        let all = statuses(&promise(Isolation::Gvisor), &seen(OWN));
        let kernel = &all[0];
        assert_eq!((kernel.wall, kernel.mechanism.as_str()), (Wall::Kernel, "gVisor systrap"));
        assert!(all.iter().all(|one| one.wall != Wall::Landlock));
        let user = all.iter().find(|one| one.wall == Wall::User).unwrap();
        assert_eq!(user.effective.as_deref(), Some("uid 200007"));
    }

    #[test]
    fn each_namespace_that_is_the_hosts_is_named() {
        for (index, (wall, _)) in NAMESPACES.into_iter().enumerate() {
            let mut shared = OWN;
            shared[index] = HOST[index];
            check(&promise(Isolation::Bubblewrap), &seen(shared), &[wall]);
            shared[index] = None;
            check(&promise(Isolation::Bubblewrap), &seen(shared), &[wall]);
        }
    }

    #[test]
    fn a_plain_process_is_promised_those_that_it_is_given() {
        let [mount, pid, ipc, network] = OF_PROCESSES;
        check(&promise(Isolation::Process), &seen(HOST), &[mount, pid, ipc, network]);
        let mut open = promise(Isolation::Process);
        open.behind.network = Network::Host;
        check(&open, &seen(HOST), &[mount, pid, ipc]);
    }

    #[test]
    fn what_gvisors_own_process_shares_is_none_of_its_guests() {
        let mut shared = OWN;
        (shared[2], shared[6]) = (HOST[2], HOST[6]);
        check(&promise(Isolation::Gvisor), &seen(shared), &[]);
        let other = Seen { is_gvisor: false, ..seen(OWN) };
        check(&promise(Isolation::Gvisor), &other, &[Wall::Kernel]);
    }

    #[test]
    fn a_spec_that_asks_for_the_hosts_network_is_promised_no_other() {
        let mut shared = OWN;
        shared[5] = HOST[5];
        let mut open = promise(Isolation::Bubblewrap);
        open.behind.network = Network::Host;
        check(&open, &seen(shared), &[]);
        let all = statuses(&open, &seen(shared));
        let network = all.iter().find(|one| one.wall == Wall::NetworkNamespace).unwrap();
        assert_eq!(
            (network.verdict, network.effective.as_deref()),
            (WallVerdict::None, Some("host"))
        );
    }

    #[test]
    fn whoever_it_is_beside_itself_is_named() {
        let with = |change: &dyn Fn(&mut Privileges)| {
            let mut seen = seen(OWN);
            change(&mut seen.theirs.privileges);
            seen
        };
        let bubblewrap = promise(Isolation::Bubblewrap);
        let another = with(&|read| *read = privileges(ID + 1));
        check(&bubblewrap, &another, &[Wall::User]);
        check(&bubblewrap, &with(&|read| read.uids[2] = 0), &[Wall::User]);
        check(&bubblewrap, &with(&|read| read.group_count = 1), &[Wall::User]);
        check(&bubblewrap, &with(&|read| read.held = 1), &[Wall::Capabilities]);
        check(&bubblewrap, &with(&|read| read.no_new_privs = false), &[Wall::NoNewPrivs]);
        check(&bubblewrap, &with(&|read| read.has_filter = false), &[Wall::Filter]);
        // gVisor's kernel has some, within its user namespace; its user is another one.
        let sentry =
            with(&|read| *read = Privileges { held: 1 << 19, ..privileges(1_000_200_007) });
        check(&promise(Isolation::Gvisor), &sentry, &[]);
        let mut shared = sentry;
        shared.theirs.namespaces[0] = HOST[0];
        let open = [Wall::UserNamespace, Wall::Capabilities];
        check(&promise(Isolation::Gvisor), &shared, &open);
        let root = with(&|read| *read = privileges(0));
        check(&promise(Isolation::Gvisor), &root, &[Wall::User]);
    }

    #[test]
    fn the_daemons_own_filter_is_none_of_the_sandboxs() {
        let mut seen = seen(OWN);
        seen.ours.privileges =
            Privileges { filter_count: Some(1), has_filter: true, ..seen.ours.privileges };
        check(&promise(Isolation::Process), &seen, &[Wall::Filter]);
        seen.theirs.privileges.filter_count = Some(2);
        check(&promise(Isolation::Process), &seen, &[]);
    }

    #[test]
    fn a_root_that_is_the_hosts_or_can_be_written_to_is_named() {
        for isolation in [Isolation::Bubblewrap, Isolation::Gvisor] {
            for root in [None, Some(Root { is_ours: true, is_read_only: true })] {
                check(&promise(isolation), &Seen { root, ..seen(OWN) }, &[Wall::Rootfs]);
            }
        }
        let root = Some(Root { is_ours: false, is_read_only: false });
        check(&promise(Isolation::Bubblewrap), &Seen { root, ..seen(OWN) }, &[Wall::Rootfs]);
        let ours = Some(Root { is_ours: true, is_read_only: false });
        check(&promise(Isolation::Process), &Seen { root: ours, ..seen(OWN) }, &[]);
    }

    #[test]
    fn what_a_host_cannot_give_is_known_before_a_start() {
        let walls = |promise: &Promise, abi| {
            missing(promise, abi).into_iter().map(|one| one.wall).collect::<Vec<_>>()
        };
        let process = promise(Isolation::Process);
        assert!(walls(&process, 7).is_empty());
        assert_eq!(walls(&process, 0), [Wall::Landlock]);
        let mut rootless = Promise { is_root: false, ..process.clone() };
        let [mount, pid, ipc, network] = OF_PROCESSES;
        let all = [mount, pid, ipc, network, Wall::User, Wall::Landlock];
        assert_eq!(walls(&rootless, 0), all);
        check(&rootless, &seen(HOST), &all[..5]);
        rootless.behind.network = Network::Host;
        assert_eq!(walls(&rootless, 7), [mount, pid, ipc, Wall::User]);
        check(&process, &Seen { landlock_abi: 0, ..seen(OWN) }, &[Wall::Landlock]);
        // In the host's network nothing but Landlock stands before others' abstract sockets.
        let mut open = promise(Isolation::Bubblewrap);
        open.behind.network = Network::Host;
        assert_eq!((walls(&open, 5), walls(&open, 6)), (vec![Wall::Landlock], vec![]));
        let mut open = process;
        open.behind.network = Network::Host;
        assert_eq!((walls(&open, 5), walls(&open, 6)), (vec![Wall::Landlock], vec![]));
        // There, namespaces alone keep bubblewrap's sandboxes apart, and nothing else was promised.
        let rootless = Promise { is_root: false, ..promise(Isolation::Bubblewrap) };
        check(&rootless, &seen(OWN), &[]);
        assert!(walls(&rootless, 0).is_empty());
    }
}
