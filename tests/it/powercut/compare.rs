//! What a recovered tree may look like, by the promises of docs/durability.md.
//!
//! Names: of each worker's changes a first part survived, up to some `k`; the worker's marker tells which `k` to try. What
//! was made durable is in it, and no change is in it without those that were answered before it was begun, whoever made
//! them. Contents: each file that is named after `k` changes has one of the contents that its own calls allow, or is absent
//! if no call made any content of it durable, and then recovery has said so.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::diary::{Content, Diary, Event, Names, Node, Object, Span, Tree, What, bytes_of};
use super::recording::Cut;
use super::workload::Done;

/// After this many nanoseconds a closed file and a name are durable: 5 s are promised, the rest is for a busy machine.
const LONG: u64 = 20_000_000_000;

/// After this many nanoseconds (1.5 s in truth) bytes of a closed file may have been forced unasked.
const FORCED_AFTER: u64 = 1_000_000_000;

/// What was found under a name.
enum Seen {
    File { ino: u64, bytes: Vec<u8> },
    Directory,
    Symlink,
    Unreadable(String),
}

/// Everything that is not as promised, in words.
pub fn judge(done: &Done, cut: &Cut, mountpoint: &Path, reports: &[String]) -> Vec<String> {
    let durable = durable_order(done, cut);
    let mut faults = Vec::new();
    let mut ranges = Vec::new();
    for diary in &done.diaries {
        let dir = mountpoint.join(&diary.place);
        if !dir.is_dir() {
            faults.push(format!("{} is missing", diary.place));
            continue;
        }
        let seen = look(&dir);
        match judge_worker(diary, &done.flushes, cut, durable, &seen, reports) {
            Ok(range) => ranges.push((diary, range)),
            Err(found) => faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", diary.place))),
        }
    }
    faults.extend(judge_order(&ranges));
    faults
}

/// Changes of names that were answered before this moment are durable.
fn durable_order(done: &Done, cut: &Cut) -> u64 {
    let syncs = |event: &&Event| match event.what {
        What::Fsync(_) | What::SyncNames => true,
        What::Close { durable, .. } => durable,
        _ => false,
    };
    let events = || done.diaries.iter().flat_map(|diary| &diary.events);
    let answered = |span: &&Span| span.answered.position <= cut.at;
    let forced = events().filter(syncs).map(|event| &event.span).chain(&done.flushes).filter(answered);
    let old = events().filter(|event| event.span.answered.time + LONG <= cut.time);
    let forced = forced.map(|span| span.begun.order).max().unwrap_or(0);
    forced.max(old.map(|event| event.span.answered.order + 1).max().unwrap_or(0))
}

fn look(dir: &Path) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let what = match meta.file_type() {
            kind if kind.is_dir() => Seen::Directory,
            kind if kind.is_symlink() => Seen::Symlink,
            _ => match fs::read(entry.path()) {
                Ok(bytes) => Seen::File { ino: meta.ino(), bytes },
                Err(error) => Seen::Unreadable(error.to_string()),
            },
        };
        seen.insert(entry.file_name().into_string().unwrap(), what);
    }
    seen
}

/// The changes of names of one worker that may have happened before the cut.
fn changes<'a>(diary: &'a Diary, cut: &Cut) -> Vec<(&'a Names, &'a Span)> {
    let names = diary.events.iter().filter_map(|event| match &event.what {
        What::Names(names, _) => Some((names, &event.span)),
        _ => None,
    });
    names.take_while(|(_, span)| span.begun.position <= cut.at).collect()
}

