//! Workspaces in plain directories; those in volumes are tried in [`crate::driver::volume`].

use super::*;
use crate::model::disk::DiskChoice;

fn files(content: &str) -> BTreeMap<String, String> {
    [("main.sh".to_owned(), content.to_owned())].into()
}

fn spaces(dir: &Path) -> Workspaces {
    let rules = DiskRules { mechanism: DiskChoice::Polled, reserve_mb: 0 };
    Workspaces::open(dir, false, &rules).unwrap()
}

fn wanted<'a>(
    uid: Uuid,
    image_files: &'a BTreeMap<String, String>,
    files: &'a BTreeMap<String, String>,
) -> Wanted<'a> {
    Wanted { uid, host_uid: 0, bytes: None, ephemeral: false, image_files, files }
}

#[test]
fn an_images_files_are_laid_once_and_a_specs_always() {
    let dir = tempfile::tempdir().unwrap();
    let (spaces, uid) = (spaces(dir.path()), Uuid::now_v7());
    let (image, spec, none) = (files("image"), files("spec"), BTreeMap::new());
    let space = spaces.prepare(&wanted(uid, &image, &none)).unwrap().files;
    let read = || fs::read_to_string(space.join("main.sh")).unwrap();
    assert_eq!(read(), "image");
    fs::write(space.join("main.sh"), "mine").unwrap();
    spaces.prepare(&wanted(uid, &image, &none)).unwrap();
    assert_eq!(read(), "mine");
    spaces.prepare(&wanted(uid, &image, &spec)).unwrap();
    assert_eq!(read(), "spec");
}

#[test]
fn a_workspace_put_aside_is_found_again_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let spaces = spaces(dir.path());
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    let name = SandboxName::try_from("web").unwrap();
    spaces.prepare(&wanted(old, &files("x"), &BTreeMap::new())).unwrap();
    spaces.put_aside(old, &name).unwrap();
    assert!(!spaces.path(old).exists());
    spaces.expire(crate::sys::clock::wall_ms(), 60_000).unwrap();
    assert!(spaces.take_back(new, 0, &name).unwrap());
    assert!(spaces.path(new).join("main.sh").exists());
    spaces.put_aside(new, &name).unwrap();
    spaces.expire(crate::sys::clock::wall_ms() + 120_000, 60_000).unwrap();
    assert!(!spaces.take_back(old, 0, &name).unwrap());
}

#[test]
fn a_limit_that_nothing_keeps_is_said_to_be_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (spaces, uid, none) = (spaces(dir.path()), Uuid::now_v7(), BTreeMap::new());
    let limited = Wanted { bytes: Some(1 << 20), ..wanted(uid, &none, &none) };
    let place = spaces.prepare(&limited).unwrap();
    assert_eq!((place.kept.verdict, place.kept.read_back), (Verdict::Degraded, None));
    assert!(place.tmp.is_none() && place.kept.reason.contains("polled"), "{place:?}");
    fs::write(place.files.join("x"), [1; 10_000]).unwrap();
    assert!((10_000..30_000).contains(&spaces.counted_bytes(uid)));
}
