//! Trees as tenants leave them, and tenants who change them meanwhile. As root, like the daemon.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sys::stat::{mkdirat, mknod};

use super::*;
use crate::mount;
use crate::swapped::while_swapped;

const OWNER: u32 = 212_345;
const OTHER: u32 = 212_346;

struct Ground {
    dir: tempfile::TempDir,
    tree: PathBuf,
    copied: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tree, copied) = (dir.path().join("tree"), dir.path().join("copied"));
        fs::create_dir(&tree).unwrap();
        Self { dir, tree, copied }
    }

    /// For the tenant, as which a copy is made.
    fn copy(&self) -> Result<(), SysError> {
        copy(&self.tree, &self.copied, Some((OWNER, OWNER)))
    }

    fn write(&self, name: &str, mode: u32, owner: u32) -> PathBuf {
        let path = self.tree.join(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        path
    }
}

fn about(path: &Path) -> fs::Metadata {
    fs::symlink_metadata(path).unwrap()
}

#[test]
fn a_tree_is_removed_and_its_symlinks_are_not_followed() {
    let Ground { dir, tree, .. } = Ground::new();
    let other = dir.path().join("other");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join("kept"), "x").unwrap();
    fs::write(tree.join("a/file"), vec![1; 8192]).unwrap();
    symlink(&other, tree.join("a/b/out")).unwrap();
    nix::unistd::mkfifo(&tree.join("a/pipe"), Mode::S_IRUSR).unwrap();
    assert!(allocated_bytes(&tree) >= 8192);
    assert_eq!(length_bytes(&tree), 8192);
    remove(&tree).unwrap();
    assert!(!tree.exists() && other.join("kept").exists());
    remove(&tree).unwrap();
    symlink(&other, &tree).unwrap();
    remove(&tree).unwrap();
    assert!(!tree.is_symlink() && other.join("kept").exists());
}

#[test]
fn more_directories_than_are_known_at_once_are_removed_all_the_same() {
    let Ground { dir: _dir, tree, .. } = Ground::new();
    for name in 0..3 * EMPTIED_AT_ONCE + 7 {
        fs::create_dir(tree.join(name.to_string())).unwrap();
        fs::write(tree.join(format!("{name}.txt")), "").unwrap();
    }
    fs::create_dir_all(tree.join("1/2/3")).unwrap();
    let known = list(&top(&tree).unwrap(), &mut Remove).unwrap().len();
    assert_eq!(known, EMPTIED_AT_ONCE);
    clear(&tree).unwrap();
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 0);
}

