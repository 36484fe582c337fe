//! Real file systems: images on whatever this is, and btrfs, which every kernel that we test on has.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::linux::fs::MetadataExt;

use super::*;
use crate::storage::workspace::{Place, Wanted, Workspaces};
use sodium_model::{DiskRules, Owner, SandboxName, Verdict};

const OWNER: u32 = 212_345;

/// Workspaces in a directory that leaves no mount behind.
struct Ground {
    spaces: Workspaces,
    dir: tempfile::TempDir,
}

impl Drop for Ground {
    fn drop(&mut self) {
        unmount_all(&self.dir.path().join("sandboxes"));
        unmount_all(&self.dir.path().join("disk"));
        let disk = self.dir.path().join("disk");
        if disk::is_mount_point(&disk) {
            image::unmount(&disk).unwrap();
        }
    }
}

impl Ground {
    fn new(mechanism: DiskChoice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::in_dir(dir, "sandboxes", mechanism)
    }

    fn in_dir(dir: tempfile::TempDir, name: &str, mechanism: DiskChoice) -> Self {
        let rules = DiskRules { mechanism, reserve_mb: 0 };
        let spaces = Workspaces::open(&dir.path().join(name), true, &rules).unwrap();
        Self { spaces, dir }
    }

    fn prepare(&self, uid: Uuid, bytes: Option<u64>) -> Result<Place, String> {
        self.prepare_so(uid, bytes, false)
    }

    fn prepare_so(&self, uid: Uuid, bytes: Option<u64>, ephemeral: bool) -> Result<Place, String> {
        let none = BTreeMap::new();
        let image_files = [("main.sh".to_owned(), "image".to_owned())].into();
        let wanted = Wanted {
            uid,
            host_uid: OWNER,
            bytes,
            ephemeral,
            image_files: &image_files,
            files: &none,
        };
        self.spaces.prepare(&wanted).map_err(|error| sodium_sys::error::chain(&error))
    }
}

/// Writes until the kernel refuses, or `most` were written. Returns MiB and the refusal.
fn fill(path: &Path, most: usize) -> (usize, Option<ErrorKind>) {
    let mut file = fs::File::create(path).unwrap();
    for count in 0..most {
        if let Err(error) = file.write_all(&[7; 1 << 20]).and_then(|()| file.sync_data()) {
            return (count, Some(error.kind()));
        }
    }
    (most, None)
}

#[test]
fn an_image_is_full_at_its_limit_grows_shrinks_and_goes_without_a_trace() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    let place = ground.prepare(uid, Some(24 * MIB)).unwrap();
    assert_eq!((place.kept.verdict, place.kept.read_back), (Verdict::Enforced, Some(24 * MIB)));
    let (written, refusal) = fill(&place.files.join("big"), 30);
    assert!((18..24).contains(&written), "{written}");
    assert_eq!(refusal, Some(ErrorKind::StorageFull));
    let volume = ground.spaces.volumes.find(uid).unwrap();
    assert!(volume.space(OWNER).unwrap().is_full());
    // Nothing is lost on the way to more, and less is refused with a reason.
    let place = ground.prepare(uid, Some(48 * MIB)).unwrap();
    assert_eq!(place.kept.read_back, Some(48 * MIB));
    assert_eq!(fs::read_to_string(place.files.join("main.sh")).unwrap(), "image");
    let refused = ground.prepare(uid, Some(8 * MIB)).unwrap_err();
    assert!(refused.contains("limit the disk to 8 MiB: it holds"), "{refused}");
    fs::remove_file(place.files.join("big")).unwrap();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert_eq!(place.kept.read_back, Some(16 * MIB));
    assert!(place.files.join("main.sh").exists());
    // What was deleted has gone back to the host.
    let image = ground.dir.path().join(format!("sandboxes/.disk/{uid}.img"));
    assert!(disk::allocated_bytes(&fs::metadata(&image).unwrap()) < 4 * MIB);
    ground.spaces.remove(uid).unwrap();
    assert!(!image.exists() && !place.files.exists());
    let mounts = mount::below(&ground.dir.path().join("sandboxes"));
    assert_eq!(mounts, [] as [PathBuf; 0]);
}

