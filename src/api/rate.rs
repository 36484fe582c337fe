//! How often somebody may ask, and how many may be served at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Whoever was quiet may ask for so many seconds' worth at once.
const BURST_SECONDS: u64 = 5;
/// Askers told apart. When so many are busy at once, all further ones share what one may ask.
const KEY_COUNT_MAX: usize = 4_096;

/// Rates of requests by key. For each, only the moment is kept up to which it has used up its share.
#[derive(Debug)]
pub(super) struct Rate<K> {
    began: Instant,
    used_until_us: Mutex<HashMap<Option<K>, u64>>,
}

impl<K: Eq + Hash + Clone> Default for Rate<K> {
    fn default() -> Self {
        Self { began: Instant::now(), used_until_us: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Rate<K> {
    /// Counts a request. An error says after how long the next one is served.
    pub(super) fn ask(&self, key: K, per_second: u64) -> Result<(), Duration> {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.ask_at(key, per_second, now)
    }

    fn ask_at(&self, key: K, per_second: u64, now_us: u64) -> Result<(), Duration> {
        if per_second == 0 {
            return Ok(());
        }
        let mut used = self.used_until_us.lock().expect("nobody panics while holding the rates");
        let mut key = Some(key);
        if !used.contains_key(&key) && used.len() >= KEY_COUNT_MAX {
            used.retain(|_, until| *until > now_us);
            if used.len() >= KEY_COUNT_MAX {
                key = None;
            }
        }
        let until = used.entry(key).or_insert(0);
        let next = (*until).max(now_us) + 1_000_000 / per_second;
        let latest = now_us + BURST_SECONDS * 1_000_000;
        if next > latest {
            return Err(Duration::from_micros(next - latest));
        }
        *until = next;
        Ok(())
    }
}

/// Who is asking, as far as rates are concerned: an IPv6 host has as many addresses as it likes, and so have the users
/// of this one.
pub(super) fn peer_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        local if local.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Places of which there are only so many.
#[derive(Debug, Default, Clone)]
pub(super) struct Places(Arc<AtomicUsize>);

/// One that is taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    /// `None`: all are taken.
    pub(super) fn take(&self, max: usize) -> Option<Place> {
        let taken = self.0.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.0));
        (max == 0 || taken < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_served_and_then_what_comes_in_time() {
        let rate = Rate::default();
        let served = |now| (0..1_000).filter(|_| rate.ask_at("a", 10, now).is_ok()).count();
        assert_eq!(served(0), 50);
        assert_eq!(served(1_000_000), 10);
        assert_eq!(rate.ask_at("a", 10, 1_000_000), Err(Duration::from_millis(100)));
        assert_eq!(rate.ask_at("b", 10, 1_000_000), Ok(()));
        assert_eq!(served(100_000_000), 50);
        assert_eq!(rate.ask_at("a", 0, 100_000_000), Ok(()));
    }

    #[test]
    fn many_who_ask_share_what_one_may() {
        let rate = Rate::default();
        for key in 0..KEY_COUNT_MAX {
            rate.ask_at(key, 10, 0).unwrap();
        }
        let more = (0..1_000).filter(|key| rate.ask_at(KEY_COUNT_MAX + key, 10, 0).is_ok());
        assert_eq!(more.count(), 50);
        // Those who have been quiet are forgotten.
        rate.ask_at(1_000_000, 10, 1_000_000).unwrap();
        assert!(rate.used_until_us.lock().unwrap().len() < KEY_COUNT_MAX);
    }

    #[test]
    fn places_are_free_again_when_they_are_left() {
        let places = Places::default();
        let taken: Vec<Place> = (0..3).filter_map(|_| places.take(2)).collect();
        assert_eq!(taken.len(), 2);
        drop(taken);
        assert!(places.take(1).is_some());
    }

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let key = |text: &str| peer_key(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), key("2001:db8:1:2::9"));
        assert_ne!(key("2001:db8:1:2::9"), key("2001:db8:1:3::9"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert!(key("127.8.9.10") == key("::1") && key("127.0.0.1") != key("128.0.0.1"));
    }
}
