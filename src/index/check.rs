//! Consistency of the index in itself; whether the blobs are there is the filestore's to say.
//!
//! Finding and mending are apart: `problems` looks at a whole state, `mend` takes one problem away. A repair mends and looks
//! again until nothing changes, all in one transaction, because one repair can uncover another (a name that goes leaves an
//! inode without one).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use rusqlite::Connection;

use super::error::{Result, Shown};
use super::numbers::{MARK_MAX, Numbers};
use super::sql::check as find;
use super::{BlobRow, Checksum, Counts, Index, Ino, Inode, Kind, sql};
use crate::change::{FIRST_INO, LOST_FOUND, RESERVED, ROOT};
use crate::failpoint;

/// More rounds than one repair can uncover of another.
const ROUNDS_MAX: usize = 8;

/// Something that is not as the schema says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// SQLite says that the file itself is damaged. Nothing is repaired then.
    Damage(String),
    /// A reserved directory is not there under its name.
    Reserved(Ino),
    /// A name stands for no inode.
    NameOfNothing {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// The number it stands for.
        ino: Ino,
    },
    /// A name is in no directory.
    NameInNothing {
        /// What should be a directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// The inode it stands for.
        ino: Ino,
    },
    /// A directory has more than one name.
    TwoNames(Ino),
    /// A directory lies below itself, so no path leads to it.
    Cycle(Ino),
    /// An inode has no name, and is not recorded as an orphan.
    Unnamed(Ino),
    /// What is recorded as an orphan has a name or entries, or is no inode.
    FalseOrphan(Ino),
    /// A link count is wrong.
    Links {
        /// The inode.
        ino: Ino,
        /// What is recorded.
        recorded: i64,
        /// What was counted.
        actual: i64,
    },
    /// A content names no blob.
    UnknownBlob {
        /// The checksum.
        checksum: Checksum,
        /// The size of a file that has it.
        size: u64,
    },
    /// A reference count is wrong.
    References {
        /// The blob.
        checksum: Checksum,
        /// What is recorded.
        recorded: i64,
        /// What was counted.
        actual: i64,
    },
    /// A file has another size than its blob.
    Size {
        /// The file.
        ino: Ino,
        /// What is recorded.
        recorded: u64,
        /// The blob's.
        actual: u64,
    },
    /// A staging file belongs to an inode that is not there.
    StagedNothing(Ino),
    /// A staging file belongs to what is no file, or to two files.
    StagedWrongly(Ino),
    /// A symlink has no target.
    Targetless(Ino),
    /// Attributes, target or settings of an inode that is not there.
    Leftovers(Ino),
    /// The counters are wrong.
    Counters {
        /// What is recorded, if anything.
        recorded: Option<Counts>,
        /// What was counted.
        actual: Counts,
    },
    /// A number is in use that has not been given out yet.
    Numbers {
        /// The recorded mark.
        mark: u64,
        /// The highest number in use.
        highest: u64,
    },
}

/// A problem and whether it was mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was found.
    pub problem: Problem,
    /// Whether it is gone now.
    pub repaired: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)?;
        f.write_str(if self.repaired { " (repaired)" } else { "" })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Problem::*;
        match self {
            Damage(what) => write!(f, "the index file is damaged: {what}"),
            Reserved(ino) => write!(f, "the reserved directory {ino} is not under its name"),
            NameOfNothing { parent, name, ino } => {
                write!(
                    f,
                    "name {} in directory {parent} stands for inode {ino}, which is missing",
                    Shown(name)
                )
            }
            NameInNothing { parent, name, ino } => {
                write!(f, "name {} of inode {ino} is in {parent}, which is no directory", Shown(name))
            }
            TwoNames(ino) => write!(f, "directory {ino} has more than one name"),
            Cycle(ino) => write!(f, "directory {ino} lies below itself"),
            Unnamed(ino) => write!(f, "inode {ino} has no name and is no orphan"),
            FalseOrphan(ino) => write!(f, "inode {ino} is recorded as an orphan and is none"),
            Links { ino, recorded, actual } => {
                write!(f, "inode {ino} has link count {recorded}, should be {actual}")
            }
            UnknownBlob { checksum, size } => {
                write!(f, "blob {checksum} ({size} bytes) is content but not recorded")
            }
            References { checksum, recorded, actual } => {
                write!(f, "blob {checksum} has reference count {recorded}, should be {actual}")
            }
            Size { ino, recorded, actual } => {
                write!(f, "file {ino} has size {recorded}, its blob has {actual}")
            }
            StagedNothing(ino) => write!(f, "a staging file belongs to inode {ino}, which is missing"),
            StagedWrongly(ino) => {
                write!(f, "the staging file of inode {ino} is another's too, or it is no file")
            }
            Targetless(ino) => write!(f, "symlink {ino} has no target"),
            Leftovers(ino) => write!(f, "attributes or settings of inode {ino}, which is missing"),
            Counters { recorded, actual } => write!(f, "the counters are {recorded:?}, should be {actual:?}"),
            Numbers { mark, highest } => {
                write!(f, "number {highest} is in use, numbers up to {mark} were given out")
            }
        }
    }
}