#[test]
fn what_a_daemon_was_trying_when_it_was_killed_goes_with_the_next() {
    let ground = Ground::new(DiskChoice::Image);
    let sandboxes = ground.dir.path().join("sandboxes");
    let volumes = &ground.spaces.volumes;
    volumes.ensure(Uuid::nil(), &Ask { bytes: BYTES_MIN, owner: OWNER }).unwrap();
    let (image, at) = (sandboxes.join(".disk/.try.img"), sandboxes.join(".mounts/.try"));
    fs::rename(sandboxes.join(".disk").join(format!("{}.img", Uuid::nil())), &image).unwrap();
    image::unmount(&sandboxes.join(".mounts").join(Uuid::nil().to_string())).unwrap();
    volumes.remove(Uuid::nil()).unwrap();
    volumes.mount_at(&image, &at).unwrap();
    assert!(disk::is_mount_point(&at));
    // And one that was killed before it in the same moment.
    mount::tmpfs(&at, MIB, 16).unwrap();
    Volumes::open(&sandboxes, true, DiskChoice::Polled, 0).unwrap();
    assert!(disk::is_mount_point(&at), "whoever only looks leaves a trial alone");
    ground.spaces.end_trial().unwrap();
    assert_eq!(mount::below(&sandboxes), [] as [PathBuf; 0]);
    assert!(!image.exists() && !at.exists());
}

#[test]
fn an_image_keeps_inodes_too() {
    let ground = Ground::new(DiskChoice::Image);
    let place = ground.prepare(Uuid::now_v7(), Some(8 * MIB)).unwrap();
    let made = (0..2000).take_while(|n| fs::write(place.files.join(n.to_string()), "").is_ok());
    let made = made.count();
    assert!((900..=1024).contains(&made), "{made}");
}

#[test]
fn a_workspace_moves_into_a_volume_and_out_of_it() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    let plain = ground.prepare(uid, None).unwrap();
    fs::write(plain.files.join("mine"), "kept").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", plain.files.join("link")).unwrap();
    let inside = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert_ne!(inside.files, plain.files);
    assert!(!plain.files.exists());
    assert_eq!(fs::read_to_string(inside.files.join("mine")).unwrap(), "kept");
    assert!(inside.files.join("link").is_symlink());
    assert_eq!(fs::symlink_metadata(inside.files.join("mine")).unwrap().st_uid(), 0);
    let outside = ground.prepare(uid, None).unwrap();
    assert_eq!(outside.files, plain.files);
    assert_eq!(fs::read_to_string(outside.files.join("mine")).unwrap(), "kept");
    assert!(ground.spaces.volumes.find(uid).is_none());
}

#[test]
fn a_volume_put_aside_is_taken_back_by_another_owner_or_expires() {
    let ground = Ground::new(DiskChoice::Image);
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    let name = SandboxName::try_from("web").unwrap();
    ground.prepare(old, Some(8 * MIB)).unwrap();
    ground.spaces.put_aside(old, &name, &Owner::Api).unwrap();
    assert!(ground.spaces.volumes.find(old).is_none());
    assert!(ground.spaces.take_back(new, OWNER + 1, &name, &Owner::Api).unwrap());
    let file = ground.spaces.path(new).join("main.sh");
    assert_eq!(fs::metadata(&file).unwrap().st_uid(), OWNER + 1);
    ground.spaces.put_aside(new, &name, &Owner::Api).unwrap();
    ground.spaces.expire(sodium_sys::clock::wall_ms() + 120_000, 60_000).unwrap();
    assert!(!ground.spaces.take_back(old, OWNER, &name, &Owner::Api).unwrap());
}

