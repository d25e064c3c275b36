//! What a worker asked for, call by call, with the moments between which each was carried out; kept outside the depot.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::Device;
use super::random::spread;
use super::recording::now;

/// Names the bytes of one write: they follow from it and from where they are in the file.
pub type Tag = u64;

/// The tag of a hole.
pub const ZEROES: Tag = 0;

/// A file of one worker, whatever its names.
pub type Object = usize;

/// The bytes of a tag at `offset`.
pub fn bytes_of(tag: Tag, offset: u64, len: u64) -> Vec<u8> {
    if tag == ZEROES {
        return vec![0; len as usize];
    }
    let words = offset / 8..(offset + len).div_ceil(8);
    let bytes: Vec<u8> =
        words.flat_map(|word| spread(tag ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    let skip = (offset % 8) as usize;
    bytes[skip..skip + len as usize].to_vec()
}

/// The bytes of a file, told by the tags of its writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// End and tag of each extent, in order, without gaps.
    extents: Vec<(u64, Tag)>,
}

impl Content {
    /// Offset, length and tag of each extent.
    pub fn extents(&self) -> impl Iterator<Item = (u64, u64, Tag)> {
        let begins = [0].into_iter().chain(self.extents.iter().map(|(end, _)| *end));
        begins.zip(&self.extents).map(|(begin, (end, tag))| (begin, end - begin, *tag))
    }

    pub fn size(&self) -> u64 {
        self.extents.last().map_or(0, |(end, _)| *end)
    }

    pub fn write(&mut self, offset: u64, len: u64, tag: Tag) {
        if len == 0 {
            return;
        }
        if offset > self.size() {
            self.extents.push((offset, ZEROES));
        }
        let (end, mut begin, mut new) = (offset + len, 0, Vec::with_capacity(self.extents.len() + 2));
        let mut push = |end: u64, tag: Tag| match new.last_mut() {
            Some((last, same)) if *same == tag => *last = end,
            _ => new.push((end, tag)),
        };
        let mut put = false;
        for (extent_end, old) in &self.extents {
            if begin < offset {
                push(offset.min(*extent_end), *old);
            }
            if *extent_end >= offset && !put {
                push(end, tag);
                put = true;
            }
            if *extent_end > end {
                push(*extent_end, *old);
            }
            begin = *extent_end;
        }
        if !put {
            push(end, tag);
        }
        self.extents = new;
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.extents().flat_map(|(offset, len, tag)| bytes_of(tag, offset, len)).collect()
    }
}

/// A moment of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// How many calls the device had recorded.
    pub position: usize,
    /// Tells for any two moments of all workers which was first.
    pub order: u64,
    /// Nanoseconds since 1970.
    pub time: u64,
}

/// From just before a call to just after it.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub begun: Moment,
    pub answered: Moment,
}

/// Tells moments.
pub struct Clock<'a> {
    device: &'a Device,
    order: AtomicU64,
}

impl<'a> Clock<'a> {
    pub fn new(device: &'a Device) -> Clock<'a> {
        Clock { device, order: AtomicU64::new(1) }
    }

    fn begun(&self) -> Moment {
        let (position, order) = (self.device.position(), self.order.fetch_add(1, Ordering::SeqCst));
        Moment { position, order, time: now() }
    }

    fn answered(&self) -> Moment {
        let (order, time) = (self.order.fetch_add(1, Ordering::SeqCst), now());
        Moment { position: self.device.position(), order, time }
    }

    /// Runs a call between two moments.
    pub fn span<T>(&self, call: impl FnOnce() -> T) -> (Span, T) {
        let begun = self.begun();
        let done = call();
        (Span { begun, answered: self.answered() }, done)
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    File(Object),
    Directory,
    Symlink,
}

/// A change of the names below a worker's directory.
#[derive(Clone, Debug)]
pub enum Names {
    Make(String, Node),
    Link { from: String, to: String },
    Rename { from: String, to: String },
    Exchange(String, String),
    Remove(String),
}

/// The names below a worker's directory.
pub type Tree = BTreeMap<String, Node>;

impl Names {
    pub fn apply(&self, tree: &mut Tree) {
        match self {
            Names::Make(name, node) => drop(tree.insert(name.clone(), *node)),
            Names::Link { from, to } => drop(tree.insert(to.clone(), tree[from])),
            Names::Rename { from, to } => {
                let node = tree.remove(from).unwrap();
                tree.insert(to.clone(), node);
            }
            Names::Exchange(a, b) => {
                let (first, second) = (tree[a], tree[b]);
                tree.insert(a.clone(), second);
                tree.insert(b.clone(), first);
            }
            Names::Remove(name) => drop(tree.remove(name)),
        }
    }
}

/// One call.
#[derive(Clone, Debug)]
pub enum What {
    /// A change of names; one that replaces or exchanges makes the bytes of these files durable with itself.
    Names(Names, Vec<Object>),
    /// Opened for writing.
    Open(Object),
    /// Opened for writing and emptied.
    Truncate(Object),
    Write {
        object: Object,
        offset: u64,
        len: u64,
        tag: Tag,
    },
    Fsync(Object),
    /// Closed; `durable` where close waits for the disk.
    Close {
        object: Object,
        durable: bool,
    },
    /// fsync of a directory.
    SyncNames,
}

impl What {
    /// The file whose bytes it concerns.
    pub fn object(&self) -> Option<Object> {
        match self {
            What::Open(object) | What::Truncate(object) | What::Fsync(object) => Some(*object),
            What::Write { object, .. } | What::Close { object, .. } => Some(*object),
            What::Names(..) | What::SyncNames => None,
        }
    }
}

/// A call with its moments.
#[derive(Clone, Debug)]
pub struct Event {
    pub span: Span,
    pub what: What,
}

/// All calls of one worker, in order.
#[derive(Debug, Default)]
pub struct Diary {
    /// Directory of the worker, from the root of the tree.
    pub place: String,
    pub events: Vec<Event>,
    /// Names as they are now.
    pub tree: Tree,
    /// Bytes of all files that ever were.
    pub objects: Vec<Content>,
}

impl Diary {
    pub fn new_object(&mut self) -> Object {
        self.objects.push(Content::default());
        self.objects.len() - 1
    }

    /// Makes a call that has to succeed, and writes down what it did.
    #[track_caller]
    pub fn call<T>(&mut self, clock: &Clock, what: &[What], call: impl FnOnce() -> io::Result<T>) -> T {
        let (span, done) = clock.span(call);
        let done = done.unwrap_or_else(|e| panic!("{}: {what:?}: {e}", self.place));
        for what in what {
            match what {
                What::Names(names, _) => names.apply(&mut self.tree),
                What::Truncate(object) => self.objects[*object] = Content::default(),
                What::Write { object, offset, len, tag } => self.objects[*object].write(*offset, *len, *tag),
                _ => {}
            }
            self.events.push(Event { span, what: what.clone() });
        }
        done
    }
}

#[test]
fn contents_are_what_was_written() {
    let mut random = super::random::Random::new(7);
    for _ in 0..300 {
        let (mut content, mut model) = (Content::default(), Vec::new());
        for tag in 1..8 {
            let (offset, len) = (random.below(60), random.below(40));
            content.write(offset, len, tag);
            let end = (offset + len) as usize;
            if len > 0 {
                model.resize(model.len().max(end), 0);
                model[offset as usize..end].copy_from_slice(&bytes_of(tag, offset, len));
            }
            assert!(content.bytes() == model, "{content:?}");
        }
    }
}
