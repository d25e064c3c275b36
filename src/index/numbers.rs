//! Numbers that are never given twice.
//!
//! They come from memory; only the mark below which they may be given is recorded. After a restart the numbers between the
//! last one given and the mark are skipped.

/// How far the mark moves at a time: a force in a million numbers, and 2^43 restarts until they run out.
const STRIDE: u64 = 1 << 20;

/// The highest mark there can be: numbers have to fit SQL's integers.
pub(super) const MARK_MAX: u64 = i64::MAX as u64 - STRIDE;

/// The next number and the recorded mark.
pub(super) struct Numbers {
    next: u64,
    mark: u64,
}

impl Numbers {
    /// All numbers below the recorded mark may have been given.
    pub fn from_mark(mark: u64) -> Numbers {
        Numbers { next: mark, mark }
    }

    /// The next number, while it is below the mark.
    pub fn take(&mut self) -> Option<u64> {
        (self.next < self.mark).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// The mark to record next.
    pub fn next_mark(&self) -> u64 {
        self.mark + STRIDE
    }

    /// `mark` is recorded and on the disk; the next number.
    pub fn raise(&mut self, mark: u64) -> u64 {
        self.mark = mark;
        self.next += 1;
        self.next - 1
    }

    /// Leaves only `left` numbers below the mark.
    #[cfg(test)]
    pub fn skip_to_mark(&mut self, left: u64) {
        self.next = self.mark - left;
    }
}
