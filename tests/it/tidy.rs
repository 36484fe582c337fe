//! Rules about the source itself. Breaking one fails `cargo test`, not a review.

use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("fault", &[]),
    ("live", &[]),
    ("model", &[]),
    ("plan", &["model"]),
    ("sys", &[]),
    ("config", &["model", "sys"]),
    ("store", &["error", "model", "sys"]),
    ("desired", &["error", "model", "store", "sys"]),
    ("image", &["model", "sys"]),
    ("shim", &["error", "sys"]),
    ("driver", &["error", "model", "sys", "shim"]),
    ("reconcile", &["error", "model", "plan", "driver", "image", "store", "shim"]),
    ("api", &["error", "model", "plan", "desired", "store", "shim", "sys", "reconcile"]),
    (
        "daemon",
        &[
            "api",
            "config",
            "desired",
            "driver",
            "error",
            "image",
            "model",
            "reconcile",
            "store",
            "sys",
        ],
    ),
    ("doctor", &["config", "driver", "error", "model", "sys"]),
    (
        "cli",
        &["config", "daemon", "doctor", "desired", "driver", "model", "store", "sys", "telemetry"],
    ),
    ("telemetry", &[]),
    ("protocol_model", &["model", "plan"]),
    ("simulation", &["desired", "driver", "model", "reconcile", "store"]),
];

/// Words that would make a pure module impure.
const IMPURE: &[&str] =
    &["tokio", "std::fs", "std::process", "Instant::now", "SystemTime", "nix::"];

/// Each outside crate and the only modules that may know it.
const ADAPTERS: &[(&str, &[&str])] = &[
    ("axum", &["api", "daemon"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("http_body_util", &["cli"]),
    ("hyper", &["api", "cli"]),
    ("hyper_util", &["api", "cli"]),
    ("tower_service", &["api"]),
    ("comfy_table", &["cli"]),
    ("rusqlite", &["store"]),
    ("notify", &["desired"]),
    ("serde_yaml", &["desired"]),
    ("stateright", &["protocol_model"]),
    ("nix", &["sys"]),
    ("libc", &["sys"]),
    ("sd_notify", &["sys"]),
    ("tokio", &["api", "cli", "daemon", "desired", "reconcile", "simulation", "store"]),
];

/// Where root works in directories that others may write to, and who that is. Files are used by descriptor
/// there, through `sys::beneath`: a path leads wherever somebody has it lead meanwhile.
const BY_DESCRIPTOR: &[(&str, &str)] = &[
    ("src/desired", "whoever may write specs, such as a Git hook"),
    ("src/image.rs", "whoever may write images"),
    ("src/store/backup.rs", "the owner of the directory that a copy goes to or comes from"),
];

/// Where paths are followed that lead through directories of the daemon's own alone, mode 0700. What else comes to use
/// paths has to be looked at first.
const BY_OWN_PATHS: &[&str] = &[
    "src/driver/forks.rs",
    "src/driver/host.rs",
    "src/driver/runsc.rs",
    "src/driver/runsc/counted.rs",
    "src/driver/runsc/platform.rs",
    "src/driver/shimmed.rs",
    "src/driver/shimmed/begin.rs",
    "src/driver/shimmed/checkpoint.rs",
    "src/driver/shimmed/convert.rs",
    "src/driver/shimmed/foreign.rs",
    "src/driver/shimmed/warm.rs",
    "src/driver/shown.rs",
    "src/driver/tree.rs",
    "src/driver/volume.rs",
    "src/driver/volume/aside.rs",
    "src/driver/volume/btrfs.rs",
    "src/driver/volume/image.rs",
    "src/driver/workspace.rs",
    "src/driver/workspace/retained.rs",
    "src/shim/child.rs",
    "src/shim/child/room.rs",
    "src/shim/claim.rs",
    "src/shim/exec.rs",
    "src/shim/exit.rs",
    "src/shim/forkserver.rs",
    "src/shim/init.rs",
    "src/shim/main.rs",
    "src/shim/probe.rs",
    "src/shim/runtime.rs",
    "src/shim/spool.rs",
    "src/shim/spool/read.rs",
    "src/shim/spool/write.rs",
];

/// Ways to use a file by its path; `fs::` is looked for as well.
const BY_PATH: &[&str] = &["std::fs", "File::open", "File::create", "File::options", "OpenOptions"];

/// Names that say nothing about what they name.
const EMPTY_NAMES: &[&str] = &["manager", "helper", "util", "common", "misc", "processor"];

const FN_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

#[test]
fn modules_import_only_what_is_below_them() {
    for (file, text) in sources() {
        if matches!(module(&file), "lib" | "main" | "shim_main") {
            continue;
        }
        let listed = LAYERS.iter().find(|(name, _)| *name == module(&file));
        let (_, allowed) = listed.unwrap_or_else(|| panic!("add {} to LAYERS", module(&file)));
        for (line, used) in uses(&text) {
            let own = used == module(&file);
            // Anything may be made to fail, and to change while it is used.
            assert!(
                own || matches!(used, "fault" | "live") || allowed.contains(&used),
                "{}:{line}: {} must not use {used}",
                file.display(),
                module(&file),
            );
        }
    }
}

#[test]
fn pure_modules_stay_pure() {
    for (file, text) in sources() {
        if matches!(module(&file), "error" | "model" | "plan") {
            for word in IMPURE {
                assert!(!production(&text).contains(word), "{}: {word}", file.display());
            }
        }
    }
}

#[test]
fn outside_crates_are_known_only_to_their_adapters() {
    for (file, text) in sources() {
        for (name, allowed) in ADAPTERS {
            let used = production(&text).lines().any(|line| {
                let code = line.trim_start();
                !code.starts_with("//") && has_path(code, name)
            });
            let fits = allowed.contains(&module(&file));
            assert!(!used || fits, "{}: only {allowed:?} may use {name}", file.display());
        }
    }
}

#[test]
fn files_that_others_may_swap_are_used_by_descriptor() {
    for (place, who) in BY_DESCRIPTOR {
        let mut looked_at = 0;
        for (file, text) in sources() {
            if !file.starts_with(place) || file.ends_with("tests.rs") {
                continue;
            }
            looked_at += 1;
            if let Some(line) = line_by_path(&text) {
                panic!("{}:{line}: {who} may swap it; use sys::beneath", file.display());
            }
        }
        assert!(looked_at > 0, "{place} is not there any more");
    }
}

#[test]
fn what_follows_paths_is_known() {
    for (file, text) in sources() {
        let is_watched = file.starts_with("src/driver") || file.starts_with("src/shim");
        let is_known = BY_OWN_PATHS.iter().any(|known| file.ends_with(known));
        if is_watched && !is_known && !file.ends_with("tests.rs") {
            let line = line_by_path(&text);
            assert!(line.is_none(), "{}:{line:?}: who may swap it?", file.display());
        }
    }
}

/// The first line that uses a file by its path.
fn line_by_path(text: &str) -> Option<usize> {
    let is_by_path = |line: &str| {
        let code = line.trim_start();
        let by_path = BY_PATH.iter().any(|word| code.contains(word)) || has_path(code, "fs");
        by_path && !code.starts_with("//")
    };
    production(text).lines().position(is_by_path).map(|index| index + 1)
}

/// What docs/security.md says is attacked by a test is.
#[test]
fn every_attack_that_is_named_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut count = 0;
    for word in page.split('`').skip(1).step_by(2) {
        let Some((file, name)) = word.split_once("::").filter(|(_, name)| !name.contains(':'))
        else {
            continue;
        };
        let Ok(text) = std::fs::read_to_string(root.join(format!("tests/it/{file}.rs"))) else {
            continue;
        };
        count += 1;
        assert!(name == "*" || text.contains(&format!("fn {name}(")), "{word} is no test");
    }
    assert!(count > 30, "{count} tests are named");
}

/// Whether the code has `name::`, and not as the end of a longer name.
fn has_path(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|found| found.is_alphanumeric() || found == '_' || found == ':')
    })
}

