//! The directory of specs, as a source: what its files say, and what follows for the sandboxes.
//!
//! The truth is a full scan; a notification only says that it is worth scanning sooner. Scanning
//! finds which texts changed, parsing turns each into documents or faults, and [`merge`] decides,
//! purely, what that means: nothing here starts or stops anything.
//!
//! ```text
//!   notify --hint--> scan (stat, digest) --> parse --> merge(with the store's snapshot) --> FileChanges
//! ```

mod edit;
pub mod merge;
pub mod parse;
pub mod scan;
pub mod watch;
pub mod write;
pub mod yaml;