/// The least and the largest number of changes that the tree agrees with, or what is wrong with the likeliest.
fn judge_worker(
    diary: &Diary,
    flushes: &[Span],
    cut: &Cut,
    durable: u64,
    seen: &BTreeMap<String, Seen>,
    reports: &[String],
) -> Result<(usize, usize), Vec<String>> {
    let changes = changes(diary, cut);
    let least = changes.iter().take_while(|(_, span)| span.answered.order < durable).count();
    let markers: Vec<&String> = seen.keys().filter(|name| name.starts_with("marker.")).collect();
    let is_marker = |tree: &Tree| match &markers[..] {
        [] => !tree.keys().any(|name| name.starts_with("marker.")),
        [one] => tree.contains_key(*one),
        _ => false,
    };
    let (mut tree, mut fitting, mut best) = (Tree::new(), Vec::new(), None::<Vec<String>>);
    for k in 0..=changes.len() {
        if k > 0 {
            changes[k - 1].0.apply(&mut tree);
        }
        if !is_marker(&tree) {
            continue;
        }
        let mut faults = compare(diary, flushes, cut, k, &tree, seen, reports);
        if k < least {
            faults.push(format!("only {k} changes of names survived, and {least} were durable"));
        }
        if faults.is_empty() {
            fitting.push(k);
        } else if best.as_ref().is_none_or(|best| faults.len() <= best.len()) {
            best = Some(faults);
        }
    }
    match (fitting.first(), fitting.last()) {
        (Some(first), Some(last)) => Ok((*first, *last)),
        _ => Err(best.unwrap_or_else(|| vec![format!("the markers {markers:?} belong to no moment")])),
    }
}

fn compare(
    diary: &Diary,
    flushes: &[Span],
    cut: &Cut,
    k: usize,
    tree: &Tree,
    seen: &BTreeMap<String, Seen>,
    reports: &[String],
) -> Vec<String> {
    let mut faults = Vec::new();
    let mut files: BTreeMap<Object, Vec<&String>> = BTreeMap::new();
    for (name, node) in tree {
        let there = seen.get(name);
        match (node, there) {
            (Node::File(object), None | Some(Seen::File { .. })) => {
                files.entry(*object).or_default().push(name)
            }
            (Node::Directory, Some(Seen::Directory)) | (Node::Symlink, Some(Seen::Symlink)) => {}
            (_, Some(Seen::Unreadable(why))) => faults.push(format!("{name} cannot be read: {why}")),
            (node, None) => faults.push(format!("{name} ({node:?}) is missing after {k} changes")),
            (node, Some(_)) => faults.push(format!("{name} is not a {node:?} after {k} changes")),
        }
    }
    faults.extend(
        seen.keys().filter(|n| !tree.contains_key(*n)).map(|n| format!("{n} is there after {k} changes")),
    );
    let mut inos = HashMap::new();
    let lives = Lives::of(diary);
    for (object, names) in files {
        let life = lives.at(object, k, cut, flushes);
        let found: Vec<_> = names.iter().filter_map(|name| Some((*name, seen.get(*name)?))).collect();
        let Some((first, Seen::File { ino, bytes })) = found.first() else {
            if life.durable {
                faults.push(format!(
                    "{names:?} (file {object}) is missing: {}{}",
                    life.tell(),
                    lives.tell(object, cut)
                ));
            } else if !names.iter().any(|name| is_reported(&diary.place, name, reports)) {
                faults.push(format!("{names:?} (file {object}) was removed, and no report names it"));
            }
            continue;
        };
        if found.len() != names.len() {
            faults.push(format!("of the names {names:?} of one file only some are there"));
        }
        let is_it =
            |(_, seen): &&(&String, &Seen)| matches!(seen, Seen::File { ino: other, .. } if other == ino);
        if !found.iter().all(|one| is_it(&one)) || inos.insert(*ino, object).is_some() {
            faults.push(format!("the names {names:?} are not of one file"));
        }
        if !life.allows(bytes) {
            faults.push(format!(
                "{first} (file {object}) has {} that it must not have: {}{}",
                tell(bytes),
                life.tell(),
                lives.tell(object, cut)
            ));
        }
    }
    faults
}

fn is_reported(place: &str, name: &str, reports: &[String]) -> bool {
    let wanted = format!("{place}/{name}: removed");
    reports.iter().any(|line| line.starts_with(&wanted))
}

/// No change that was lost was answered before one that survived was begun.
fn judge_order(ranges: &[(&Diary, (usize, usize))]) -> Vec<String> {
    let names = |diary: &&Diary| -> Vec<(String, Span)> {
        let name = |event: &Event| match &event.what {
            What::Names(names, _) => Some((format!("{}: {names:?}", diary.place), event.span)),
            _ => None,
        };
        diary.events.iter().filter_map(name).collect()
    };
    let all: Vec<_> = ranges.iter().map(|(diary, range)| (names(diary), *range)).collect();
    let survivors = all.iter().filter_map(|(names, (least, _))| names[..*least].last());
    let lost = all.iter().filter_map(|(names, (_, most))| names.get(*most));
    let (Some(survivor), Some(lost)) = (
        survivors.max_by_key(|(_, span)| span.begun.order),
        lost.min_by_key(|(_, span)| span.answered.order),
    ) else {
        return Vec::new();
    };
    match lost.1.answered.order < survivor.1.begun.order {
        true => vec![format!("{} survived without {}", survivor.0, lost.0)],
        false => Vec::new(),
    }
}

