//! Rows to values and back. The only place that knows the columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::{FileRecord, Snapshot};
use sodium_model::{
    Deletion, Event, History, Instance, InstancePhase, Level, Owner, Power, Sandbox, SandboxName,
    Status, Time,
};
use sodium_model::{event, ids};

/// The part of a sandbox that has no column of its own.
#[derive(Debug, Serialize, Deserialize)]
struct Doc {
    labels: BTreeMap<String, String>,
    power: Power,
    deletion: Option<Deletion>,
    history: History,
    status: Status,
}

/// Keys of `meta`: how many daemons have had the store,
pub(super) const DAEMON_EPOCH: &str = "daemon_epoch";
/// which history it is that versions count in,
pub(super) const STORE_EPOCH: &str = "store_epoch";
/// the directory of specs that was last seen whole,
pub(super) const ROOT: &str = "root";
/// the number of the last transaction,
pub(super) const RV: &str = "rv";
/// that nothing is to run on this host,
pub(super) const DRAINED: &str = "drained";
/// how far host uids have been given,
pub(super) const IDS: &str = "host_ids";
/// what was written only to see whether that can be done,
pub(super) const PROBE: &str = "probe";
/// and that the store was put together anew, and nobody has confirmed that it is as it should be.
pub(super) const RESCUED: &str = "rescued";

/// A name for a history that no other has.
pub(super) fn new_epoch() -> String {
    Uuid::now_v7().simple().to_string().split_off(24)
}

/// Everything that a database holds but the ends of earlier instances.
pub(super) fn put_all(connection: &Connection, snapshot: &Snapshot) -> rusqlite::Result<()> {
    for sandbox in snapshot.sandboxes.values() {
        put_sandbox(connection, sandbox)?;
        if let Some(instance) = &sandbox.instance {
            put_instance(connection, sandbox.uid, instance)?;
        }
    }
    for (path, record) in &snapshot.files {
        put_file(connection, path, Some(record))?;
    }
    for event in &snapshot.events {
        put_event(connection, event)?;
    }
    set_meta(connection, STORE_EPOCH, &snapshot.epoch)?;
    set_meta(connection, RV, &snapshot.rv.to_string())?;
    set_meta(connection, IDS, &json(&snapshot.ids))?;
    if snapshot.drained {
        set_meta(connection, DRAINED, "yes")?;
    }
    if let Some(root) = &snapshot.root {
        set_meta(connection, ROOT, &json(root))?;
    }
    match &snapshot.rescued {
        Some(rescued) => set_meta(connection, RESCUED, &json(&**rescued)),
        None => Ok(()),
    }
}

pub(super) fn put_sandbox(connection: &Connection, sandbox: &Sandbox) -> rusqlite::Result<()> {
    let doc = Doc {
        labels: sandbox.labels.clone(),
        power: sandbox.power,
        deletion: sandbox.deletion,
        history: sandbox.history.clone(),
        status: sandbox.status.clone(),
    };
    let mut insert = connection.prepare_cached(
        "INSERT INTO sandboxes (name, uid, owner, generation, host_uid, created_at, spec, doc, rv)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (name) DO UPDATE SET uid = ?2, owner = ?3, generation = ?4, host_uid = ?5,
             created_at = ?6, spec = ?7, doc = ?8, rv = ?9",
    )?;
    insert.execute(params![
        sandbox.name.as_str(),
        sandbox.uid.to_string(),
        sandbox.owner.to_string(),
        signed(sandbox.generation),
        sandbox.host_uid,
        signed(sandbox.created_at.0),
        json(&*sandbox.spec),
        json(&doc),
        signed(sandbox.rv),
    ])?;
    Ok(())
}

pub(super) fn delete_sandbox(connection: &Connection, sandbox: &Sandbox) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM sandboxes WHERE name = ?1", [sandbox.name.as_str()])?;
    connection.execute("DELETE FROM instances WHERE uid = ?1", [sandbox.uid.to_string()])?;
    Ok(())
}

pub(super) fn put_instance(
    connection: &Connection,
    uid: Uuid,
    instance: &Instance,
) -> rusqlite::Result<()> {
    let phase = match instance.phase {
        InstancePhase::Starting => "starting",
        InstancePhase::Running => "running",
        InstancePhase::Stopping => "stopping",
        InstancePhase::Dead => "dead",
    };
    let mut insert = connection.prepare_cached(
        "INSERT INTO instances (iid, uid, n, phase, doc) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (iid) DO UPDATE SET phase = ?4, doc = ?5",
    )?;
    let uid = uid.to_string();
    insert.execute(params![
        instance.iid.as_str(),
        uid,
        signed(instance.n),
        phase,
        json(instance)
    ])?;
    Ok(())
}

/// Forgets all but the newest ends of a sandbox.
pub(super) fn trim_instances(
    connection: &Connection,
    uid: Uuid,
    newest: u64,
) -> rusqlite::Result<()> {
    let mut delete = connection
        .prepare_cached("DELETE FROM instances WHERE uid = ?1 AND n <= ?2 AND phase = 'dead'")?;
    delete.execute(params![uid.to_string(), signed(newest.saturating_sub(INSTANCES_KEPT))])?;
    Ok(())
}

const INSTANCES_KEPT: u64 = 10;

pub(super) fn put_file(
    connection: &Connection,
    path: &str,
    record: Option<&FileRecord>,
) -> rusqlite::Result<()> {
    match record {
        Some(record) => connection.execute(
            "INSERT INTO files (path, doc) VALUES (?1, ?2) ON CONFLICT (path) DO UPDATE SET doc = ?2",
            params![path, json(record)],
        )?,
        None => connection.execute("DELETE FROM files WHERE path = ?1", [path])?,
    };
    Ok(())
}

