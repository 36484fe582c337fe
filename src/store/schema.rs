//! The database's shape: opening, settings, migrations.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior};

use crate::store::StoreError;
use sodium_sys::fault::{self, Bug};

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
    check(&connection).map_err(failed("check the database"))?;
    bring_up(&mut connection, path, found, MIGRATIONS).map_err(failed("migrate the database"))?;
    Ok(connection)
}

/// Makes a database where there is none.
pub(super) fn create(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    configure(&connection)?;
    bring_up(&mut connection, path, 0, MIGRATIONS)?;
    Ok(connection)
}

/// Applies what was not applied yet. What was there is copied beside it before it is changed.
fn bring_up(
    connection: &mut Connection,
    path: &Path,
    found: u32,
    migrations: &[&str],
) -> rusqlite::Result<()> {
    let pending = usize::try_from(found).unwrap_or(usize::MAX) < migrations.len();
    if pending && found > 0 {
        let copy = format!("{}.schema-{found}", path.display());
        // One that is there is of a try that was cut short, or of a release that was gone back to.
        let _ = std::fs::remove_file(&copy);
        connection.execute("VACUUM INTO ?1", [&copy])?;
    }
    migrate(connection, found, migrations)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // An answered write must survive a loss of power; NORMAL would sync at checkpoints only.
    let synced = if fault::has(Bug::CommitNotSynced) { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synced)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Everything read is in the snapshot; these pages serve writes alone. In KiB, as a negative.
    connection.pragma_update(None, "cache_size", -512)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.busy_timeout(std::time::Duration::from_secs(5))
}

/// Looks at every page. Damage that showed only when some row is next written would show too late.
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said == "ok" {
        return Ok(());
    }
    let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(corrupt, Some(said)))
}

fn migrate(connection: &mut Connection, applied: u32, migrations: &[&str]) -> rusqlite::Result<()> {
    for (version, sql) in (1_u32..).zip(migrations).filter(|(version, _)| *version > applied) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: [&str; 3] = [
        MIGRATIONS[0],
        "ALTER TABLE sandboxes ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';",
        "UPDATE sandboxes SET colour = 'blue'; INSERT INTO nowhere VALUES (1);",
    ];

    #[test]
    fn what_is_migrated_is_copied_before_and_a_fault_takes_back_its_own_step_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sodiumd.db");
        let mut connection = create(&path).unwrap();
        let insert = "INSERT INTO sandboxes VALUES ('a', 'u', 'api', 1, 2, 3, '{}', '{}', 4)";
        connection.execute(insert, []).unwrap();
        let version = |connection: &Connection| -> u32 {
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
        };
        bring_up(&mut connection, &path, 1, &LATER).unwrap_err();
        assert_eq!(version(&connection), 2);
        let colour = |connection: &Connection| {
            connection.query_row("SELECT colour FROM sandboxes", [], |row| row.get::<_, String>(0))
        };
        assert_eq!(colour(&connection).unwrap(), "red");
        let copy = Connection::open(dir.path().join("sodiumd.db.schema-1")).unwrap();
        assert_eq!(version(&copy), 1);
        assert!(colour(&copy).is_err());
        // A release that knows only the first refuses what it does not know.
        drop(connection);
        assert!(matches!(open(&path), Err(StoreError::Newer { found: 2, .. })));
    }
}