/// Such a program looks at a path, and then again: what it finds there the second time may be somebody else's.
#[test]
fn no_program_is_run_over_a_tenants_files() {
    for (file, text) in sources() {
        for program in ["cp", "mv", "rm", "ln", "chown", "chmod", "tar", "rsync", "find"] {
            let run = production(&text).contains(&format!("\"{program}\""));
            let fits = module(&file) != "driver" || !run;
            assert!(fits, "{}: {program}; see sys::disk::walk", file.display());
        }
    }
}

#[test]
fn every_file_opens_with_its_purpose_and_ends_in_time() {
    for (file, text) in sources() {
        assert!(text.starts_with("//! "), "{}: no //! header", file.display());
        let lines = production(&text).lines().count();
        assert!(lines <= FILE_LINES_MAX, "{}: {lines} lines", file.display());
        for (line, length) in functions(&text) {
            assert!(length <= FN_LINES_MAX, "{}:{line}: fn of {length} lines", file.display());
        }
    }
}

#[test]
fn nothing_is_left_for_later_and_names_say_something() {
    for (file, text) in sources() {
        for word in ["FIXME", "TODO", "XXX"] {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(!EMPTY_NAMES.contains(&name), "{}", file.display());
    }
}

/// `src/driver/bwrap.rs` belongs to `driver`.
fn module(file: &Path) -> &str {
    let part = file.components().nth(1).expect("src/…").as_os_str().to_str().expect("UTF-8");
    part.strip_suffix(".rs").unwrap_or(part)
}

fn production(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

fn uses(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(index, line)| {
        line.match_indices("crate::").filter_map(move |(at, found)| {
            let path = &line[at + found.len()..];
            let word = path.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
            let comment = line.trim_start().starts_with("//");
            (!comment && !word.is_empty()).then_some((index + 1, word))
        })
    })
}

/// Start line and length of each function, by rustfmt's indentation.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words: Vec<&str> = code.split_whitespace().take(4).collect();
        let is_fn = words.iter().position(|word| *word == "fn").is_some_and(|at| {
            words[..at]
                .iter()
                .all(|word| word.starts_with("pub") || *word == "async" || *word == "const")
        });
        if !is_fn {
            continue;
        }
        // A declaration without a body, as in a trait.
        let header = lines[start..].iter().find(|line| line.ends_with(['{', ';']));
        if header.is_none_or(|line| line.ends_with(';')) {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(line.len() - code.len()));
        if let Some(length) = lines[start..].iter().position(|line| *line == closing) {
            found.push((start + 1, length + 1));
        }
    }
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::from("src")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("run from the crate root") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}
