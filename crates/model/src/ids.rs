//! The ids of the host's that are ours, as the key `uids` of config.json says: one table, and what the host's own
//! tables say of the same ids.
//!
//! ```text
//!   first          + n            + 2n               + 3n              + 4n, n = count / 4
//!   | users of     | guests' root | users of guests  | their root      |
//!   | sandboxes  t | (gVisor)   t | started ahead    |                 |      t: the last one, for trials
//! ```

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Below are those of people, packages, and what is never given to anybody (65534, 65535).
const FIRST_MIN: u32 = 65_536;
/// Above, kernels and tools take some for negative numbers; and a guest's root of an earlier release has room there.
const END_MAX: u32 = 3_000_000_000;
/// Fewer would soon be given again.
const COUNT_MIN: u32 = 64;
/// Earlier releases had guests' roots this much above their users.
const ROOT_OFFSET_BEFORE: u32 = 1_000_000_000;
/// What systemd gives to containers, whoever they are: see systemd's UIDS-GIDS.
const CONTAINERS: Range<u64> = 524_288..1_879_048_192;
/// Who the range is reserved for, in /etc/subuid and /etc/subgid.
pub const OWNER: &str = "sodiumd";

/// Whether a sandbox may have this id, whatever range it was given from.
pub fn may_be_tenant(id: u32) -> bool {
    (FIRST_MIN..END_MAX).contains(&id)
}

/// The key `uids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

/// Above what systemd gives to containers, shadow's useradd to people (100000 to 600100000), and SSSD to domains (to
/// 2000200000), and below systemd's "foreign" ids (from 2147352576): a million sandboxes before any is given again.
impl Default for IdRange {
    fn default() -> Self {
        Self { first: 2_100_000_000, count: 4_000_000 }
    }
}

impl IdRange {
    /// Why it cannot be used, whatever the host says.
    pub fn fault(&self) -> Option<String> {
        let Self { first, count } = *self;
        let end = u64::from(first) + u64::from(count);
        if first < FIRST_MIN {
            return Some(format!("uids.first is {first}, the least is {FIRST_MIN}"));
        }
        if count < COUNT_MIN {
            return Some(format!("uids.count is {count}, the least is {COUNT_MIN}"));
        }
        (end > u64::from(END_MAX))
            .then(|| format!("uids ends at {end}, and nothing may be above {END_MAX}"))
    }

    fn part(&self) -> u32 {
        self.count / 4
    }

    /// Of sandboxes.
    pub fn users(&self) -> Range<u32> {
        self.first..self.trial()
    }

    /// Of guests that are started ahead.
    pub fn waiting(&self) -> Range<u32> {
        let first = self.first + 2 * self.part();
        first..first + self.part()
    }

    /// The user of a trial.
    pub fn trial(&self) -> u32 {
        self.first + self.part() - 1
    }

    /// What a guest's root is on the host, by its user. One that an earlier release or configuration has made keeps
    /// what it had then.
    pub fn root_of(&self, user: u32) -> u32 {
        let ours =
            self.users().contains(&user) || self.waiting().contains(&user) || user == self.trial();
        user + if ours { self.part() } else { ROOT_OFFSET_BEFORE }
    }

    /// Whose root this is: the other way round.
    pub fn user_of(&self, root: u32) -> Option<u32> {
        let user = root.checked_sub(self.part())?;
        Some(user).filter(|user| self.root_of(*user) == root)
    }

    /// The whole of it.
    pub fn all(&self) -> Range<u64> {
        let first = u64::from(self.first);
        first..first + u64::from(self.count)
    }

    /// The line that reserves it.
    pub fn reservation(&self) -> String {
        format!("{OWNER}:{}:{}", self.first, self.count)
    }