pub(super) fn put_event(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (seq, time, name, level, reason, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let name = event.name.as_ref().map(SandboxName::as_str);
    let level = if event.level == Level::Warning { "warning" } else { "normal" };
    let (seq, time) = (signed(event.seq), signed(event.time.0));
    insert.execute(params![seq, time, name, level, event.reason, event.message])?;
    let id = connection.last_insert_rowid();
    // Now and then, so that an insert costs one insert.
    if id % 256 == 0 {
        connection.execute("DELETE FROM events WHERE id <= ?1", [id - EVENTS_KEPT])?;
    }
    Ok(())
}

const EVENTS_KEPT: i64 = 10_000;

pub(super) fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
    )?;
    insert.execute([key, value])?;
    Ok(())
}

pub(super) fn delete_meta(connection: &Connection, key: &str) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM meta WHERE key = ?1", [key]).map(drop)
}

pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    let mut rows = connection.prepare("SELECT value FROM meta WHERE key = ?1")?;
    let mut rows = rows.query([key])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// A row that does not read back: what it is of, and why.
pub(super) type Unreadable = (&'static str, String);

pub(super) fn sandboxes(
    connection: &Connection,
) -> rusqlite::Result<Result<Vec<Sandbox>, Unreadable>> {
    let mut instances = newest_instances(connection)?;
    let mut select = connection.prepare(&format!("SELECT {SANDBOX} FROM sandboxes"))?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match sandbox(row)? {
            Ok(mut sandbox) => {
                match instances.remove(&sandbox.uid).transpose() {
                    Ok(instance) => sandbox.instance = instance.map(Arc::new),
                    Err(message) => return Ok(Err(("instance", message))),
                }
                found.push(sandbox);
            }
            Err(message) => return Ok(Err(("sandbox", message))),
        }
    }
    Ok(Ok(found))
}

/// The columns of a sandbox, as [`sandbox`] reads them.
pub(super) const SANDBOX: &str =
    "name, uid, owner, generation, host_uid, created_at, spec, doc, rv";

pub(super) fn sandbox(row: &Row<'_>) -> rusqlite::Result<Result<Sandbox, String>> {
    let text = |index| row.get::<_, String>(index);
    let number = |index| row.get::<_, i64>(index).map(i64::unsigned_abs);
    let (name, uid, owner, spec, doc) = (text(0)?, text(1)?, text(2)?, text(6)?, text(7)?);
    let (generation, created_at, rv) = (number(3)?, number(5)?, number(8)?);
    let host_uid = row.get(4)?;
    let build = || -> Result<Sandbox, String> {
        if !ids::may_be_tenant(host_uid) {
            return Err(format!("host uid {host_uid} is not a sandbox's"));
        }
        let doc: Doc = parse(&doc)?;
        Ok(Sandbox {
            name: SandboxName::try_from(name).map_err(|error| error.to_string())?,
            uid: Uuid::try_parse(&uid).map_err(|error| error.to_string())?,
            owner: Owner::try_from(owner)?,
            labels: doc.labels,
            generation,
            spec: Arc::new(parse(&spec)?),
            created_at: Time(created_at),
            host_uid,
            power: doc.power,
            deletion: doc.deletion,
            history: doc.history,
            instance: None,
            status: doc.status,
            rv,
        })
    };
    Ok(build())
}

type Instances = BTreeMap<Uuid, Result<Instance, String>>;

fn newest_instances(connection: &Connection) -> rusqlite::Result<Instances> {
    let mut select = connection.prepare("SELECT uid, doc, max(n) FROM instances GROUP BY uid")?;
    let mut rows = select.query([])?;
    let mut found = Instances::new();
    while let Some(row) = rows.next()? {
        let (uid, doc): (String, String) = (row.get(0)?, row.get(1)?);
        if let Ok(uid) = Uuid::try_parse(&uid) {
            found.insert(uid, parse(&doc));
        }
    }
    Ok(found)
}

pub(super) fn files(
    connection: &Connection,
) -> rusqlite::Result<Result<Vec<(String, FileRecord)>, Unreadable>> {
    let mut select = connection.prepare("SELECT path, doc FROM files")?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (path, doc): (String, String) = (row.get(0)?, row.get(1)?);
        match parse(&doc) {
            Ok(record) => found.push((path, record)),
            Err(message) => return Ok(Err(("file", message))),
        }
    }
    Ok(Ok(found))
}

/// The newest events, oldest first. One that cannot be read is left out: it decides nothing.
pub(super) fn events(connection: &Connection, count: usize) -> rusqlite::Result<Vec<Event>> {
    let mut select = connection.prepare(
        "SELECT seq, time, name, level, reason, message FROM events ORDER BY id DESC LIMIT ?1",
    )?;
    let rows = select.query_map([i64::try_from(count).unwrap_or(i64::MAX)], |row| {
        let name: Option<String> = row.get(2)?;
        let level: String = row.get(3)?;
        Ok(Event {
            seq: row.get::<_, i64>(0)?.unsigned_abs(),
            time: Time(row.get::<_, i64>(1)?.unsigned_abs()),
            name: name.and_then(|name| SandboxName::try_from(name).ok()),
            level: if level == "warning" { Level::Warning } else { Level::Normal },
            reason: row.get(4)?,
            // Releases before had no bound.
            message: event::message(row.get::<_, String>(5)?),
        })
    })?;
    let mut events: Vec<Event> = rows.collect::<rusqlite::Result<_>>()?;
    events.reverse();
    Ok(events)
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the model has string keys and finite numbers")
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_slice(text.as_bytes()).map_err(|error| error.to_string())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
