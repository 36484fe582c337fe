//! Where our groups lie in a version 2 that is not ours alone.
//!
//! Version 2 lets a group hand its controllers down only while no process is in it itself. So whoever is given a
//! group of its own moves into a leaf of it, and makes its groups beside that leaf:
//!
//! ```text
//!   handed to us       GROUP/{daemon, sodiumd-1a2b/IID}             a unit with DelegateSubgroup=daemon, a user's own
//!   a unit's very top  SLICE/{NAME.service, sodiumd-1a2b/IID}       else its manager could not start us again
//!   neither            MOUNT/sodiumd-1a2b/IID                       as root, from a shell
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{read, v1, write};

/// Where processes go that are in the way. systemd is told the same name, with `DelegateSubgroup=`.
const LEAF: &str = "daemon";

/// What is handed down. Each on its own: one that is missing must not keep the others out.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Processes are moved until none is left; one that forks faster than that is not waited for.
const MOVES_MAX: usize = 64;

/// Makes the directory `name` where the most can be limited, and hands the controllers down to it. `None`: we may
/// make it nowhere.
pub(super) fn make(mount: &Path, own: Option<&Path>, name: &str, root: bool) -> Option<PathBuf> {
    let mut parents = parents(mount, own, root);
    // The sort is stable: of those that offer the same, the first.
    parents.sort_by_key(|parent| std::cmp::Reverse(offered(parent)));
    let dir = parents.iter().map(|parent| parent.join(name)).find(|dir| {
        // Not its parents: one that is not there is seen differently by whoever mounted this.
        dir.is_dir() || fs::create_dir(dir).is_ok()
    })?;
    let parent = dir.parent()?;
    if offered(parent) > 0 {
        vacate(parent);
    }
    for controller in CONTROLLERS {
        let enable = format!("+{controller}");
        let _ = write(parent, "cgroup.subtree_control", &enable);
        let _ = write(&dir, "cgroup.subtree_control", &enable);
    }
    Some(dir)
}

/// The path of our own group below the mount, by `/proc/self/cgroup`.
pub(super) fn own(cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(path);
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    (is_below && path != Path::new("")).then(|| path.to_owned())
}

/// The groups in which ours may be made, best first.
fn parents(mount: &Path, own: Option<&Path>, root: bool) -> Vec<PathBuf> {
    let Some(own) = own.map(|own| mount.join(own)) else { return vec![mount.to_owned()] };
    let above = own.parent().unwrap_or(mount).to_owned();
    let mount = mount.to_owned();
    if own.file_name().is_some_and(|name| name == LEAF) {
        return vec![above, mount];
    }
    if root && own.extension().is_some_and(|kind| kind == "service") {
        return vec![above, mount];
    }
    // A shell's group has the shell in it, and is not ours to change if there is another way.
    let alone = v1::pids(&own).iter().all(|pid| pid.unsigned_abs() == std::process::id());
    if alone { vec![own, mount] } else { vec![mount, own] }
}

/// How many of the controllers that limits need can be handed down here.
fn offered(parent: &Path) -> usize {
    let offered = read(parent, "cgroup.controllers");
    let needed = ["memory", "cpu", "pids"];
    offered.split_whitespace().filter(|name| needed.contains(name)).count()
}

/// Moves every process of a group into its leaf, ourselves among them. The root of everything, which is the only
/// group without a type, is exempt from the rule.
fn vacate(group: &Path) {
    let mut left = BTreeSet::new();
    for _ in 0..MOVES_MAX {
        let found: BTreeSet<i32> = v1::pids(group).into_iter().collect();
        // Those that stay are not ours to move, or the kernel's own.
        if found.is_empty() || found == left || !group.join("cgroup.type").exists() {
            return;
        }
        let leaf = group.join(LEAF);
        let _ = fs::create_dir(&leaf);
        for pid in &found {
            let _ = write(&leaf, "cgroup.procs", &pid.to_string());
        }
        left = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of plain files: groups, each with its processes and the controllers that it could hand down.
    fn tree(groups: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().unwrap();
        for (path, processes, controllers) in groups {
            let dir = mount.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), processes).unwrap();
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        }
        mount
    }

    const ALL: &str = "cpuset cpu io memory pids";

    fn check(groups: &[(&str, &str, &str)], own_path: &str, root: bool, want: &str) {
        let mount = tree(groups);
        let own_path = own(&format!("0::{own_path}\n"));
        let made = make(mount.path(), own_path.as_deref(), "sodiumd-1", root).unwrap();
        assert_eq!(made.strip_prefix(mount.path()).unwrap(), Path::new(want));
    }

    #[test]
    fn a_group_of_our_own_is_used_and_a_shells_left_alone() {
        let us = std::process::id().to_string();
        let unit = "sodiumd.slice/sodiumd.service";
        check(&[("", &us, ALL)], "/", true, "sodiumd-1");
        check(&[("", "", ALL), ("mine", &us, ALL)], "/mine", true, "mine/sodiumd-1");
        check(&[("", "", ALL), ("shell", &format!("1\n{us}"), ALL)], "/shell", true, "sodiumd-1");
        let units = [("", "", ALL), ("sodiumd.slice", "", ALL), (unit, &us, ALL)];
        check(&units, &format!("/{unit}"), true, "sodiumd.slice/sodiumd-1");
        check(&units, &format!("/{unit}"), false, &format!("{unit}/sodiumd-1"));
        let below = format!("{unit}/daemon");
        let units = [("", "", ALL), (unit, "", ALL), (below.as_str(), &us, ALL)];
        check(&units, &format!("/{below}"), true, &format!("{unit}/sodiumd-1"));
        check(&units, &format!("/{below}"), false, &format!("{unit}/sodiumd-1"));
    }

    #[test]
    fn where_more_can_be_limited_is_better() {
        let us = std::process::id().to_string();
        check(&[("", "", ALL), ("mine", &us, "memory pids")], "/mine", true, "sodiumd-1");
        check(&[("", "", "hugetlb"), ("mine", &us, "")], "/mine", true, "mine/sodiumd-1");
    }

    #[test]
    fn our_own_group_is_told_from_what_is_none() {
        assert_eq!(own("1:name=systemd:/x\n0::/a/b.service\n"), Some("a/b.service".into()));
        assert_eq!(own("0::/\n"), None);
        // Of another namespace.
        assert_eq!(own("0::/../a\n"), None);
        assert_eq!(own("4:memory:/a\n"), None);
    }
}
