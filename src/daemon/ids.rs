//! The range of the host's ids that sandboxes get: that nobody else has any of it, and that nobody will be given any.

use anyhow::bail;
use tracing::warn;

use sodium_model::IdRange;
use sodium_model::ids::{self, Claim};
use sodium_sys::error::chain;
use sodium_sys::ids::Taken;
use sodium_sys::lock::Lock;
use sodium_sys::{self as sys, SysError};

/// What the host's tables give to whom.
pub fn claims() -> Result<Vec<Claim>, SysError> {
    let mut all = Vec::new();
    for file in [ids::PASSWD, ids::GROUP, ids::SUBUID, ids::SUBGID] {
        all.extend(ids::claims(file, &sys::ids::table(file)?));
    }
    Ok(all)
}

/// Makes sure of the range, and holds it. An ordinary user gives nobody an id.
pub(super) fn take(range: IdRange) -> anyhow::Result<Option<Lock>> {
    if !sys::is_root() {
        return Ok(None);
    }
    let claims = claims()?;
    if let Some(claim) = range.conflicts(&claims).first() {
        let free = range.free(&claims).map_or_else(String::new, |free| {
            let IdRange { first, count } = free;
            format!("; free is \"uids\": {{\"first\": {first}, \"count\": {count}}}")
        });
        bail!(
            "\"uids\" in config.json has ids that {} gives to {} ({} to {}){free}",
            claim.file,
            claim.who,
            claim.ids.start,
            claim.ids.end - 1
        );
    }
    if range.is_shared_with_containers() {
        bail!(
            "\"uids\" in config.json has ids that systemd-nspawn gives to containers without asking; leave \
             \"uids\" out of config.json: the usual range is out of the way"
        );
    }
    match sys::ids::take(&range.all()) {
        Ok(Taken::Ours(lock)) => Ok(Some(lock)),
        Ok(Taken::Others { pid, range }) => bail!(
            "another sodiumd (pid {pid}) gives out the host uids {range}; stop it, or give this one its own \
             \"uids\" in config.json"
        ),
        Err(error) => {
            // Without /run there is no place where daemons could meet.
            warn!(error = chain(&error), "whether another daemon has these host uids is not known");
            Ok(None)
        }
    }
}

/// Takes [`reserve`] back. Returns the tables that had it.
pub(super) fn give_back(range: IdRange) -> anyhow::Result<Vec<&'static str>> {
    let line = range.reservation();
    let mut had = Vec::new();
    for file in [ids::SUBUID, ids::SUBGID] {
        if sys::ids::remove_line(file, &line)? {
            had.push(file);
        }
    }
    Ok(had)
}

/// Has other programs of this host give none of the range to anybody. Returns the tables that did not say so yet.
pub fn reserve(range: IdRange) -> anyhow::Result<Vec<&'static str>> {
    let claims = claims()?;
    if let Some(claim) = range.conflicts(&claims).first() {
        bail!("{} gives some of these ids to {} already", claim.file, claim.who);
    }
    let line = range.reservation();
    let mut added = Vec::new();
    for file in [ids::SUBUID, ids::SUBGID] {
        let table = sys::ids::table(file)?;
        if !table.lines().any(|found| found.trim() == line) {
            sys::ids::add_line(file, &line)?;
            added.push(file);
        }
    }
    Ok(added)
}
