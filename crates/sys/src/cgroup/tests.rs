//! Both versions on trees of plain files, and whatever this machine has for real.

use std::process::{Command, Stdio};

use super::*;

const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd";

#[test]
fn hierarchies_are_found_by_their_mounts() {
    let root = Root::from_mounts(HYBRID);
    assert_eq!(root.unified, Some("/sys/fs/cgroup/unified".into()));
    assert_eq!(root.v1[&Controller::Cpuacct], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
    assert_eq!(root.v1.len(), 4);
    let pure = Root::from_mounts("29 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw");
    assert_eq!((pure.unified, pure.v1.len()), (Some("/sys/fs/cgroup".into()), 0));
    assert!(Root::from_mounts("").is_empty());
}

#[test]
fn cpus_are_chosen_in_turn_from_those_there_are() {
    let choose = |list, count, turn| choose_cpus(list, Cpus { count, turn });
    assert_eq!(choose("0-3\n", 1, 6), "2");
    assert_eq!(choose("0-1,6-7", 2, 3), "0,7");
    assert_eq!(choose("0-1", 9, 1), "0,1");
    assert_eq!((count_cpus("0-3,8\n"), count_cpus("\n")), (5, 0));
}

#[test]
fn io_is_limited_each_way_on_one_device() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &["memory.max", "cpu.max", "pids.max", "io.max"]);
    let group = Group {
        unified: Some(dir.path().to_owned()),
        unified_controllers: vec![Controller::Blkio],
        v1: BTreeMap::new(),
    };
    let io = Io { device: (7, 3), bytes_per_second: Some(1 << 20) };
    let applied = group.apply(&Limits { io: Some(io), ..Limits::default() }).unwrap();
    assert_eq!(read(dir.path(), "io.max"), "7:3 rbps=1048576 wbps=1048576");
    assert_eq!(applied[0].read_back, Some(1 << 20));
}

fn files(dir: &Path, names: &[&str]) {
    for name in names {
        fs::write(dir.join(name), "").unwrap();
    }
}

const LIMITS: Limits = Limits {
    memory_bytes: Some(64 << 20),
    cpu_percent: Some(50),
    cpus: None,
    pids: Some(20),
    io: None,
};

#[test]
fn version_2_gets_memory_swap_quota_and_count() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"];
    files(dir.path(), &names);
    let group = Group {
        unified: Some(dir.path().to_owned()),
        unified_controllers: vec![Controller::Memory, Controller::Cpu, Controller::Pids],
        v1: BTreeMap::new(),
    };
    let applied = group.apply(&LIMITS).unwrap();
    let texts: Vec<String> = names.iter().map(|name| read(dir.path(), name)).collect();
    assert_eq!(texts, ["67108864", "0", "1", "50000 100000", "20"]);
    let read_back: Vec<_> = applied.iter().map(|one| one.read_back).collect();
    assert_eq!(read_back, [Some(64 << 20), Some(50), Some(20)]);
}

#[test]
fn unlimited_is_said_in_each_versions_words() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), &["memory.max", "cpu.max", "pids.max"]);
    let group = Group {
        unified: Some(dir.path().to_owned()),
        unified_controllers: vec![Controller::Memory, Controller::Cpu, Controller::Pids],
        v1: BTreeMap::new(),
    };
    let applied = group.apply(&Limits::default()).unwrap();
    assert!(applied.iter().all(|one| one.read_back.is_none()));
    assert_eq!(read(dir.path(), "cpu.max"), "max 100000");
}

#[test]
fn usage_is_read_from_either_version() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    put(
        "cpu.stat",
        "usage_usec 1500\nuser_usec 1000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 70\n",
    );
    put("memory.current", "4096\n");
    put("memory.peak", "8192\n");
    put("memory.stat", "anon 1\ninactive_file 1024\n");
    put("memory.events", "low 0\noom 2\noom_kill 1\n");
    put("pids.current", "3\n");
    put("pids.peak", "5\n");
    put("pids.events", "max 7\n");
    put("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n7:0 rbytes=1 wbytes=2\n");
    let all = [Controller::Memory, Controller::Cpu, Controller::Pids, Controller::Blkio];
    let group = Group {
        unified: Some(dir.path().to_owned()),
        unified_controllers: all.to_vec(),
        v1: BTreeMap::new(),
    };
    let want = Usage {
        memory_bytes: 4096,
        memory_cache_bytes: 1024,
        memory_peak_bytes: 8192,
        oom_kills: 1,
        cpu_usec: 1500,
        throttled_usec: 70,
        periods: 9,
        throttled_periods: 4,
        pids: 3,
        pids_peak: 5,
        pids_refused: 7,
        read_bytes: 11,
        write_bytes: 22,
    };
    assert_eq!(group.usage(), want);
}