#[test]
fn one_in_memory_begins_empty_each_time() {
    let ground = Ground::new(DiskChoice::Auto);
    let uid = Uuid::now_v7();
    let place = ground.prepare_so(uid, Some(4 * MIB), true).unwrap();
    assert_eq!((place.kept.mechanism.as_str(), place.kept.read_back), ("tmpfs", Some(4 * MIB)));
    let (written, refusal) = fill(&place.files.join("big"), 8);
    assert!(written <= 4 && refusal == Some(ErrorKind::StorageFull), "{written} {refusal:?}");
    let place = ground.prepare_so(uid, Some(4 * MIB), true).unwrap();
    assert!(!place.files.join("big").exists() && place.files.join("main.sh").exists());
    ground.spaces.volumes.drop_memory(uid).unwrap();
    assert!(!place.files.exists());
}

#[test]
fn no_more_is_promised_than_the_host_has() {
    // Other tests take and give back some hundred megabytes of the same disk meanwhile.
    const GIB: u64 = 1024 * MIB;
    let ground = |mechanism| {
        let dir = tempfile::tempdir().unwrap();
        let free = disk::space(dir.path()).unwrap().free_bytes / MIB;
        let rules = DiskRules { mechanism, reserve_mb: free - 4 * 1024 };
        let spaces = Workspaces::open(&dir.path().join("sandboxes"), true, &rules).unwrap();
        let ground = Ground { spaces, dir };
        let first = ground.prepare(Uuid::now_v7(), Some(2 * GIB)).unwrap();
        assert_eq!(first.kept.verdict, Verdict::Enforced);
        ground
    };
    let second = ground(DiskChoice::Auto).prepare(Uuid::now_v7(), Some(3 * GIB)).unwrap();
    assert_eq!(second.kept.verdict, Verdict::Degraded);
    assert!(second.kept.reason.contains("promise 3072 MiB"), "{:?}", second.kept);
    // Whoever says what keeps disks has nothing started that it does not keep.
    let refused = ground(DiskChoice::Image).prepare(Uuid::now_v7(), Some(3 * GIB));
    assert!(refused.is_err_and(|why| why.contains("promise 3072 MiB")));
}

#[test]
fn a_few_sizes_are_kept_ready_and_no_more() {
    let ground = Ground::new(DiskChoice::Image);
    let first = Uuid::now_v7();
    for megabytes in 2..22 {
        ground.prepare(Uuid::now_v7(), Some(megabytes * MIB)).unwrap();
        // Asked for again and again, it stays.
        ground.spaces.remove(first).unwrap();
        ground.prepare(first, Some(2 * MIB)).unwrap();
    }
    let templates = ground.dir.path().join("sandboxes/.disk/.templates");
    let left = fs::read_dir(&templates).unwrap().count();
    assert!(left == 16 && templates.join("ext4-2.img").exists(), "{left}");
}

#[test]
fn a_btrfs_subvolume_is_full_at_its_limit_and_takes_another_one_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (image, at) = (dir.path().join("disk.img"), dir.path().join("disk"));
    fs::File::create(&image).unwrap().set_len(256 * MIB).unwrap();
    fs::create_dir(&at).unwrap();
    let mut command = std::process::Command::new("mkfs.btrfs");
    command.arg("-q").arg(&image);
    fsops::run(command, "btrfs-progs").unwrap();
    let device = disk::loopback::attach(&image).unwrap();
    let mut command = std::process::Command::new("mount");
    command.args([&device.path, &at]);
    fsops::run(command, "mount").unwrap();
    let ground = Ground::in_dir(dir, "disk", DiskChoice::Auto);
    assert_eq!(ground.spaces.volumes.kind(), Ok(Kind::Btrfs));
    let uid = Uuid::now_v7();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert_eq!((place.kept.verdict, place.kept.read_back), (Verdict::Enforced, Some(16 * MIB)));
    let (written, refusal) = fill(&place.files.join("big"), 30);
    assert!((12..=16).contains(&written), "{written}");
    assert_eq!(refusal, Some(ErrorKind::QuotaExceeded));
    // Not even a directory can be made now: it begins again all the same.
    fs::write(place.tmp.unwrap().join("x"), "").unwrap_err();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    let kept = ground.spaces.adjust(uid, OWNER, Some(32 * MIB));
    assert_eq!((kept.verdict, kept.read_back), (Verdict::Enforced, Some(32 * MIB)));
    let kept = ground.spaces.adjust(uid, OWNER, Some(4 * MIB));
    assert!(kept.verdict == Verdict::Degraded && kept.reason.contains("it holds"), "{kept:?}");
    // A tenant may have made one of its own.
    let mut command = std::process::Command::new("btrfs");
    command.args(["subvolume", "create"]).arg(place.files.join("inner"));
    fsops::run(command, "btrfs-progs").unwrap();
    ground.spaces.remove(uid).unwrap();
    assert!(!place.files.exists());
}