/// Checks the index at `path`, which must not be open elsewhere. See [`Index::check`].
pub fn check(path: &Path, repair: bool) -> Result<Vec<Finding>> {
    Index::open(path)?.check(repair)
}

pub(super) fn run(index: &Index, repair: bool) -> Result<Vec<Finding>> {
    let found = {
        index.flush()?;
        let c = index.readers.snapshot()?;
        let damage: Vec<_> = find::damage(&c)?.into_iter().map(Problem::Damage).collect();
        if !damage.is_empty() {
            return Ok(findings(damage, |_| false));
        }
        problems(&c)?
    };
    if !repair || found.is_empty() {
        return Ok(findings(found, |_| false));
    }
    // No numbers are given out meanwhile: new cookies begin at the mark, which moves in the same commit.
    let mut numbers = index.numbers.lock();
    let (left, mark) = index.writer.lock().directly(|c| {
        let mark = mend_all(c)?;
        // A crash here leaves everything as it was, one after the commit everything mended.
        failpoint::hit("repair.mended");
        Ok((problems(c)?, mark))
    })?;
    failpoint::hit("repair.committed");
    index.force_log()?;
    *numbers = Numbers::from_mark(mark);
    drop(numbers);
    index.places.clear();
    index.sync()?;
    let uncovered: Vec<_> = left.iter().filter(|p| !found.contains(p)).cloned().collect();
    let mut all = findings(found, |p| !left.contains(p));
    all.extend(findings(uncovered, |_| false));
    Ok(all)
}

fn findings(problems: Vec<Problem>, repaired: impl Fn(&Problem) -> bool) -> Vec<Finding> {
    problems.into_iter().map(|problem| Finding { repaired: repaired(&problem), problem }).collect()
}

/// Mends until nothing more can be; the new high-water mark of the numbers.
fn mend_all(c: &Connection) -> Result<u64> {
    // A number out of all bounds is nothing to go on from; it stays a problem.
    let mut mark = recorded_mark(c)?.max(find::highest_number(c)? + 1).clamp(FIRST_INO, MARK_MAX - 1);
    let mut before = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let found = problems(c)?;
        if found == before {
            break;
        }
        for problem in &found {
            mend(c, problem, &mut mark)?;
        }
        sql::set_meta(c, "numbers", &mark.to_string())?;
        before = found;
    }
    Ok(mark)
}

fn recorded_mark(c: &Connection) -> Result<u64> {
    Ok(sql::meta(c, "numbers")?.and_then(|mark| mark.parse().ok()).unwrap_or_default())
}

/// Everything that is wrong with the state that `c` sees.
fn problems(c: &Connection) -> Result<Vec<Problem>> {
    use Problem::*;
    let mut found = Vec::new();
    for (name, ino) in RESERVED {
        if sql::lookup(c, ROOT, name)?.is_none_or(|i| i.ino != ino || i.kind != Kind::Directory) {
            found.push(Reserved(ino));
        }
    }
    let name = |(parent, name, ino)| NameOfNothing { parent, name, ino };
    found.extend(find::names_of_nothing(c)?.into_iter().map(name));
    let name = |(parent, name, ino)| NameInNothing { parent, name, ino };
    found.extend(find::names_in_nothing(c)?.into_iter().map(name));
    found.extend(misplaced(&find::directories(c)?));
    found.extend(find::unnamed(c)?.into_iter().map(Unnamed));
    found.extend(find::false_orphans(c)?.into_iter().map(FalseOrphan));
    let links = |(ino, recorded, actual)| Links { ino, recorded, actual };
    found.extend(find::nlink_drift(c)?.into_iter().map(links));
    found.extend(find::unknown_blobs(c)?.into_iter().map(|(checksum, size)| UnknownBlob { checksum, size }));
    let references = |(checksum, recorded, actual)| References { checksum, recorded, actual };
    found.extend(find::refs_drift(c)?.into_iter().map(references));
    found.extend(find::size_drift(c)?.into_iter().map(|(ino, recorded, actual)| Size {
        ino,
        recorded,
        actual,
    }));
    found.extend(find::staged_nothing(c)?.into_iter().map(StagedNothing));
    found.extend(find::staged_wrongly(c)?.into_iter().map(StagedWrongly));
    found.extend(find::targetless(c)?.into_iter().map(Targetless));
    found.extend(find::leftovers(c)?.into_iter().map(Leftovers));
    let (recorded, actual) = (sql::counts(c)?, find::actual_counts(c)?);
    if recorded != Some(actual) {
        found.push(Counters { recorded, actual });
    }
    let (mark, highest) = (recorded_mark(c)?, find::highest_number(c)?);
    if highest >= mark {
        found.push(Numbers { mark, highest });
    }
    Ok(found)
}