/// The calls of one worker by the file they concern.
struct Lives<'a> {
    of: HashMap<Object, Vec<(&'a Event, usize)>>,
}

impl<'a> Lives<'a> {
    /// With each call goes how many changes of names came before it.
    fn of(diary: &'a Diary) -> Lives<'a> {
        let mut of: HashMap<Object, Vec<(&Event, usize)>> = HashMap::new();
        let mut changes = 0;
        for event in &diary.events {
            if let What::Names(_, forced) = &event.what {
                for object in forced {
                    of.entry(*object).or_default().push((event, changes));
                }
                changes += 1;
            } else if let Some(object) = event.what.object() {
                of.entry(object).or_default().push((event, changes));
            }
        }
        Lives { of }
    }

    /// The last calls that concern a file, with the numbers of calls the device had recorded before and after.
    fn tell(&self, object: Object, cut: &Cut) -> String {
        let events = self.of.get(&object).map_or(&[][..], |events| events);
        let happened: Vec<_> = events.iter().take_while(|(e, _)| e.span.begun.position <= cut.at).collect();
        let tell = |(event, _): &&(&Event, usize)| {
            let (begun, answered) = (event.span.begun, event.span.answered);
            let ago = cut.time.saturating_sub(answered.time) / 1_000_000;
            format!("    {}..{} ({ago} ms ago): {:?}", begun.position, answered.position, event.what)
        };
        let lines: Vec<String> = happened[happened.len().saturating_sub(12)..].iter().map(tell).collect();
        format!("\n    the power went at call {}; calls for file {object}:\n{}", cut.at, lines.join("\n"))
    }

    fn at(&self, object: Object, k: usize, cut: &Cut, flushes: &[Span]) -> Life {
        let events = self.of.get(&object).map_or(&[][..], |events| events);
        let happened = events.iter().take_while(|(event, _)| event.span.begun.position <= cut.at);
        let mut life = Life::default();
        // A flush forces open files, too, at some moment while it runs.
        let forced = |from: u64, to: u64| {
            let meets = |flush: &&Span| flush.begun.order < to && from < flush.answered.order;
            flushes.iter().filter(|flush| flush.begun.position <= cut.at).any(|flush| meets(&flush))
        };
        let mut last = 0;
        for (i, (event, changes)) in happened.enumerate() {
            if life.is_open && forced(last, event.span.answered.order) {
                life.may_be_durable();
            }
            last = event.span.begun.order;
            let answered = event.span.answered.position <= cut.at;
            match &event.what {
                What::Open(_) => life.open(&event.span),
                What::Truncate(_) => life.truncate(&event.span),
                What::Write { offset, len, tag, .. } => life.write(*offset, *len, *tag),
                What::Fsync(_) if answered => life.make_durable(),
                What::Fsync(_) => life.may_be_durable(),
                What::Close { durable: true, .. } if answered => life.make_durable(),
                What::Close { durable, .. } => {
                    let is_open = |(event, _): &&(&Event, usize)| {
                        matches!(event.what, What::Open(_) | What::Truncate(_))
                    };
                    let next = events[i + 1..].iter().find(is_open).map(|(event, _)| &event.span);
                    life.close(&event.span, *durable);
                    if sealed_by(flushes, &event.span, next, cut) || lasted(&event.span, next, cut) {
                        life.make_durable();
                    }
                }
                What::Names(..) if *changes < k => life.make_durable(),
                What::Names(..) => life.may_be_durable(),
                What::SyncNames => {}
            }
        }
        if life.is_open && forced(last, u64::MAX) {
            life.may_be_durable();
        }
        life
    }
}

/// Whether a flush came after this close and before the file was opened for writing again.
fn sealed_by(flushes: &[Span], closed: &Span, opened: Option<&Span>, cut: &Cut) -> bool {
    flushes.iter().any(|flush| {
        flush.begun.order > closed.answered.order
            && flush.answered.position <= cut.at
            && opened.is_none_or(|opened| opened.begun.order > flush.answered.order)
    })
}

/// Whether the file stayed closed for so long that it is durable.
fn lasted(closed: &Span, opened: Option<&Span>, cut: &Cut) -> bool {
    let until = opened.map_or(cut.time, |opened| opened.begun.time.min(cut.time));
    until >= closed.answered.time + LONG
}

/// A content that was, or may have been, forced, and what was written in its place since.
struct Base {
    content: Content,
    writes: Vec<(u64, u64, u64)>,
    /// A later O_TRUNC began another staging file.
    ended: bool,
}

impl Base {
    /// Whether these are its bytes, and of later writes any part.
    fn allows(&self, bytes: &[u8]) -> bool {
        let size = self.content.size();
        let longest = self.writes.iter().map(|(offset, len, _)| offset + len).max().unwrap_or(0).max(size);
        if (bytes.len() as u64) < size || bytes.len() as u64 > longest {
            return false;
        }
        let mut expected = self.content.bytes();
        expected.resize(bytes.len(), 0);
        let mut good: Vec<bool> = expected.iter().zip(bytes).map(|(a, b)| a == b).collect();
        for (offset, len, tag) in &self.writes {
            let later = bytes_of(*tag, *offset, *len);
            for (at, byte) in (*offset as usize..bytes.len()).zip(later) {
                good[at] |= bytes[at] == byte;
            }
        }
        good.into_iter().all(|good| good)
    }
}

/// What a file may be after the cut.
#[derive(Default)]
struct Life {
    now: Content,
    /// Some content is durable: the file must be there.
    durable: bool,
    /// Versions that may be there as a whole.
    whole: Vec<Content>,
    bases: Vec<Base>,
    /// Since when bytes may be waiting to be forced.
    since: Option<u64>,
    closed: Option<u64>,
    is_open: bool,
}

impl Life {
    fn open(&mut self, span: &Span) {
        // The daemon forces what has been closed for a while, or has waited for long, although nobody asked.
        let long = |since: Option<u64>| since.is_some_and(|since| span.answered.time - since >= FORCED_AFTER);
        if self.closed.is_some() && (long(self.closed) || long(self.since)) {
            self.may_be_durable();
        }
        self.since.get_or_insert(span.begun.time);
        (self.closed, self.is_open) = (None, true);
    }