fn image_of(ground: &Ground, uid: Uuid) -> PathBuf {
    ground.dir.path().join(format!("sandboxes/.disk/{uid}.img"))
}

fn unmount_one(ground: &Ground, uid: Uuid) {
    image::unmount(&ground.spaces.volumes.mount_of(uid)).unwrap();
}

fn run(words: &[&str], at: &Path) -> String {
    let mut command = std::process::Command::new(words[0]);
    command.args(&words[1..]).arg(at);
    fsops::run(command, "e2fsprogs").unwrap()
}

#[test]
fn an_image_whose_growth_was_cut_off_is_as_large_as_before_and_grows_at_the_next_start() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    ground.prepare(uid, Some(16 * MIB)).unwrap();
    unmount_one(&ground, uid);
    let image = image_of(&ground, uid);
    fs::File::options().write(true).open(&image).unwrap().set_len(32 * MIB).unwrap();
    assert_eq!(image::bytes(&image).unwrap(), 16 * MIB);
    ground.spaces.volumes.mount(uid).unwrap();
    let volume = ground.spaces.volumes.find(uid).unwrap();
    assert_eq!(volume.read_back(OWNER), Some(16 * MIB));
    let place = ground.prepare(uid, Some(32 * MIB)).unwrap();
    assert_eq!((place.kept.verdict, place.kept.read_back), (Verdict::Enforced, Some(32 * MIB)));
    assert!(place.files.join("main.sh").exists());
}

#[test]
fn an_image_that_was_not_unmounted_in_order_is_checked_before_it_is_used() {
    let ground = Ground::new(DiskChoice::Image);
    for bytes in [16 * MIB, 32 * MIB] {
        let uid = Uuid::now_v7();
        ground.prepare(uid, Some(bytes)).unwrap();
        unmount_one(&ground, uid);
        let image = image_of(&ground, uid);
        run(&["debugfs", "-w", "-R", "set_super_value state 2"], &image);
        run(&["debugfs", "-w", "-R", "set_super_value free_blocks_count 7"], &image);
        let place = ground.prepare(uid, Some(bytes)).unwrap();
        assert!(place.files.join("main.sh").exists());
        fs::write(place.files.join("more"), "x").unwrap();
        unmount_one(&ground, uid);
        run(&["e2fsck", "-f", "-n"], &image);
    }
}

#[test]
fn an_image_that_cannot_be_mended_without_loss_is_left_as_it_is_with_a_hint() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    ground.prepare(uid, Some(32 * MIB)).unwrap();
    unmount_one(&ground, uid);
    let image = image_of(&ground, uid);
    run(&["debugfs", "-w", "-R", "clri /files"], &image);
    run(&["debugfs", "-w", "-R", "set_super_value state 2"], &image);
    let refused = ground.prepare(uid, Some(32 * MIB)).unwrap_err();
    assert!(refused.contains("hint: `e2fsck -f -y "), "{refused}");
}

#[test]
fn a_volume_that_became_read_only_is_mended_at_the_next_start() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    run(&["mount", "-o", "remount,ro"], &ground.spaces.volumes.mount_of(uid));
    fs::write(place.files.join("x"), "").unwrap_err();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    fs::write(place.files.join("x"), "").unwrap();
}

