//! The range of host uids that the configuration gives to sandboxes, and who else may have any of it.

use crate::config::Config;
use crate::doctor::{Finding, Severity};
use sodium_model::IdRange;
use sodium_model::ids::{self, Claim};
use sodium_sys as sys;
use sodium_sys::error::chain;

const NAME: &str = "uids";

pub(super) fn range(config: &Config) -> Finding {
    if !sys::is_root() {
        return Finding::fine(NAME, "an ordinary user gives nobody a host uid");
    }
    let mut claims = Vec::new();
    for file in [ids::PASSWD, ids::GROUP, ids::SUBUID, ids::SUBGID] {
        match sys::ids::table(file) {
            Ok(text) => claims.extend(ids::claims(file, &text)),
            Err(error) => {
                let means = ("whether anybody else has these ids is not known", "ls -l /etc");
                return Finding::bad(NAME, Severity::Degraded, chain(&error), means);
            }
        }
    }
    let found = judge(config.ids, &claims);
    // The daemon of this very configuration may run.
    let own = sys::lock::holder(&config.run_path.join("lock"));
    match sys::ids::holder(&config.ids.all()) {
        Some((pid, range)) if found.severity == Severity::Fine && pid != own => {
            let theirs = format!("{range} is given out by another sodiumd, pid {pid}");
            let means = (
                "the daemon of this configuration does not start",
                "give one of the two its own \"uids\" in config.json",
            );
            Finding::bad(NAME, Severity::Broken, theirs, means)
        }
        Some(_) | None => found,
    }
}

fn judge(range: IdRange, claims: &[Claim]) -> Finding {
    let all = range.all();
    let found = format!("{} to {}", all.start, all.end - 1);
    if let Some(claim) = range.conflicts(claims).first() {
        let fix = range.free(claims).map_or_else(
            || "name a free range as uids in config.json".to_owned(),
            |IdRange { first, count }| {
                format!("in config.json: \"uids\": {{\"first\": {first}, \"count\": {count}}}")
            },
        );
        let theirs = format!("{found}, of which {} gives some to {}", claim.file, claim.who);
        let means =
            ("they could read, change and signal sandboxes; the daemon does not start", &*fix);
        return Finding::bad(NAME, Severity::Broken, theirs, means);
    }
    if range.is_shared_with_containers() {
        let means = (
            "systemd-nspawn gives ids of it to containers without asking; the daemon does not start",
            "leave uids out of config.json: the usual range is out of the way",
        );
        return Finding::bad(NAME, Severity::Broken, found, means);
    }
    if !range.is_reserved(claims) {
        let line = range.reservation();
        let fix = format!("echo {line} | tee -a {} {} >/dev/null", ids::SUBUID, ids::SUBGID);
        let means = ("not reserved: useradd and others may give them to somebody", &*fix);
        return Finding::bad(NAME, Severity::Degraded, found, means);
    }
    Finding::fine(NAME, format!("{found}, reserved"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_fine_and_what_somebody_has_is_not() {
        let range = IdRange::default();
        let line = format!("{}\n", range.reservation());
        let own: Vec<Claim> = [ids::SUBUID, ids::SUBGID]
            .into_iter()
            .flat_map(|file| ids::claims(file, &line))
            .collect();
        assert_eq!(judge(range, &own).severity, Severity::Fine);
        let missing = judge(range, &[]);
        assert_eq!(missing.severity, Severity::Degraded);
        assert!(missing.fix.contains("echo sodiumd:2100000000:4000000"), "{}", missing.fix);
        let old = IdRange { first: 200_000, count: 1_000_000 };
        let theirs = judge(old, &ids::claims(ids::SUBUID, "alice:165536:65536"));
        assert_eq!(theirs.severity, Severity::Broken);
        assert!(theirs.fix.contains("\"first\": 2100000000"), "{}", theirs.fix);
        assert_eq!(judge(IdRange { first: 600_000, ..range }, &[]).severity, Severity::Broken);
    }
}