    /// What others have of it.
    pub fn conflicts<'c>(&self, claims: &'c [Claim]) -> Vec<&'c Claim> {
        let all = self.all();
        claims.iter().filter(|claim| claim.who != OWNER && overlap(&claim.ids, &all)).collect()
    }

    /// Whether others are kept from it, in both tables that say so.
    pub fn is_reserved(&self, claims: &[Claim]) -> bool {
        let all = self.all();
        let is_in = |file| {
            claims.iter().any(|claim| {
                let covers = claim.ids.start <= all.start && all.end <= claim.ids.end;
                claim.file == file && claim.who == OWNER && covers
            })
        };
        is_in(SUBUID) && is_in(SUBGID)
    }

    /// Whether something else on this host may give ids out of it without asking.
    pub fn is_shared_with_containers(&self) -> bool {
        overlap(&self.all(), &CONTAINERS)
    }

    /// The next range of this size, from the usual one on, that nobody has.
    pub fn free(&self, claims: &[Claim]) -> Option<Self> {
        let mut next = Self { first: Self::default().first, ..*self };
        loop {
            if next.fault().is_some() {
                return None;
            }
            let end = next.conflicts(claims).into_iter().map(|claim| claim.ids.end).max();
            let Some(end) = end else { return Some(next) };
            next.first = u32::try_from(end).ok()?;
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

pub const PASSWD: &str = "/etc/passwd";
pub const GROUP: &str = "/etc/group";
pub const SUBUID: &str = "/etc/subuid";
pub const SUBGID: &str = "/etc/subgid";

/// What a table of the host's gives to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub who: String,
    pub file: &'static str,
    pub ids: Range<u64>,
}

/// Reads a table, by its name. Lines that say nothing are left out.
pub fn claims(file: &'static str, text: &str) -> Vec<Claim> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| claim(file, line)).collect()
}

fn claim(file: &'static str, line: &str) -> Option<Claim> {
    let words: Vec<&str> = line.split(':').map(str::trim).collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let ids = if file == SUBUID || file == SUBGID {
        let (first, count) = (number(1)?, number(2)?);
        first..first.saturating_add(count)
    } else {
        // name:password:id
        let id = number(2)?;
        id..id + 1
    };
    Some(Claim { who: words[0].to_owned(), file, ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_in_two_parts_and_all_are_in_the_range() {
        for range in [IdRange::default(), IdRange { first: 70_001, count: 67 }] {
            assert_eq!(range.fault(), None);
            let IdRange { first, count } = range;
            let mut parts: Vec<Range<u32>> = Vec::new();
            for users in [range.users(), range.trial()..range.trial() + 1, range.waiting()] {
                parts.push(range.root_of(users.start)..range.root_of(users.end - 1) + 1);
                parts.push(users);
            }
            parts.sort_by_key(|part| part.start);
            assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{parts:?}");
            assert!(parts[0].start >= first && parts[parts.len() - 1].end <= first + count);
        }
        // What an earlier release has made stays what it was.
        assert_eq!(IdRange::default().root_of(200_003), 1_000_200_003);
    }

    #[test]
    fn the_usual_range_is_nobodys() {
        let range = IdRange::default();
        assert!(!range.is_shared_with_containers());
        // The last that useradd gives, and those that systemd 258 gives to foreign files.
        let others = [100_000..600_165_536, 200_000..2_000_200_001, 2_147_352_576..2_147_418_112];
        assert!(others.iter().all(|other| !overlap(other, &range.all())));
    }

    #[test]
    fn what_others_have_of_a_range_is_found_and_another_is_named() {
        let range = IdRange { first: 2_100_000_000, count: 1_000 };
        let subuid =
            claims(SUBUID, "alice:100000:65536\n# bob:2100000000:9\nsodiumd:2100000000:1000\n");
        assert!(range.conflicts(&subuid).is_empty() && !range.is_reserved(&subuid));
        let subgid = claims(SUBGID, "sodiumd:2100000000:1000\nbroken\n");
        let both: Vec<Claim> = subuid.into_iter().chain(subgid).collect();
        assert!(range.is_reserved(&both));
        assert!(!IdRange { count: 1_001, ..range }.is_reserved(&both));
        for (file, line) in [
            (PASSWD, "carol:x:2100000999:100::/home/carol:/bin/sh"),
            (GROUP, "staff:x:2100000000:"),
            (SUBUID, "carol:2099999999:2"),
        ] {
            let theirs = claims(file, line);
            assert_eq!(range.conflicts(&theirs).len(), 1, "{line}");
            let free = range.free(&theirs).unwrap();
            assert!(free.conflicts(&theirs).is_empty() && free.first > range.first, "{free:?}");
        }
        assert!(range.conflicts(&claims(PASSWD, "x:x:2100001000:1")).is_empty());
    }

    #[test]
    fn a_range_that_no_host_could_give_is_a_fault() {
        let fault = |first, count| IdRange { first, count }.fault();
        assert!(fault(1_000, 1_000).unwrap().starts_with("uids.first is 1000"));
        assert!(fault(100_000, 10).unwrap().starts_with("uids.count is 10"));
        assert!(fault(2_999_999_999, 64).unwrap().starts_with("uids ends at"));
    }
}
