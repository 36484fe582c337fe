//! Workspaces in plain directories; those in volumes are tried in [`crate::storage::volume`].

use super::*;
use sodium_model::disk::DiskChoice;

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
fn what_is_ephemeral_leaves_what_is_kept_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (spaces, uid, none) = (spaces(dir.path()), Uuid::now_v7(), BTreeMap::new());
    let lasting = wanted(uid, &none, &none);
    let passing = Wanted { ephemeral: true, ..wanted(uid, &none, &none) };
    fs::write(spaces.prepare(&lasting).unwrap().files.join("kept"), "mine").unwrap();
    for _ in 0..2 {
        let files = spaces.prepare(&passing).unwrap().files;
        assert_eq!((fs::read_dir(&files).unwrap().count(), spaces.path(uid)), (0, files.clone()));
        fs::write(files.join("gone"), "mine").unwrap();
    }
    let files = spaces.prepare(&lasting).unwrap().files;
    assert_eq!(fs::read_to_string(files.join("kept")).unwrap(), "mine");
    assert!(!files.join("gone").exists() && spaces.path(uid) == files);
    spaces.prepare(&passing).unwrap();
    spaces.put_aside(uid, &SandboxName::try_from("web").unwrap(), &Owner::Api).unwrap();
    spaces.remove(uid).unwrap();
    let named =
        |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains(&uid.to_string());
    assert!(!fs::read_dir(dir.path()).unwrap().any(|entry| named(entry.unwrap())));
}

#[test]
fn a_workspace_put_aside_is_found_again_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let spaces = spaces(dir.path());
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    let name = SandboxName::try_from("web").unwrap();
    spaces.prepare(&wanted(old, &files("x"), &BTreeMap::new())).unwrap();
    spaces.put_aside(old, &name, &Owner::Api).unwrap();
    assert!(!spaces.path(old).exists());
    spaces.expire(sodium_sys::clock::wall_ms(), 60_000).unwrap();
    assert!(spaces.take_back(new, 0, &name, &Owner::Api).unwrap());
    assert!(spaces.path(new).join("main.sh").exists());
    spaces.put_aside(new, &name, &Owner::Api).unwrap();
    spaces.expire(sodium_sys::clock::wall_ms() + 120_000, 60_000).unwrap();
    assert!(!spaces.take_back(old, 0, &name, &Owner::Api).unwrap());
    assert_eq!(fs::read_dir(dir.path().join(".removed")).unwrap().count(), 0);
}

#[test]
fn a_retained_workspace_is_its_owners_until_somebody_else_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let spaces = spaces(dir.path());
    let name = SandboxName::try_from("web").unwrap();
    let file = Owner::File("web.yaml".to_owned());
    let none = BTreeMap::new();
    let left: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    for (uid, (content, owner)) in left.iter().zip([("1", &file), ("2", &file), ("3", &Owner::Api)])
    {
        spaces.prepare(&wanted(*uid, &files(content), &none)).unwrap();
        spaces.put_aside(*uid, &name, owner).unwrap();
        // Again, as after a crash.
        spaces.put_aside(*uid, &name, owner).unwrap();
    }
    let ids = || -> Vec<String> {
        retained::list(dir.path()).unwrap().into_iter().map(|one| one.id).collect()
    };
    assert_eq!(ids(), [2, 1, 0].map(|n: usize| format!("web.{}", left[n])));
    let stranger = Owner::File("other.yaml".to_owned());
    let new = Uuid::now_v7();
    assert!(!spaces.take_back(new, 0, &name, &stranger).unwrap());
    let others = spaces.left_by_others(&name, &stranger).unwrap().unwrap();
    assert!(others.name() == "web" && others.is_of(&Owner::Api));
    // The newest of its own, though another is newer.
    assert_eq!(spaces.left_by_others(&name, &file).unwrap(), None);
    assert!(spaces.take_back(new, 0, &name, &file).unwrap());
    assert_eq!(fs::read_to_string(spaces.path(new).join("main.sh")).unwrap(), "2");
    retained::give(dir.path(), &format!("web.{}", left[2]), &stranger).unwrap();
    let new = Uuid::now_v7();
    assert!(spaces.take_back(new, 0, &name, &stranger).unwrap());
    assert_eq!(fs::read_to_string(spaces.path(new).join("main.sh")).unwrap(), "3");
    assert_eq!(ids(), [format!("web.{}", left[0])]);
    retained::give(dir.path(), "web.gone", &stranger).unwrap_err();
}

#[test]
fn what_an_older_release_retained_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let spaces = spaces(dir.path());
    let name = SandboxName::try_from("web").unwrap();
    fs::create_dir_all(dir.path().join(".removed/web")).unwrap();
    assert!(!spaces.take_back(Uuid::now_v7(), 0, &name, &Owner::Api).unwrap());
    let left = spaces.left_by_others(&name, &Owner::Api).unwrap().unwrap();
    assert_eq!((left.id.as_str(), left.owner), ("web", None));
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
    assert_eq!(spaces.excess(uid, 1).unwrap(), None);
    fs::write(place.files.join("x"), vec![1; 3 << 20]).unwrap();
    assert_eq!(spaces.excess(uid, 1).unwrap().unwrap(), "its files take 3 MiB of 1");
    fs::remove_file(place.files.join("x")).unwrap();
    for n in 0..1024 {
        fs::write(place.files.join(n.to_string()), "").unwrap();
    }
    assert_eq!(spaces.excess(uid, 1).unwrap(), None);
    fs::write(place.files.join("one more"), "").unwrap();
    assert_eq!(spaces.excess(uid, 1).unwrap().unwrap(), "it has more than 1024 files");
}

#[test]
fn a_workspace_that_its_owner_made_unusable_is_laid_into_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (spaces, uid) = (spaces(dir.path()), Uuid::now_v7());
    let (spec, none) = (files("spec"), BTreeMap::new());
    let space = spaces.prepare(&wanted(uid, &none, &none)).unwrap().files;
    fs::create_dir_all(space.join("main.sh/x")).unwrap();
    path::set_mode(&space, 0o050).unwrap();
    spaces.prepare(&wanted(uid, &none, &spec)).unwrap();
    assert_eq!(fs::read_to_string(space.join("main.sh")).unwrap(), "spec");
    assert_eq!(fs::metadata(&space).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn nobody_else_may_enter_where_workspaces_lie() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("sandboxes");
    let dirs = [root.clone(), root.join(".disk"), root.join(".mounts")];
    for modes in [None, Some(0o711)] {
        for dir in &dirs {
            if let Some(mode) = modes {
                path::set_mode(dir, mode).unwrap();
            }
        }
        spaces(&root);
        for dir in &dirs {
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
        }
    }
    // Whoever could write there may have left a file system for root to mount.
    for dir in &dirs[..2] {
        path::set_mode(dir, 0o777).unwrap();
        fs::write(dir.join("x"), "").unwrap();
        let rules = DiskRules { mechanism: DiskChoice::Polled, reserve_mb: 0 };
        let refused = Workspaces::open(&root, false, &rules).unwrap_err();
        assert!(chain(&refused).contains("can be written to by others"), "{refused:?}");
        path::set_mode(dir, 0o700).unwrap();
    }
    spaces(&root);
}
