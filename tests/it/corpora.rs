//! What the fuzzer was given and what it found, once more. `make fuzz` looks for more.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use targets::TARGETS;

fn corpora() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus"))
}

#[test]
fn whatever_was_found_stays_mended() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let dir = corpora().join(name);
        let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort_unstable();
        assert!(!paths.is_empty(), "{} is empty", dir.display());
        for path in paths {
            let bytes = fs::read(&path).unwrap();
            // A thread of its own, so that what fails can be named.
            let run = std::thread::Builder::new().name(path.display().to_string());
            if run.spawn(move || target(&bytes)).unwrap().join().is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_corpus_has_a_target_and_every_target_is_fuzzed() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let here = |dir: &Path| -> BTreeSet<String> {
        let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(here(corpora()), names);
    assert_eq!(here(&corpora().with_file_name("bin")), names);
}
