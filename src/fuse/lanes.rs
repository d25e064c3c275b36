//! Which request is answered in which lane: what may wait for something that is not on this host, and what may do so for ever.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::change::Ino;
use crate::filestore::Reach;
use crate::fuse::adapter::Adapter;
use crate::fuse::slow::{Lane, slow_if};

impl Adapter {
    /// Answers a request in this lane.
    pub(super) fn answer(&self, lane: Lane, work: impl FnOnce(&Adapter) + Send + 'static) {
        if lane == Lane::Here {
            return work(self);
        }
        let this = self.clone();
        self.slow.run(lane, move || work(&this));
    }

    /// Whether what writes or looks at bytes may wait for something far away.
    pub(super) fn far(&self) -> bool {
        self.vfs.store().reach() > Reach::Here
    }

    /// Whether the end of a seal may, and with it whoever waits for that.
    fn puts_far(&self) -> bool {
        self.vfs.store().reach() >= Reach::Far
    }

    /// Whether a look at a file that is not sealed may, and every write to it.
    pub(super) fn stages_far(&self) -> bool {
        self.vfs.store().reach() == Reach::Network
    }

    /// The lane of what makes or changes a staging file; `slow` is asked where those are on this host.
    pub(super) fn to_stage(&self, slow: impl FnOnce() -> bool) -> Lane {
        if self.stages_far() { Lane::Endless } else { slow_if(slow()) }
    }

    /// The lane of what uses the staging file of `ino`, if it has one; `slow` as above.
    pub(super) fn where_staged(&self, ino: Ino, slow: impl FnOnce() -> bool) -> Lane {
        match self.stages_far() {
            true if self.vfs.is_staged(ino) => Lane::Endless,
            true => Lane::Slow,
            false => slow_if(slow()),
        }
    }

    /// The lane of what may want the bytes of a file, though it is about something else.
    pub(super) fn to_change(&self, ino: Ino) -> Lane {
        self.where_staged(ino, || self.puts_far() || self.far() && self.vfs.change_waits(ino))
    }

    /// The lane of a rename, which takes bytes to the disk when it replaces.
    pub(super) fn to_rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Lane {
        if !self.far() {
            return Lane::Here;
        }
        let forced = self.vfs.forced_by_rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
        forced.into_iter().map(|ino| self.to_change(ino)).max().unwrap_or(Lane::Here)
    }
}
