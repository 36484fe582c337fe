//! The image files: reading `images/*.json`. Their runtimes are the host's own for now.
//!
//! Regular files that are in the directory itself, and nothing that a link leads to: see [`Beneath`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use sodium_model::image::Image;
use sodium_model::text::bounded;
use sodium_sys::beneath::{Beneath, Links};

/// Larger than this is no image file: all of them are in memory.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// So many files, and so much of all, are read.
const FILE_COUNT_MAX: usize = 1_000;
/// Of a directory with more names in it, whatever they are, nothing is read.
const NAME_COUNT_MAX: usize = 10_000;
const BYTES_MAX: usize = 64 << 20;

/// Of what is wrong with one, so much is told.
const SAID_BYTES_MAX: usize = 1024;

/// A file that is no image, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadImage {
    pub path: PathBuf,
    pub message: String,
}

/// All images of the directory by id, and the files that are none. A bad file is left out; the
/// others are served.
pub fn load(dir: &Path) -> (BTreeMap<String, Image>, Vec<BadImage>) {
    let mut images = BTreeMap::new();
    let mut bad = Vec::new();
    let Ok(dir) = Beneath::open(dir) else { return (images, bad) };
    let is_image = |name: &OsString| {
        let path = Path::new(name);
        path.extension().is_some_and(|extension| extension == "json")
    };
    let mut names = match dir.names(NAME_COUNT_MAX) {
        Ok(names) => names,
        Err(error) => {
            let path = dir.path(OsStr::new(""));
            bad.push(BadImage { path, message: error.source.to_string() });
            return (images, bad);
        }
    };
    names.retain(is_image);
    names.sort_unstable();
    let mut room = BYTES_MAX;
    for (index, name) in names.into_iter().enumerate() {
        let path = dir.path(&name);
        if index == FILE_COUNT_MAX {
            let message = format!("it and what follows is more than {FILE_COUNT_MAX} files");
            bad.push(BadImage { path, message });
            break;
        }
        match read(&dir, &name, &mut room) {
            Ok(image) if images.contains_key(&image.id) => {
                let message = format!("id {:?} is taken by another file", image.id);
                bad.push(BadImage { path, message });
            }
            Ok(image) => drop(images.insert(image.id.clone(), image)),
            // It quotes what somebody wrote.
            Err(message) => bad.push(BadImage { path, message: bounded(message, SAID_BYTES_MAX) }),
        }
    }
    (images, bad)
}

/// Reads one, and takes its size from what may still be read.
fn read(dir: &Beneath, name: &OsStr, room: &mut usize) -> Result<Image, String> {
    let bytes = dir.read(name, Links::Refused, FILE_BYTES_MAX);
    let bytes = bytes.map_err(|error| error.to_string())?;
    *room = room.checked_sub(bytes.len()).ok_or_else(|| {
        format!("with the files before it, it is more than {} MiB", BYTES_MAX >> 20)
    })?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    // serde would take a list for the values in the order of the fields.
    if text.trim_start().starts_with('[') {
        return Err("expected an object, found a list".to_owned());
    }
    let image: Image =
        serde_json::from_slice(text.as_bytes()).map_err(|error| error.to_string())?;
    let faults = image.faults();
    if faults.is_empty() { Ok(image) } else { Err(faults.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_shipped_images_are_the_five_the_seed_had() {
        let (images, bad) = load(Path::new("images"));
        assert_eq!(bad, []);
        let ids: Vec<&str> = images.keys().map(String::as_str).collect();
        assert_eq!(ids, ["bash", "deno", "javascript", "python", "typescript"]);
    }

    #[test]
    fn a_bad_file_is_told_and_the_others_are_served() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"id": "a", "name": "A", "runtime": "bash", "startup": "bash"}"#;
        fs::write(dir.path().join("a.json"), good).unwrap();
        fs::write(dir.path().join("b.json"), good).unwrap();
        fs::write(dir.path().join("c.json"), "{").unwrap();
        let (images, bad) = load(dir.path());
        assert_eq!((images.len(), bad.len()), (1, 2));
        assert!(bad[0].message.contains("taken"), "{bad:?}");
    }

    #[test]
    fn only_so_many_are_read_and_so_much_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |index: usize, padding: usize| {
            let text = format!(
                r#"{{"id": "i{index}", "name": "A", "runtime": "bash", "startup": "bash"{}}}"#,
                " ".repeat(padding)
            );
            fs::write(dir.path().join(format!("{index:04}.json")), text).unwrap();
        };
        (0..FILE_COUNT_MAX + 5).for_each(|index| file(index, 0));
        let (images, bad) = load(dir.path());
        assert_eq!((images.len(), bad.len()), (FILE_COUNT_MAX, 1));
        assert!(bad[0].message.contains("more than 1000 files"), "{bad:?}");
        (0..70).for_each(|index| file(index, 1_000_000));
        let (images, bad) = load(dir.path());
        assert!(bad[0].message.contains("more than 64 MiB"), "{bad:?}");
        assert!((70..FILE_COUNT_MAX).contains(&images.len()), "{}", images.len());
    }

    #[test]
    fn what_is_no_file_of_the_directory_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        let good = r#"{"id": "a", "name": "A", "runtime": "bash", "startup": "bash"}"#;
        let inside = dir.path().join("images");
        fs::create_dir(&inside).unwrap();
        fs::write(inside.join("a.json"), good).unwrap();
        fs::write(dir.path().join("b.json"), good.replace("\"a\"", "\"b\"")).unwrap();
        for (target, name) in
            [("../b.json", "b.json"), ("/dev/zero", "c.json"), ("a.json", "d.json")]
        {
            std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        }
        let pipe = std::process::Command::new("mkfifo").arg(inside.join("e.json")).status();
        assert!(pipe.unwrap().success());
        fs::write(inside.join("f.json"), vec![b' '; (1 << 20) + 1]).unwrap();
        let (images, bad) = load(&inside);
        assert_eq!(images.len(), 1, "{images:?}");
        let messages: Vec<&str> = bad.iter().map(|bad| bad.message.as_str()).collect();
        let link = "is a symlink, which is not followed";
        assert_eq!(messages[..4], [link, link, link, "is not a file"]);
        assert_eq!(messages[4..], ["is 1048577 bytes, the limit is 1048576"]);
    }
}