    fn truncate(&mut self, span: &Span) {
        self.bases.iter_mut().for_each(|base| base.ended = true);
        self.now = Content::default();
        (self.since, self.closed, self.is_open) = (Some(span.begun.time), None, true);
    }

    fn write(&mut self, offset: u64, len: u64, tag: u64) {
        self.now.write(offset, len, tag);
        for base in self.bases.iter_mut().filter(|base| !base.ended) {
            base.writes.push((offset, len, tag));
        }
    }

    fn close(&mut self, span: &Span, durable: bool) {
        self.whole.push(self.now.clone());
        (self.closed, self.is_open) = (Some(span.begun.time), false);
        if durable {
            self.may_be_durable();
        }
    }

    fn may_be_durable(&mut self) {
        self.whole.push(self.now.clone());
        self.bases.push(Base { content: self.now.clone(), writes: Vec::new(), ended: false });
    }

    fn make_durable(&mut self) {
        self.whole.clear();
        self.bases.clear();
        self.may_be_durable();
        self.durable = true;
    }

    fn allows(&self, bytes: &[u8]) -> bool {
        let is = |content: &Content| content.size() == bytes.len() as u64 && content.bytes() == bytes;
        self.whole.iter().any(is) || self.bases.iter().any(|base| base.allows(bytes))
    }

    fn tell(&self) -> String {
        let whole: Vec<String> = self.whole.iter().map(|content| tell(&content.bytes())).collect();
        let later: usize = self.bases.iter().map(|base| base.writes.len()).sum();
        let absent = if self.durable { "" } else { "nothing, or " };
        format!(
            "wanted {absent}one of {whole:?}, {} of them with any part of {later} later writes",
            self.bases.len()
        )
    }
}

/// Bytes in a few words.
fn tell(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), &crate::harness::sha1(bytes)[..8])
}
