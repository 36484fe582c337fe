//! Files that say what something was when it was last looked at.

use std::path::Path;

use serde_json::Value;

/// Set SODIUM_GOLDEN to write the file instead, and read what changed.
#[track_caller]
pub fn compare(name: &str, found: &Value) {
    compare_at(&Path::new("tests/golden").join(name), found);
}

/// The same of a file that others read as well, by its path in this repository.
#[track_caller]
pub fn compare_at(path: &Path, found: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = format!("{}\n", serde_json::to_string_pretty(found).unwrap());
    if std::env::var_os("SODIUM_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let hint = "SODIUM_GOLDEN=1 cargo test --test it -- openapi gvisor writes it";
    assert!(known == text, "{} is not what there is now; {hint}", path.display());
}
