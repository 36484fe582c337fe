//! `sodiumd check`: the daemon's own reading of files, without a daemon.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::show;
use crate::config::Config;
use crate::desired::parse::parse;
use crate::desired::scan::{FILE_BYTES_MAX, FILE_COUNT_MAX, is_spec};
use sodium_sys::beneath::{Beneath, Links, ReadError};

/// Prints every fault with its place and the line it is in. Exit 2 if there is one.
pub(super) fn check(files: &[PathBuf], config: &Config) -> anyhow::Result<ExitCode> {
    let rules = crate::daemon::rules(config);
    let mut faults = 0;
    for file in &within(files)? {
        let bytes = read(file).with_context(|| format!("read {}", file.display()))?;
        match parse(&bytes, &rules) {
            Ok(documents) => {
                let names: Vec<&str> = documents.iter().map(|one| one.name.as_str()).collect();
                show::line(&format!("{}: ok ({})", file.display(), names.join(", ")))?;
            }
            Err(found) => {
                faults += found.len();
                for violation in found {
                    show::line(&picture(file, &bytes, &violation))?;
                }
            }
        }
    }
    Ok(ExitCode::from(if faults == 0 { 0 } else { 2 }))
}

/// Of directories, the files of specs that the daemon would read in them.
pub(super) fn within(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let names = Beneath::open(path).and_then(|dir| dir.names(FILE_COUNT_MAX));
        let names = names.with_context(|| format!("read {}", path.display()))?;
        let mut names: Vec<String> =
            names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| is_spec(name));
        anyhow::ensure!(!names.is_empty(), "{} has no file of specs in it", path.display());
        names.sort_unstable();
        files.extend(names.into_iter().map(|name| path.join(name)));
    }
    Ok(files)
}

/// As the daemon reads it: whoever may write specs may leave a link to anything among them, and what is in a file is
/// sent to it, or printed. `-` is standard input.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        anyhow::ensure!(bytes.len() as u64 <= FILE_BYTES_MAX, "more than {FILE_BYTES_MAX} bytes");
        return Ok(bytes);
    }
    let (dir, name) = Beneath::parent_of(file)?;
    let read = dir.read(&name, Links::Within, FILE_BYTES_MAX);
    let hint = "what is no file of its directory is read from standard input, as `-`";
    read.map_err(|error| match error {
        ReadError::Outside | ReadError::Link | ReadError::NotAFile => {
            anyhow::Error::new(error).context(hint)
        }
        ReadError::TooLarge { .. } | ReadError::Sys(_) => error.into(),
    })
}

/// The fault, and the line it is in with a mark below.
fn picture(file: &Path, bytes: &[u8], violation: &sodium_model::Violation) -> String {
    let head = format!("{}:{violation}", file.display());
    let Some(at) = violation.at else { return head };
    let index = usize::try_from(at.line.saturating_sub(1)).unwrap_or(usize::MAX);
    let text = String::from_utf8_lossy(bytes);
    let Some(line) = text.lines().nth(index) else { return head };
    let indent = " ".repeat(usize::try_from(at.column.saturating_sub(1)).unwrap_or(0));
    let number = at.line;
    let margin = " ".repeat(number.to_string().len());
    format!("{head}\n  {number} | {line}\n  {margin} | {indent}^")
}
