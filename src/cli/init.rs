//! `sodiumd init`: a configuration, images and examples to begin with, beside whatever is there already.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::show;
use crate::config;
use sodium_sys as sys;

/// A file that is written, whether it may get to hold a secret, and what is in it.
type Given = (&'static str, bool, &'static str);

/// The files of this repository, as they were when this program was built.
const FILES: &[Given] = &[
    ("config.json", true, include_str!("../../config.json")),
    ("desired/crasher.yaml", false, include_str!("../../desired/crasher.yaml")),
    ("desired/job.yaml", false, include_str!("../../desired/job.yaml")),
    ("desired/ticker.yaml", false, include_str!("../../desired/ticker.yaml")),
    ("desired/web.yaml", false, include_str!("../../desired/web.yaml")),
    ("images/bash.json", false, include_str!("../../images/bash.json")),
    ("images/deno.json", false, include_str!("../../images/deno.json")),
    ("images/javascript.json", false, include_str!("../../images/javascript.json")),
    ("images/python.json", false, include_str!("../../images/python.json")),
    ("images/typescript.json", false, include_str!("../../images/typescript.json")),
    ("sandbox.schema.json", false, include_str!("../../sandbox.schema.json")),
];

/// Writes what is not there, and says so; says what comes next.
pub(super) fn init(dir: &Path) -> anyhow::Result<()> {
    let written = write(dir)?;
    for (name, is_new) in &written {
        let path = dir.join(name);
        let word = if *is_new { "wrote" } else { "kept " };
        show::complain(&format!("{word} {}", path.display()));
    }
    let config = dir.join("config.json");
    show::complain("next:");
    if is_served(&config) {
        show::complain("  sodiumd get");
        return Ok(());
    }
    let config = sys::trust::word(&config);
    if sys::is_root() {
        show::complain(&format!("  sodiumd uids reserve --config {config}"));
    }
    show::complain(&format!("  sodiumd doctor --config {config}"));
    show::complain(&format!("  sodiumd run --config {config}"));
    Ok(())
}

/// Whether a daemon serves this configuration already.
fn is_served(config: &Path) -> bool {
    let socket = config::load(config).map(|config| config.socket());
    socket.is_ok_and(|socket| sys::socket::connect(&socket).is_ok())
}

/// Each file, and whether it was written. Examples are for who begins: none is put among the specs of somebody else.
fn write(dir: &Path) -> anyhow::Result<Vec<(&'static str, bool)>> {
    let has_specs = dir.join("desired").read_dir().is_ok_and(|mut specs| specs.next().is_some());
    let mut written = Vec::new();
    for (name, may_hold_secrets, text) in FILES {
        if has_specs && name.starts_with("desired/") {
            continue;
        }
        let path = dir.join(name);
        let is_new = write_new(&path, *may_hold_secrets, text)
            .with_context(|| format!("write {}", path.display()))?;
        written.push((*name, is_new));
    }
    Ok(written)
}

fn write_new(path: &PathBuf, may_hold_secrets: bool, text: &str) -> std::io::Result<bool> {
    let mode = if may_hold_secrets { 0o600 } else { 0o644 };
    let above = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(above)?;
    match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn all_that_is_shipped_is_written_once_and_nothing_of_anybody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(write(dir.path()).unwrap().iter().all(|(_, is_new)| *is_new));
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for name in ["desired", "images"] {
            let names = |dir: &Path| -> BTreeSet<_> {
                fs::read_dir(dir.join(name)).unwrap().map(|one| one.unwrap().file_name()).collect()
            };
            assert_eq!(names(dir.path()), names(here), "{name}");
        }
        assert_eq!(fs::metadata(at("config.json")).unwrap().mode() & 0o777, 0o600);
        crate::config::load(&at("config.json")).unwrap();
        // What the examples name as their schema is there.
        let web = fs::read_to_string(at("desired/web.yaml")).unwrap();
        let schema = web.lines().next().unwrap().split_once("$schema=").unwrap().1;
        assert!(at("desired").join(schema).exists());
        // What is there stays, and who has specs gets no examples.
        fs::write(at("config.json"), "{}").unwrap();
        fs::remove_file(at("images/bash.json")).unwrap();
        fs::remove_file(at("desired/web.yaml")).unwrap();
        let new: Vec<_> = write(dir.path()).unwrap().into_iter().filter(|one| one.1).collect();
        assert_eq!(new, [("images/bash.json", true)]);
        assert_eq!(fs::read_to_string(at("config.json")).unwrap(), "{}");
        assert!(!at("desired/web.yaml").exists());
    }

    #[test]
    fn the_examples_are_of_the_type_that_editors_are_told_of() {
        for (name, _, text) in FILES.iter().filter(|(name, ..)| name.ends_with(".yaml")) {
            let document = serde_yaml::from_str::<sodium_api::Document>(text);
            assert!(document.is_ok(), "{name}: {document:?}");
        }
    }
}
