//! The image files: reading `images/*.json`. Their runtimes are the host's own for now.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::model::image::Image;

/// Larger than this is no image file.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort_unstable();
    for path in paths {
        match read(&path) {
            Ok(image) if images.contains_key(&image.id) => {
                let message = format!("id {:?} is taken by another file", image.id);
                bad.push(BadImage { path, message });
            }
            Ok(image) => drop(images.insert(image.id.clone(), image)),
            Err(message) => bad.push(BadImage { path, message }),
        }
    }
    (images, bad)
}

fn read(path: &Path) -> Result<Image, String> {
    let len = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if len > FILE_BYTES_MAX {
        return Err(format!("{len} bytes, the limit is {FILE_BYTES_MAX}"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    // serde would take a list for the values in the order of the fields.
    if text.trim_start().starts_with('[') {
        return Err("expected an object, found a list".to_owned());
    }
    let image: Image = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let faults = image.faults();
    if faults.is_empty() { Ok(image) } else { Err(faults.join("; ")) }
}

#[cfg(test)]
mod tests {
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
}