/// Directories with two names, and one directory of each cycle.
fn misplaced(edges: &[(Ino, Ino)]) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut parents = HashMap::new();
    for (ino, parent) in edges {
        if parents.insert(*ino, *parent).is_some() && !found.contains(&Problem::TwoNames(*ino)) {
            found.push(Problem::TwoNames(*ino));
        }
    }
    let mut settled: HashSet<Ino> = HashSet::new();
    for (start, _) in edges {
        let (mut way, mut at) = (HashSet::new(), *start);
        while !settled.contains(&at) && way.insert(at) {
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => break,
            }
        }
        // Either a directory settled before, or one without a parent, or the way bit its own tail.
        if !settled.contains(&at) && parents.contains_key(&at) {
            found.push(Problem::Cycle(at));
        }
        settled.extend(way);
    }
    found
}

/// Takes one problem away where that loses nothing. A problem that is gone already is no error.
fn mend(c: &Connection, problem: &Problem, mark: &mut u64) -> Result<()> {
    use Problem::*;
    match problem {
        Damage(_) | StagedWrongly(_) | Targetless(_) => Ok(()),
        Reserved(ino) => mend_reserved(c, *ino, mark),
        NameOfNothing { parent, name, ino } | NameInNothing { parent, name, ino } => {
            sql::delete_dentry(c, *parent, name, *ino).map(drop)
        }
        TwoNames(ino) => {
            let surplus = sql::parents(c, *ino)?.into_iter().skip(1);
            surplus
                .into_iter()
                .try_for_each(|(parent, name)| sql::delete_dentry(c, parent, &name, *ino).map(drop))
        }
        Cycle(ino) => match sql::parent(c, *ino)? {
            Some((parent, name)) => sql::delete_dentry(c, parent, &name, *ino).map(drop),
            None => Ok(()),
        },
        Unnamed(ino) if sql::parent(c, *ino)?.is_some() => Ok(()),
        Unnamed(ino) => {
            let name = format!("#{ino}");
            sql::insert_dentry(c, LOST_FOUND, name.as_bytes(), fresh(mark), *ino).map(drop)
        }
        FalseOrphan(ino) => sql::delete_orphan(c, *ino).map(drop),
        Links { ino, actual, .. } => find::set_nlink(c, *ino, *actual),
        UnknownBlob { checksum, size } => {
            let (checksum, size) = (*checksum, *size);
            let since = sql::inode(c, ROOT)?.map_or(0, |root| root.ctime);
            sql::insert_blob(
                c,
                &BlobRow { checksum, size, blake3: None, sha256: None, md5: None, refs: 0, since },
            )
        }
        References { checksum, actual, .. } => find::set_refs(c, checksum, *actual),
        Size { ino, actual, .. } => find::set_size(c, *ino, *actual),
        StagedNothing(ino) => mend_staged(c, *ino),
        Leftovers(ino) => {
            sql::delete_xattrs(c, *ino)?;
            sql::delete_target(c, *ino)?;
            sql::delete_settings(c, *ino)
        }
        Counters { actual, .. } => sql::set_counts(c, actual),
        Numbers { highest, .. } => {
            *mark = (*mark).max(highest + 1).min(MARK_MAX - 1);
            Ok(())
        }
    }
}

fn fresh(mark: &mut u64) -> u64 {
    *mark += 1;
    *mark - 1
}

fn mend_reserved(c: &Connection, ino: Ino, mark: &mut u64) -> Result<()> {
    let Some(root) = sql::inode(c, ROOT)? else { return Ok(()) };
    if sql::inode(c, ino)?.is_none() {
        sql::insert_inode(c, &Inode { ino, mode: 0o700, nlink: 2, ..root })?;
    }
    for (name, _) in RESERVED.iter().filter(|(_, reserved)| *reserved == ino) {
        sql::insert_dentry(c, ROOT, name, fresh(mark), ino)?;
    }
    Ok(())
}

/// The staging file may hold the only copy of its bytes: it gets an inode, which then gets a name.
fn mend_staged(c: &Connection, ino: Ino) -> Result<()> {
    let (Some(row), Some(root)) = (sql::staged_of(c, ino)?, sql::inode(c, ROOT)?) else { return Ok(()) };
    let (kind, mode, nlink) = (Kind::File, 0o600, 0);
    let (mtime, ctime) = (row.mtime, row.ctime);
    sql::insert_inode(c, &Inode { ino, kind, mode, nlink, atime: mtime, mtime, ctime, btime: mtime, ..root })
}
