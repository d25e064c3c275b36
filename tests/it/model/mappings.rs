//! Mappings of a world's files, and the operations on them.

use super::operations::{Bytes, Op};
use super::reference::{Id, Span};
use super::world::{Outcome, World, now, same_bytes, timed};
use crate::sys;

pub struct Mapping {
    pub map: sys::Map,
    pub id: Id,
    pub writes: bool,
    len: usize,
    /// Since when there may be stores that did not move the file's times yet.
    pub stored: Option<i64>,
}

impl Mapping {
    pub fn len(&self) -> usize {
        self.len
    }
}

impl World<'_> {
    pub fn on_map(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Map { map, slot, len } => {
                let Some(handle) = self.handles[*slot].as_ref().filter(|handle| handle.reads()) else {
                    return Ok(());
                };
                let writes = handle.writes();
                let made = if writes {
                    sys::Map::shared(&handle.file, *len)
                } else {
                    sys::Map::shared_readonly(&handle.file, *len)
                };
                let id = handle.id;
                let mapping = made.map_err(|e| format!("mmap: {e}"))?;
                self.unmap(*map);
                self.maps[*map] = Some(Mapping { map: mapping, id, writes, len: *len, stored: None });
            }
            Op::MapWrite { map, at, bytes } => {
                // A look first, which does not end the test.
                self.read_map(*map, *at, bytes.len)?;
                let Some(mapping) = self.maps[*map].as_mut().filter(|m| m.writes) else { return Ok(()) };
                let inode = self.reference.inode_mut(mapping.id);
                let end = (at + bytes.len).min(mapping.len).min(inode.bytes().len());
                if end <= *at {
                    return Ok(());
                }
                let bytes = Bytes { len: end - at, ..*bytes };
                let ((), span) = timed(|| mapping.map.write(*at, bytes.get()));
                inode.bytes_mut()[*at..end].copy_from_slice(bytes.get());
                inode.may_touch(span);
                mapping.stored.get_or_insert(span.low);
            }
            Op::MapRead { map, at, len } => return self.read_map(*map, *at, *len),
            Op::MapSync { map } => self.sync_map(*map)?,
            Op::Unmap { map } => self.unmap(*map),
            other => panic!("{other:?} is not of a mapping"),
        }
        Ok(())
    }

    pub fn read_map(&mut self, map: usize, at: usize, len: usize) -> Outcome {
        let Some(mapping) = &self.maps[map] else { return Ok(()) };
        let bytes = self.reference.inode(mapping.id).bytes();
        let end = (at + len).min(mapping.len).min(bytes.len());
        if end <= at {
            return Ok(());
        }
        let seen =
            mapping.map.peek(at, end - at).map_err(|e| format!("mapping of {} bytes: {e}", bytes.len()))?;
        same_bytes("mapping", &seen, &bytes[at..end])
    }

    pub fn sync_map(&mut self, map: usize) -> Outcome {
        if let Some(mapping) = &self.maps[map] {
            mapping.map.sync().map_err(|e| format!("msync: {e}"))?;
            self.settle_times(map);
        }
        Ok(())
    }

    pub fn unmap(&mut self, map: usize) {
        if let Some(mapping) = &mut self.maps[map] {
            let (id, stored) = (mapping.id, mapping.stored.take());
            self.maps[map] = None;
            if let Some(low) = stored {
                self.reference.inode_mut(id).may_touch(Span { low, high: now() });
            }
        }
    }

    fn settle_times(&mut self, map: usize) {
        if let Some(mapping) = &mut self.maps[map]
            && let Some(low) = mapping.stored.take()
        {
            self.reference.inode_mut(mapping.id).may_touch(Span { low, high: now() });
        }
    }
}
