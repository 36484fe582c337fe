//! How fast output is taken, if there is a limit on that. What is not taken stays in the pipe, and a workload that
//! writes more than the pipe holds waits: that is the limit.

/// Read at once with the smallest of limits.
const CHUNK_BYTES_MIN: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// Since boot. A thousandth of a second is many bytes with the largest of limits.
    resume_at_us: u64,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, resume_at_us: 0 }
    }

    /// How much may be read at once: what a second allows.
    pub(super) fn chunk(&self, most: usize) -> usize {
        usize::try_from(self.bytes_per_second).unwrap_or(most).clamp(CHUNK_BYTES_MIN, most)
    }

    /// So much was read: how long that takes.
    pub(super) fn took(&mut self, bytes: usize, now_ms: u64) {
        let us = (bytes as u64).saturating_mul(1_000_000) / self.bytes_per_second.max(1);
        self.resume_at_us = self.resume_at_us.max(now_ms * 1000).saturating_add(us);
    }

    /// When to go on, if not now.
    pub(super) fn waits_until(&self, now_ms: u64) -> Option<u64> {
        let resume_at_ms = self.resume_at_us / 1000;
        // Nobody is woken for less than this.
        (resume_at_ms > now_ms + 10).then_some(resume_at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_what_a_second_allows() {
        let mut pace = Pace::new(1000);
        assert_eq!((pace.chunk(65_536), Pace::new(1).chunk(65_536)), (1000, CHUNK_BYTES_MIN));
        assert_eq!(pace.waits_until(5), None);
        pace.took(1000, 5);
        pace.took(500, 5);
        assert_eq!(pace.waits_until(5), Some(1505));
        assert_eq!(pace.waits_until(1505), None);
        // What was not used is not saved up.
        pace.took(100, 9000);
        assert_eq!(pace.waits_until(9000), Some(9100));
    }

    #[test]
    fn what_takes_less_than_a_millisecond_is_counted_too() {
        let mut pace = Pace::new(64 << 20);
        let chunks = (64 << 20) / 65_536;
        for _ in 0..chunks {
            pace.took(65_536, 5);
        }
        let resume_at_ms = pace.waits_until(5).unwrap();
        assert!((1000..=1005).contains(&resume_at_ms), "{resume_at_ms}");
    }
}
