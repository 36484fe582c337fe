//! The database's shape: opening, settings, migrations.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};

use crate::store::StoreError;

/// Applied in order; `user_version` counts how many. Append, never edit.
const MIGRATIONS: &[&str] = &[include_str!("../../migrations/0001_init.sql")];

/// The version this release writes.
pub(super) fn newest() -> u32 {
    u32::try_from(MIGRATIONS.len()).expect("a handful of migrations")
}

/// Opens the file and brings it to the newest schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |op| {
        let path: Arc<Path> = path.into();
        move |source| StoreError::Sqlite { op, path, source: Arc::new(source) }
    };
    let mut connection = Connection::open(path).map_err(failed("open the database"))?;
    configure(&connection).map_err(failed("configure the database"))?;
    let read = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let found: u32 = read.map_err(failed("read the schema's version"))?;
    let known = newest();
    if found > known {
        return Err(StoreError::Newer { path: path.into(), found, known });
    }
    migrate(&mut connection, found).map_err(failed("migrate the database"))?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // An answered write must survive a loss of power; NORMAL would sync at checkpoints only.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Everything read is in the snapshot; these pages serve writes alone. In KiB, as a negative.
    connection.pragma_update(None, "cache_size", -512)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.busy_timeout(std::time::Duration::from_secs(5))
}

fn migrate(connection: &mut Connection, applied: u32) -> rusqlite::Result<()> {
    for (version, sql) in (1_u32..).zip(MIGRATIONS).filter(|(version, _)| *version > applied) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
