//! Chance that can be had again.

/// A tiny generator: a failing seed is a complete report of a bug.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        // Seeds that follow each other are to have nothing in common.
        let mixed = (seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Self((mixed ^ (mixed >> 29)) | 1)
    }

    /// A number below `sides`.
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let index = self.roll(of.len() as u64);
        of[usize::try_from(index).unwrap()]
    }

    /// So often in a thousand times.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.roll(1000) < per_mille
    }
}