#[test]
fn an_image_that_is_still_in_use_somewhere_has_one_device() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    let held = fs::File::create(place.files.join("held")).unwrap();
    let before = disk::device(&place.files);
    unmount_one(&ground, uid);
    let place = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert_eq!(disk::device(&place.files), before);
    drop(held);
}

#[test]
fn a_move_into_a_volume_that_was_cut_off_is_ended_by_the_next_start() {
    let ground = Ground::new(DiskChoice::Image);
    let uid = Uuid::now_v7();
    let plain = ground.prepare(uid, None).unwrap().files;
    fs::write(plain.join("mine"), "kept").unwrap();
    let inside = ground.prepare(uid, Some(16 * MIB)).unwrap();
    // As before the original was gone.
    fsops::copy(&inside.files, &plain, None).unwrap();
    let inside = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert!(!plain.exists() && inside.files.join("mine").exists());
    // And as while it was going, on the way out.
    fsops::copy(&inside.files, &plain, None).unwrap();
    fs::rename(&inside.files, inside.files.with_extension("old")).unwrap();
    let inside = ground.prepare(uid, Some(16 * MIB)).unwrap();
    assert!(!plain.exists() && inside.files.join("mine").exists());
}

#[test]
fn what_was_begun_for_a_volume_goes_with_it() {
    let ground = Ground::new(DiskChoice::Image);
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    let name = SandboxName::try_from("web").unwrap();
    ground.prepare(old, Some(8 * MIB)).unwrap();
    let volumes = &ground.spaces.volumes;
    fs::write(volumes.dir_of(old).with_extension("new"), "").unwrap();
    ground.spaces.put_aside(old, &name, &Owner::Api).unwrap();
    ground.spaces.remove(old).unwrap();
    assert!(!volumes.dir_of(old).with_extension("new").exists());
    // As after being given to another owner, and before it got its place.
    let aside = ground.dir.path().join(format!("sandboxes/.removed/web.{old}.img"));
    volumes.mount_at(&aside, &volumes.mount_of(new)).unwrap();
    ground.spaces.remove(new).unwrap();
    assert_eq!(mount::below(&ground.dir.path().join("sandboxes")), [] as [PathBuf; 0]);
    assert!(ground.spaces.take_back(old, OWNER + 1, &name, &Owner::Api).unwrap());
    let file = ground.spaces.path(old).join("main.sh");
    assert_eq!(fs::metadata(file).unwrap().st_uid(), OWNER + 1);
}

#[test]
fn one_in_memory_without_a_limit_has_none_on_files_either() {
    let ground = Ground::new(DiskChoice::Auto);
    let place = ground.prepare_so(Uuid::now_v7(), None, true).unwrap();
    for n in 0..1500 {
        fs::write(place.files.join(n.to_string()), "").unwrap();
    }
}

#[test]
fn an_image_is_used_again_after_a_loss_of_power() {
    let ground = Ground::new(DiskChoice::Image);
    for (bytes, then) in [(16, 16), (16, 24), (32, 32), (32, 48), (48, 32)] {
        let uid = Uuid::now_v7();
        let place = ground.prepare(uid, Some(bytes * MIB)).unwrap();
        fill(&place.files.join("synced"), 2);
        disk::sync(&place.files).unwrap();
        for n in 0..100 {
            fs::write(place.files.join(n.to_string()), "on its way").unwrap();
        }
        let (image, copy) = (image_of(&ground, uid), ground.dir.path().join("copy"));
        // What is on the disk at this moment.
        disk::copy_sparse(&image, &copy).unwrap();
        unmount_one(&ground, uid);
        rename(&copy, &image).unwrap();
        let place = ground.prepare(uid, Some(then * MIB)).unwrap();
        assert_eq!(place.kept.read_back, Some(then * MIB), "{:?}", place.kept);
        assert_eq!(fs::metadata(place.files.join("synced")).unwrap().len(), 2 * MIB);
        assert!(place.files.join("main.sh").exists());
    }
}
