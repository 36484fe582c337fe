//! Writing a spec into the directory, for an API that keeps its sandboxes there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::model::SandboxName;

/// The file that the API keeps this sandbox in.
pub fn file_name(name: &SandboxName) -> String {
    format!("{name}.yaml")
}

/// Puts a text there, whole or not at all, durably: temporary name, fsync, rename, fsync.
pub fn write(dir: &Path, name: &SandboxName, text: &str) -> io::Result<()> {
    let (target, temporary) = paths(dir, name);
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &target)?;
    File::open(dir)?.sync_all()
}

/// Takes it away, durably. One that is gone already is fine.
pub fn remove(dir: &Path, name: &SandboxName) -> io::Result<()> {
    match fs::remove_file(paths(dir, name).0) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => (),
    }
    File::open(dir)?.sync_all()
}

/// The temporary name begins with a dot, so that no scan takes it for a spec.
fn paths(dir: &Path, name: &SandboxName) -> (PathBuf, PathBuf) {
    let file = file_name(name);
    (dir.join(&file), dir.join(format!(".{file}.new")))
}