#[test]
fn groups_are_found_where_an_earlier_daemon_made_them() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, note) =
        (dir.path().join("old"), dir.path().join("new"), dir.path().join("cgroups.json"));
    for top in [&old, &new] {
        fs::create_dir(top).unwrap();
    }
    let started_in = |top: &Path| {
        let mut root = Root { unified: Some(top.to_owned()), ..Root::default() };
        root.remember(&note).unwrap();
        root
    };
    started_in(&old).family("a").create().unwrap();
    for _ in 0..2 {
        let root = started_in(&new);
        assert_eq!(root.names(), ["a"]);
        assert_eq!(root.group("a").unified, Some(old.join("a")));
        assert_eq!(root.group("b").unified, Some(new.join("b")));
    }
    started_in(&new).family("a").remove().unwrap();
    // Nothing is left there, and so nothing there is looked at any more.
    assert_eq!(started_in(&new).former, []);
    assert!(!old.exists());
}

#[test]
fn a_group_that_is_there_is_somebody_elses_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    for top in [&one, &two] {
        fs::create_dir(top).unwrap();
    }
    std::os::unix::fs::symlink(&one, dir.path().join("link")).unwrap();
    // One hierarchy with two controllers, by two paths; and another one.
    let root = Root {
        unified: Some(two.clone()),
        v1: [(Controller::Cpu, one.clone()), (Controller::Cpuacct, dir.path().join("link"))].into(),
        ..Root::default()
    };
    let family = root.family("a");
    family.create().unwrap();
    family.create().unwrap_err();
    assert!(one.join("a/workload").is_dir() && two.join("a/helpers").is_dir());
    // Half of it is there: the other half is not made.
    fs::remove_dir_all(two.join("a")).unwrap();
    family.create().unwrap_err();
    assert!(one.join("a").is_dir() && !two.join("a").exists());
}

#[test]
fn what_an_earlier_release_made_is_one_group() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root { unified: Some(dir.path().to_owned()), ..Root::default() };
    let made = dir.path().join("a");
    assert_eq!(root.family("a").workload.unified, Some(made.join("workload")));
    fs::create_dir(&made).unwrap();
    let family = root.family("a");
    assert_eq!(family.workload.unified, Some(made.clone()));
    assert!(family.helpers.is_nowhere());
    family.remove().unwrap();
    assert!(!made.exists());
}

#[test]
fn helpers_are_counted_beside_the_workload_where_anything_is() {
    let dir = tempfile::tempdir().unwrap();
    let top = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (cpu, memory, io) = (top("cpu,cpuset"), top("memory"), top("blkio"));
    let v1 = [
        (Controller::Memory, memory),
        (Controller::Cpu, cpu.clone()),
        // In one hierarchy with another controller: whoever is in the one is in the other.
        (Controller::Cpuset, cpu.clone()),
        (Controller::Blkio, io.clone()),
    ];
    let family = Root { v1: v1.into(), ..Root::default() }.family("a");
    assert_eq!(family.workload.v1[&Controller::Cpuset], cpu.join("a/workload"));
    assert_eq!(family.workload.v1[&Controller::Blkio], io.join("a"));
    assert_eq!(family.helpers.v1[&Controller::Cpu], cpu.join("a/helpers"));
    assert!(!family.helpers.v1.contains_key(&Controller::Blkio));
}

/// A shell that moves itself in, so that its child is born inside.
fn enter(group: &Group) -> std::process::Child {
    let enter: String =
        group.dirs().map(|dir| format!("echo $$ > {}/cgroup.procs; ", dir.display())).collect();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{enter} sleep 1000 & echo ready; wait")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
    child
}

/// On the real kernel: limits are read back, a group is killed whole, and nothing is left.
#[test]
fn a_real_group_limits_kills_and_goes_away() {
    let root = Root::detect(&format!("sodiumd-test-{}", std::process::id()));
    assert!(!root.is_empty(), "this test needs root and cgroups");
    let family = root.family("g");
    family.create().unwrap();
    let one_cpu = Some(Cpus { count: 1, turn: 3 });
    // Up and down again, the parent always with more.
    for percent in [50, 150, 50] {
        let cpu_percent = Some(percent);
        let applied = family.apply(&Limits { cpus: one_cpu, cpu_percent, ..LIMITS }).unwrap();
        let read_back: Vec<_> = applied.iter().map(|one| one.read_back).collect();
        assert_eq!(read_back, [Some(64 << 20), Some(percent), Some(20), Some(1)]);
    }
    let group = &family.workload;
    assert!(!group.is_populated());
    let mut child = enter(group);
    assert!(group.is_populated());
    assert!(family.remove().is_err());
    group.kill().unwrap();
    child.wait().unwrap();
    while group.is_populated() {
        std::thread::yield_now();
    }
    // A helper is waited for, but not for ever.
    let mut helper = enter(&family.helpers);
    family.remove().unwrap();
    helper.wait().unwrap();
    assert!(!group.exists() && !root.group("g").exists());
    root.remove();
}
