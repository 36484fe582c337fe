//! Rules about the source itself. Breaking one fails `cargo test`, not a review.

use std::fs;
use std::path::{Path, PathBuf};

/// Which crate may depend on which of ours. That none does otherwise is the compiler's business, and that this stays so is ours.
const CRATES: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("model", &[]),
    ("api", &["model"]),
    ("shim", &["sys"]),
    ("runtime", &["model", "shim", "sys"]),
];

/// Who may import whom, in the daemon itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("live", &[]),
    ("telemetry", &[]),
    ("config", &["sodium_model", "sodium_sys"]),
    ("image", &["sodium_model", "sodium_sys"]),
    ("store", &["sodium_model", "sodium_sys"]),
    ("desired", &["sodium_model", "sodium_sys", "store"]),
    ("reconcile", &["sodium_model", "sodium_runtime", "sodium_shim", "image", "store"]),
    (
        "api",
        &[
            "sodium_api",
            "sodium_model",
            "sodium_shim",
            "sodium_sys",
            "desired",
            "store",
            "reconcile",
        ],
    ),
    (
        "daemon",
        &[
            "sodium_model",
            "sodium_runtime",
            "sodium_sys",
            "api",
            "config",
            "desired",
            "image",
            "reconcile",
            "store",
        ],
    ),
    ("doctor", &["sodium_model", "sodium_runtime", "sodium_sys", "config"]),
    (
        "cli",
        &[
            "sodium_api",
            "sodium_model",
            "sodium_runtime",
            "sodium_sys",
            "config",
            "daemon",
            "doctor",
            "desired",
            "store",
            "telemetry",
        ],
    ),
    ("protocol_model", &["sodium_model"]),
    ("simulation", &["sodium_model", "sodium_runtime", "desired", "reconcile", "store"]),
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
    ("schemars", &["api", "model"]),
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
    "crates/runtime/src/supervise/spawner.rs",
    "crates/runtime/src/supervise/host.rs",
    "crates/runtime/src/gvisor/checkpoint.rs",
    "crates/runtime/src/gvisor/counted.rs",
    "crates/runtime/src/gvisor/platform.rs",
    "crates/runtime/src/gvisor/runsc.rs",
    "crates/runtime/src/gvisor/warm.rs",
    "crates/runtime/src/supervise.rs",
    "crates/runtime/src/supervise/launch.rs",
    "crates/runtime/src/supervise/convert.rs",
    "crates/runtime/src/supervise/skew.rs",
    "crates/runtime/src/rootfs.rs",
    "crates/runtime/src/storage/fsops.rs",
    "crates/runtime/src/storage/volume.rs",
    "crates/runtime/src/storage/volume/retained.rs",
    "crates/runtime/src/storage/volume/btrfs.rs",
    "crates/runtime/src/storage/volume/image.rs",
    "crates/runtime/src/storage/workspace.rs",
    "crates/runtime/src/storage/workspace/retained.rs",
    "crates/shim/src/child.rs",
    "crates/shim/src/child/room.rs",
    "crates/shim/src/claim.rs",
    "crates/shim/src/exec.rs",
    "crates/shim/src/exit.rs",
    "crates/shim/src/forkserver.rs",
    "crates/shim/src/init.rs",
    "crates/shim/src/run.rs",
    "crates/shim/src/probe.rs",
    "crates/shim/src/runtime.rs",
    "crates/shim/src/spool.rs",
    "crates/shim/src/spool/read.rs",
    "crates/shim/src/spool/write.rs",
];

/// Ways to use a file by its path; `fs::` is looked for as well.
const BY_PATH: &[&str] = &["std::fs", "File::open", "File::create", "File::options", "OpenOptions"];

/// Pages that lead through the source.
const GUIDES: &[&str] = &["CONTRIBUTING.md", "docs/architecture.md"];
/// What a path in them begins with.
const GUIDED: &[&str] = &["src/", "crates/", "tests/", "docs/"];

/// Names that say nothing about what they name.
const EMPTY_NAMES: &[&str] = &["manager", "helper", "util", "common", "misc", "processor"];

/// What no string that somebody may read says any more: the field has a word for each.
const OLD_WORDS: &[&str] = &[
    "to be had",
    "look failed",
    "written anew",
    "begins anew",
    "goes on",
    "go on as",
    "stands still",
    "stand still",
    "hunted",
    "last good text",
    "want of memory",
    "told otherwise",
    "not started ahead",
    "taken over; ",
    "the wish",
];

const FN_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

#[test]
fn modules_import_only_what_is_below_them() {
    for (file, text) in sources() {
        let own = module(&file);
        if !file.starts_with("src") || matches!(own, "lib" | "main" | "shim_main") {
            continue;
        }
        let listed = LAYERS.iter().find(|(name, _)| *name == own);
        let (_, allowed) = listed.unwrap_or_else(|| panic!("add {own} to LAYERS"));
        for (line, used, path) in uses(&text) {
            // Anything may be made to fail, to change while it is used, and to say why it did not work.
            let shared = used == "sodium_sys" && ["fault", "error"].contains(&path);
            let anyone = used == own || used == "live" || shared;
            let place = file.display();
            assert!(anyone || allowed.contains(&used), "{place}:{line}: {own} must not use {used}");
        }
    }
}