#[test]
fn a_tree_may_be_deeper_than_any_path() {
    let Ground { dir: _dir, tree, copied } = Ground::new();
    let mut here = top(&tree).unwrap();
    for _ in 0..2_500 {
        mkdirat(&here, "tree", Mode::S_IRWXU).unwrap();
        here = openat(&here, "tree", DIRECTORY, Mode::empty()).unwrap();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    drop(openat(&here, "bottom", flags, Mode::S_IRUSR).unwrap());
    give(&tree, OWNER, OWNER).unwrap();
    assert_eq!(fstat(&here).unwrap().st_uid, OWNER);
    copy(&tree, &copied, Some((OWNER, OWNER))).unwrap();
    sync(&copied).unwrap();
    let mut here = top(&copied).unwrap();
    for _ in 0..2_500 {
        here = openat(&here, "tree", DIRECTORY, Mode::empty()).unwrap();
    }
    openat(&here, "bottom", OFlag::O_RDONLY, Mode::empty()).unwrap();
    assert!(allocated_bytes(&copied) > 0);
    for tree in [tree, copied] {
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}

#[test]
fn a_copy_has_owners_modes_times_and_symlinks_of_what_was_copied() {
    let ground = Ground::new();
    let file = ground.write("file", 0o4751, OWNER);
    ground.write("readable", 0o4644, OTHER);
    symlink("/etc/passwd", ground.tree.join("link")).unwrap();
    nix::unistd::mkfifo(&ground.tree.join("pipe"), Mode::S_IRUSR).unwrap();
    fs::create_dir(ground.tree.join("dir")).unwrap();
    fs::set_permissions(ground.tree.join("dir"), fs::Permissions::from_mode(0o1750)).unwrap();
    chown(ground.tree.join("dir"), Some(OWNER), Some(OTHER)).unwrap();
    fs::write(ground.tree.join("dir/inner"), "x").unwrap();
    let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in [&file, &ground.tree.join("dir")] {
        fs::File::open(path).unwrap().set_modified(past).unwrap();
    }
    ground.copy().unwrap();
    for name in ["", "file", "link", "pipe", "dir", "dir/inner"] {
        let (was, is) = (about(&ground.tree.join(name)), about(&ground.copied.join(name)));
        assert_eq!((was.mode(), was.uid(), was.gid()), (is.mode(), is.uid(), is.gid()), "{name}");
        assert_eq!((was.mtime(), was.mtime_nsec()), (is.mtime(), is.mtime_nsec()), "{name}");
    }
    assert_eq!(about(&ground.copied.join("dir")).mtime(), 1_000_000_000);
    assert_eq!(fs::read_link(ground.copied.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(about(&ground.copied.join("pipe")).file_type().is_fifo());
    assert_eq!(fs::read_to_string(ground.copied.join("file")).unwrap(), "file");
    // What would run as somebody else is not what it was.
    assert_eq!(about(&ground.copied.join("readable")).mode() & 0o7777, 0o644);
    copy(&ground.tree, &ground.copied, None).unwrap_err();
}

#[test]
fn names_of_one_file_are_names_of_one_file_in_the_copy() {
    let ground = Ground::new();
    let (tree, copied) = (&ground.tree, &ground.copied);
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("one"), "x").unwrap();
    symlink("one", tree.join("link")).unwrap();
    for (from, to) in [("one", "a/two"), ("one", "a/b/three"), ("link", "a/link")] {
        fs::hard_link(tree.join(from), tree.join(to)).unwrap();
    }
    ground.copy().unwrap();
    let inode = |name: &str| (about(&copied.join(name)).ino(), about(&copied.join(name)).nlink());
    assert_eq!(inode("one").1, 3);
    assert!(inode("one") == inode("a/two") && inode("one") == inode("a/b/three"));
    assert_eq!(inode("link"), inode("a/link"));
    let names = fs::read_dir(copied).unwrap().count();
    assert_eq!(names, 3, "something was left at the top");
}

#[test]
fn holes_are_copied_as_holes_and_devices_and_sockets_not_at_all() {
    let ground = Ground::new();
    let sparse = fs::File::create(ground.tree.join("sparse")).unwrap();
    sparse.set_len(1 << 32).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 1 << 31).unwrap();
    let _socket = UnixListener::bind(ground.tree.join("socket")).unwrap();
    let null = nix::sys::stat::makedev(1, 3);
    mknod(&ground.tree.join("null"), SFlag::S_IFCHR, Mode::S_IRUSR, null).unwrap();
    ground.copy().unwrap();
    let names: Vec<_> = fs::read_dir(&ground.copied).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let copied = about(&ground.copied.join("sparse"));
    assert_eq!(copied.len(), 1 << 32);
    assert!(copied.blocks() * 512 < 1 << 20, "{} blocks", copied.blocks());
}

#[test]
fn the_owner_reads_what_is_its_own_and_nothing_that_is_closed_to_it() {
    let ground = Ground::new();
    ground.write("own", 0, OWNER);
    fs::create_dir(ground.tree.join("closed")).unwrap();
    ground.write("closed/inner", 0o600, OWNER);
    chown(ground.tree.join("closed"), Some(OWNER), None).unwrap();
    fs::set_permissions(ground.tree.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    ground.copy().unwrap();
    assert_eq!(fs::read_to_string(ground.copied.join("own")).unwrap(), "own");
    assert!(ground.copied.join("closed/inner").exists());
    remove(&ground.copied).unwrap();
    ground.write("root's\n", 0o600, 0);
    let refused = ground.copy().unwrap_err();
    assert_eq!(refused.source.kind(), ErrorKind::PermissionDenied);
    assert!(refused.call.ends_with(r#""root's\n" in it"#), "{refused}");
}

#[test]
fn what_is_mounted_in_a_tree_is_neither_copied_nor_removed() {
    let ground = Ground::new();
    let at = ground.tree.join("mount");
    fs::create_dir(&at).unwrap();
    mount::tmpfs(&at, 1 << 20, 100).unwrap();
    fs::write(at.join("kept"), "x").unwrap();
    let refused = [ground.copy(), remove(&ground.tree), give(&ground.tree, OWNER, OWNER)];
    let (kept, owner) = (at.join("kept").exists(), about(&at.join("kept")).uid());
    mount::unmount(&at, true).unwrap();
    for refused in refused {
        assert_eq!(refused.unwrap_err().errno(), libc::EXDEV);
    }
    assert!(kept && owner == 0);
}

#[test]
fn a_file_of_somebody_elses_with_another_name_is_given_to_nobody() {
    let ground = Ground::new();
    chown(&ground.tree, Some(OTHER), Some(OTHER)).unwrap();
    let outside = ground.dir.path().join("outside");
    fs::write(&outside, "x").unwrap();
    fs::hard_link(&outside, ground.tree.join("name")).unwrap();
    fs::hard_link(ground.write("own", 0o600, OTHER), ground.tree.join("own-too")).unwrap();
    ground.write("alone", 0o600, 0);
    give(&ground.tree, OWNER, OWNER).unwrap();
    assert_eq!(about(&outside).uid(), 0);
    for name in ["", "own", "alone"] {
        assert_eq!(about(&ground.tree.join(name)).uid(), OWNER, "{name}");
    }
}

#[test]
fn attributes_of_the_user_are_copied() {
    let ground = Ground::new();
    let file = fs::File::create(ground.tree.join("file")).unwrap();
    if !set_attribute(&file) {
        // Not every file system has them.
        return;
    }
    ground.copy().unwrap();
    let copied = fs::File::open(ground.copied.join("file")).unwrap();
    assert_eq!(attribute(&copied), b"value");
}

fn set_attribute(file: &fs::File) -> bool {
    use std::os::fd::AsRawFd;
    let (name, value) = (c"user.test", b"value");
    // SAFETY: the descriptor is open, the name ends in NUL, and the value has so many bytes.
    let set = unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    set == 0
}

fn attribute(file: &fs::File) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut value = vec![0_u8; 16];
    let name = c"user.test";
    // SAFETY: the descriptor is open, the name ends in NUL, and the room is as large as is said.
    let length = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(length).unwrap());
    value
}

/// Makes the tree whose names will be exchanged. What was half removed may be there.
fn make_swapped(tree: &Path, outside: &Path) {
    let _ = fs::create_dir_all(tree.join("dir/deep"));
    for name in ["dir/secret", "dir/deep/secret", "secret"] {
        // Not through a link, should there be one by now.
        let made = fs::File::options().write(true).create_new(true).open(tree.join(name));
        let _ = made.and_then(|mut file| file.write_all(b"inside"));
    }
    let _ = symlink(outside, tree.join("dir-link"));
    let _ = symlink(outside.join("secret"), tree.join("file-link"));
}

/// The names in it that are exchanged.
fn pairs_of(tree: &Path) -> [(PathBuf, PathBuf); 2] {
    [("dir", "dir-link"), ("secret", "file-link")]
        .map(|(one, other)| (tree.join(one), tree.join(other)))
}

/// Whatever the copy has, none of it is the outside's.
fn assert_is_from_inside(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            assert_is_from_inside(&path);
        } else if entry.file_type().unwrap().is_file() {
            assert_eq!(fs::read_to_string(&path).unwrap(), "inside", "{}", path.display());
        }
    }
}

#[test]
fn who_exchanges_names_meanwhile_has_nothing_outside_copied_given_counted_or_removed() {
    let ground = Ground::new();
    let outside = ground.dir.path().join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    for name in ["secret", "deep/secret"] {
        fs::write(outside.join(name), vec![b'x'; 1 << 20]).unwrap();
        fs::set_permissions(outside.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let tree = &ground.tree;
    while_swapped(&pairs_of(tree), || {
        for round in 0..400 {
            let _ = fs::create_dir(tree);
            make_swapped(tree, &outside);
            let owner = (round % 2 == 0).then_some((OWNER, OWNER));
            let _ = copy(tree, &ground.copied, owner);
            if ground.copied.exists() {
                assert_is_from_inside(&ground.copied);
            }
            // Nobody changes this one.
            remove(&ground.copied).unwrap();
            let _ = give(tree, OWNER, OWNER);
            assert!(length_bytes(tree) < 1 << 20);
            let _ = sync(tree);
            let _ = if round % 3 == 0 { clear(tree) } else { remove(tree) };
        }
    });
    remove(tree).unwrap();
    let _ = fs::create_dir(tree);
    make_swapped(tree, &outside);
    ground.copy().unwrap();
    assert_is_from_inside(&ground.copied);
    for name in ["", "secret", "deep", "deep/secret"] {
        assert_eq!(about(&outside.join(name)).uid(), 0, "{name}");
    }
    assert_eq!(about(&outside.join("deep/secret")).len(), 1 << 20);
}

/// Sees where a walk is, as a tenant does by inotify, and moves what is above it to below it.
struct Circling {
    count: Count,
    top: PathBuf,
    moves: usize,
}

/// Of each of two chains; the walk goes down both and is never led back up to where one has moved.
const CHAIN: usize = 40;

impl Circling {
    fn end(&self, chain: &str, way: &str) -> PathBuf {
        (1..CHAIN).fold(self.top.join(way).join(chain), |path, _| path.join("d"))
    }
}

impl Visit for Circling {
    fn entry(&mut self, entry: Entry<'_>) -> nix::Result<()> {
        self.count.entry(entry)
    }

    fn open(&mut self, above: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
        let opened = self.count.open(above, name);
        let chains = if name == c"b" { ("a", "b") } else { ("b", "a") };
        if matches!(name.to_bytes(), b"a" | b"b") && self.moves < 1_000 {
            let (outer, inner) = chains;
            // The one that was entered now comes to the top, and the other one to its end.
            if fs::rename(self.end(outer, "").join(inner), self.top.join(inner)).is_ok()
                && fs::rename(self.top.join(outer), self.end(inner, "").join(outer)).is_ok()
            {
                self.moves += 1;
            }
        }
        opened
    }
}

#[test]
fn who_leads_a_count_in_circles_has_more_files_than_he_may() {
    let ground = Ground::new();
    let files_max = Some(2_000);
    let count = Count { files_max, ..Count::default() };
    let mut circling = Circling { count, top: ground.tree.clone(), moves: 0 };
    let inner = (1..CHAIN).fold(circling.end("a", "").join("b"), |path, _| path.join("d"));
    fs::create_dir_all(inner).unwrap();
    let walked = walk(top(&ground.tree).unwrap(), &mut circling);
    assert_eq!(walked, Err(Errno::E2BIG));
    assert!(circling.moves > 10, "{}", circling.moves);
    remove(&ground.tree).unwrap();
}

#[test]
fn what_may_not_be_counted_is_too_much() {
    let ground = Ground::new();
    fs::create_dir_all(ground.tree.join("a/b")).unwrap();
    fs::write(ground.tree.join("a/b/c"), vec![1; 8192]).unwrap();
    assert_eq!(excess(&ground.tree, 1 << 20, 3).unwrap(), None);
    assert_eq!(excess(&ground.tree, 1 << 20, 2).unwrap(), Some(Excess::Files));
    assert!(matches!(excess(&ground.tree, 4096, 3), Ok(Some(Excess::Bytes(8192..)))));
    assert_eq!(excess(&ground.tree.join("none"), 0, 0).unwrap(), None);
    let file = excess(&ground.tree.join("a/b/c"), 1 << 20, 3);
    assert!(matches!(file, Ok(Some(Excess::Uncounted(_)))), "{file:?}");
    // A name that no file system takes is not the owner's doing.
    assert!(excess(&ground.tree.join("x".repeat(300)), 1 << 20, 3).is_err());
}

/// A file system that has projects, for as long as this lives.
struct Disk {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// XFS, whose projects need no quotas. The mount takes its loop device along.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let run = |program: &str, words: &[&str], paths: &[&PathBuf]| {
            let done = std::process::Command::new(program).args(words).args(paths).status();
            assert!(done.unwrap().success(), "{program}");
        };
        run("mkfs.xfs", &["-q"], &[&image]);
        run("mount", &["-t", "xfs", "-o", "loop"], &[&image, &at]);
        Self { at, _dir: dir }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        mount::unmount(&self.at, true).unwrap();
    }
}

#[test]
fn who_exchanges_names_meanwhile_has_nothing_outside_counted_as_his() {
    let disk = Disk::new();
    let (tree, outside) = (disk.at.join("tree"), disk.at.join("outside"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir_all(outside.join("deep")).unwrap();
    for name in ["secret", "deep/secret"] {
        fs::write(outside.join(name), "outside").unwrap();
    }
    make_swapped(&tree, &outside);
    while_swapped(&pairs_of(&tree), || {
        for round in 1..400 {
            let _ = set_project(&tree, round);
        }
    });
    set_project(&tree, OWNER).unwrap();
    assert_eq!(quota::project_of(&tree).unwrap(), OWNER);
    for name in ["", "secret", "deep", "deep/secret"] {
        assert_eq!(quota::project_of(&outside.join(name)).unwrap(), 0, "{name}");
    }
}
