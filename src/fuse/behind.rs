//! The kernel's pages behind a reader of a file that arrives from far away.
//!
//! The cache keeps the same bytes in a file of its own, from which the next open is served past the daemon. Until then the
//! pages would hold memory for a second time, and that open would have to wait until the kernel has emptied all of them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};

/// What is emptied at a time; two more stay behind the reader, who may step back a little.
const STEP: u64 = 8 << 20;

/// See above.
#[derive(Clone, Default)]
pub(super) struct Behind {
    notifier: Arc<OnceLock<Notifier>>,
}

impl Behind {
    /// From now on pages can be emptied.
    pub(super) fn begin(&self, notifier: Notifier) {
        let _known = self.notifier.set(notifier);
    }

    /// Bytes were read: empties pages a good way before them, where `is_wanted` says that nobody misses them.
    pub(super) fn was_read(
        &self,
        node: INodeNo,
        offset: u64,
        bytes: usize,
        is_wanted: impl FnOnce() -> bool,
    ) {
        let Some(from) = behind(offset, bytes as u64) else { return };
        let Some(notifier) = self.notifier.get().filter(|_| is_wanted()) else { return };
        if let Err(error) = notifier.inval_inode(node, from as i64, STEP as i64) {
            tracing::debug!(%error, "pages of inode {} are not emptied", node.0);
        }
    }
}

/// Where the step begins that a read has left behind, if it entered a new one.
fn behind(offset: u64, bytes: u64) -> Option<u64> {
    let (before, after) = (offset / STEP, (offset + bytes) / STEP);
    (before != after && after >= 3).then(|| (after - 3) * STEP)
}

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behind").field("ready", &self.notifier.get().is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_just_read_stays() {
        let mib = |n: u64| n << 20;
        let mut emptied = Vec::new();
        for at in 0..64 {
            emptied.extend(behind(mib(at), mib(1)).map(|from| (mib(at + 1), from)));
        }
        let steps = emptied.iter().map(|(_, from)| *from);
        assert!(steps.eq((0..6).map(|i| i * STEP)), "each once: {emptied:?}");
        assert!(emptied.iter().all(|(end, from)| end - from >= 3 * STEP));
        assert_eq!(behind(mib(3), mib(1)), None);
    }
}