#[test]
fn crates_depend_only_on_what_is_below_them() {
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(format!("crates/{name}/Cargo.toml")).expect("a manifest");
        let needed = manifest.split("[dev-dependencies]").next().unwrap_or_default().lines();
        for line in needed.filter_map(|line| line.strip_prefix("sodium-")) {
            let used = line.split('.').next().unwrap_or_default();
            assert!(allowed.contains(&used), "crates/{name} must not use {used}");
        }
    }
    let known = |dir: &Path| CRATES.iter().any(|(name, _)| dir.ends_with(name));
    let all = fs::read_dir("crates").expect("run from the root").map(|entry| entry.unwrap().path());
    assert_eq!(all.filter(|dir| !known(dir)).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

#[test]
fn pure_modules_stay_pure() {
    for (file, text) in sources() {
        if file.starts_with("crates/model") || file.starts_with("crates/api") {
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
        let is_watched =
            file.starts_with("crates/runtime/src") || file.starts_with("crates/shim/src");
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

/// `src/api.rs` is a path, and `src/api.rs::router` is one with what it defines.
#[test]
fn every_path_that_the_guides_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for guide in GUIDES {
        let page = fs::read_to_string(root.join(guide)).expect("a guide");
        let mut count = 0;
        for span in page.split('`').skip(1).step_by(2) {
            let mut words = span.split("::");
            let path = words.next().and_then(|path| path.split([' ', '(']).next());
            let path = path.unwrap_or_default();
            if !GUIDED.iter().any(|top| path.starts_with(top)) {
                continue;
            }
            count += 1;
            assert!(root.join(path).exists(), "{guide}: {path} is not there");
            for name in words {
                let text = fs::read_to_string(root.join(path)).unwrap_or_default();
                let name = name.trim_end_matches("()");
                assert!(defines(&text, name), "{guide}: {path} has no {name}");
            }
        }
        assert!(count > 100, "{guide}: {count} paths are named");
    }
}

/// Whether a function, a type or a constant of that name is defined there.
fn defines(text: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"];
    text.lines().any(|line| {
        let words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.windows(2).any(|pair| kinds.contains(&pair[0]) && pair[1] == name)
    })
}

#[test]
fn the_table_of_crates_says_what_each_may_use() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).expect("a guide");
    let mut told = Vec::new();
    for line in page.lines() {
        let row = line.strip_prefix("| `crates/").and_then(|row| row.split_once('`'));
        let Some((name, cells)) = row else { continue };
        let used = cells.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        let used: Vec<&str> = used.trim().split(", ").filter(|one| *one != "–").collect();
        told.push((name, used));
    }
    let known: Vec<(&str, Vec<&str>)> =
        CRATES.iter().map(|(name, used)| (*name, used.to_vec())).collect();
    assert_eq!(told, known);
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
            let fits = module(&file) != "runtime" || !run;
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

#[test]
fn strings_have_the_words_of_the_field() {
    for (file, text) in sources() {
        // A comment is for who reads the source. What a sentence of several lines begins with is looked at as well.
        let code = production(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for (line, code) in code.enumerate() {
            let literals = code.split('"').skip(1).step_by(2);
            for literal in literals {
                let old = OLD_WORDS.iter().find(|word| literal.contains(*word));
                assert!(
                    old.is_none(),
                    "{}: {old:?} in {literal:?}, line {line} or after",
                    file.display()
                );
            }
        }
    }
}

/// `src/api/wire.rs` belongs to `api`, and `crates/runtime/src/bubblewrap.rs` to `runtime`.
fn module(file: &Path) -> &str {
    let part = file.components().nth(1).expect("src/…").as_os_str().to_str().expect("UTF-8");
    part.strip_suffix(".rs").unwrap_or(part)
}

fn production(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

/// Line, module or crate of ours, and what of it: `store` and `rows`, `sodium_sys` and `lock`.
fn uses(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let word =
        |path: &str| path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    text.lines().enumerate().flat_map(move |(index, line)| {
        let found = line.match_indices("crate::").map(|(at, found)| at + found.len());
        let found = found.chain(line.match_indices("sodium_").map(|(at, _)| at));
        found.filter_map(move |at| {
            let (used, rest) = line[at..].split_at(word(&line[at..]));
            let path = rest.trim_start_matches(':');
            let comment = line.trim_start().starts_with("//");
            let path = &path[..word(path)];
            (!comment && !used.is_empty()).then_some((index + 1, used, path))
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
    let mut pending = vec![PathBuf::from("src"), PathBuf::from("crates")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("run from the root") {
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
