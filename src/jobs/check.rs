//! Offline consistency of a depot: the index in itself, and the filestore against it.
//!
//! Reads every row and looks at every blob's size, but not at its bytes; that is for scrub. With `repair`, what can be put
//! right without losing data is: counters and references are counted anew, stray blobs get a name in `lost+found`, nothing
//! that a path shows is removed.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use crate::change::{Change, Inode, Kind, LOST_FOUND, StagedRow, StagingName};
use crate::checksum::{Checksum, Digest};
use crate::clock;
use crate::failpoint;
use crate::filestore::{self, Filestore, Listed};
use crate::index::{self, Index};

/// What stands in the way of a check.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The filestore cannot be listed.
    #[error(transparent)]
    Filestore(#[from] filestore::Error),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// In the index itself.
    Index(String),
    /// A blob that files have as their content is not there.
    Missing {
        /// Which.
        sum: Checksum,
        /// Its bytes.
        size: u64,
        /// Some of the paths that show it.
        paths: Vec<String>,
    },
    /// A blob's file is of another size.
    WrongSize {
        /// Which.
        sum: Checksum,
        /// What the index says.
        size: u64,
        /// What is there.
        found: u64,
        /// Some of the paths that show it.
        paths: Vec<String>,
    },
    /// A blob that the index does not know.
    StrayBlob {
        /// Which.
        sum: Checksum,
        /// Its bytes.
        size: u64,
    },
    /// Something among the blobs that is none.
    StrayFile(String),
    /// A staging file that nothing names.
    StrayStaging(StagingName),
    /// A file whose newest bytes should be in a staging file that is not there.
    MissingStaging {
        /// The staging file.
        name: StagingName,
        /// A path of the file.
        path: String,
        /// Whether it has a previous version.
        previous: bool,
    },
}

/// A problem, and what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was found.
    pub problem: Problem,
    /// What was done about it; `None`: it remains.
    pub repaired: Option<String>,
    /// Why nothing could be done about it, where that was tried and failed.
    pub failed: Option<String>,
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Problems.
    pub findings: Vec<Finding>,
    /// Blobs looked at.
    pub blobs: u64,
    /// Files whose newest bytes are not sealed yet; the next mount does it.
    pub unsealed: u64,
}

impl Report {
    /// Problems that remain.
    pub fn remaining(&self) -> usize {
        self.findings.iter().filter(|finding| finding.repaired.is_none()).count()
    }
}

/// Puts back missing and cut blobs from the earlier versions that their bucket keeps; `false`: they are in no bucket.
pub fn from_versions(store: &Filestore, report: &mut Report) -> Result<bool, Error> {
    for finding in &mut report.findings {
        let (Problem::Missing { sum, size, .. } | Problem::WrongSize { sum, size, .. }) = &finding.problem
        else {
            continue;
        };
        match store.bring_back(sum, *size) {
            Ok(None) => return Ok(false),
            Ok(Some(true)) => {
                finding.repaired = Some("put back from an earlier version in the bucket".into())
            }
            Ok(Some(false)) => {}
            // What one of them failed by need not be in the way of the others.
            Err(error) => finding.failed = Some(crate::text::chain(&error)),
        }
    }
    Ok(true)
}

/// Blobs read from the index at a time.
const PAGE: usize = 1000;
/// Paths named with a bad blob.
const PATHS_MAX: usize = 5;

/// Checks a depot whose lock the caller holds and that is not mounted.
pub fn run(index: &Index, store: &Filestore, repair: bool) -> Result<Report, Error> {
    let mut report = Report::default();
    for finding in index.check(repair)? {
        let repaired = finding.repaired.then(|| "put right in the index".to_owned());
        report.findings.push(Finding {
            problem: Problem::Index(finding.problem.to_string()),
            repaired,
            failed: None,
        });
    }
    check_staging(index, store, repair, &mut report)?;
    check_blobs(index, store, repair, &mut report)?;
    Ok(report)
}

/// Staging files against the rows that name them.
fn check_staging(index: &Index, store: &Filestore, repair: bool, report: &mut Report) -> Result<(), Error> {
    let mut rows: HashMap<StagingName, StagedRow> =
        index.staged()?.into_iter().map(|row| (row.file, row)).collect();
    for name in store.staging_names()? {
        if rows.remove(&name).is_some() {
            report.unsealed += 1;
            continue;
        }
        // Nothing that was answered is in it: a row is committed before the first byte can be written.
        let repaired = match repair {
            true => store
                .discard(name)
                .inspect(|()| failpoint::hit("repair.discarded"))
                .map(|()| Some("removed".to_owned()))?,
            false => None,
        };
        report.findings.push(Finding { problem: Problem::StrayStaging(name), repaired, failed: None });
    }
    for (name, row) in rows {
        if row.is_unmade() {
            report.unsealed += 1;
            continue;
        }
        let path = index.path(row.ino)?;
        let path = path.map_or_else(|| format!("inode {}", row.ino), |path| text(&path));
        let previous = index.inode(row.ino)?.is_some_and(|inode| inode.checksum.is_some());
        let mut repaired = None;
        if repair && previous {
            index.commit(&[Change::Unstage { ino: row.ino }])?;
            failpoint::hit("repair.unstaged");
            repaired = Some("the file is its previous version again".to_owned());
        }
        report.findings.push(Finding {
            problem: Problem::MissingStaging { name, path, previous },
            repaired,
            failed: None,
        });
    }
    if repair {
        index.sync()?;
    }
    Ok(())
}

/// The blobs of the index and the listing of the filestore, both in the order of checksums, walked side by side.
fn check_blobs(index: &Index, store: &Filestore, repair: bool, report: &mut Report) -> Result<(), Error> {
    let mut known = Known { index, page: Vec::new().into_iter(), last: None, ended: false };
    let mut next = known.next()?;
    let mut failure = None;
    store.list(None, &mut |listed| {
        let step = match listed {
            Listed::Stray(path) => {
                let problem = Problem::StrayFile(path.display().to_string());
                report.findings.push(Finding { problem, repaired: None, failed: None });
                Ok(())
            }
            Listed::Blob { sum, size } => meet(&mut known, &mut next, sum, size, report),
        };
        match step {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    while let Some((sum, size)) = next {
        lost(index, sum, size, report)?;
        next = known.next()?;
    }
    if repair {
        name_stray_blobs(index, store, report)?;
    }
    Ok(())
}

/// One blob of the listing: rows before it have no bytes, a row of its own must agree, no row makes it a stray.
fn meet(
    known: &mut Known<'_>,
    next: &mut Option<(Checksum, u64)>,
    sum: Checksum,
    found: u64,
    report: &mut Report,
) -> Result<(), Error> {
    while let Some((row, size)) = *next {
        if row >= sum {
            break;
        }
        lost(known.index, row, size, report)?;
        *next = known.next()?;
    }
    report.blobs += 1;
    match *next {
        Some((row, size)) if row == sum => {
            if size != found {
                let paths = paths(known.index, &sum)?;
                let problem = Problem::WrongSize { sum, size, found, paths };
                report.findings.push(Finding { problem, repaired: None, failed: None });
            }
            *next = known.next()?;
        }
        _ => report.findings.push(Finding {
            problem: Problem::StrayBlob { sum, size: found },
            repaired: None,
            failed: None,
        }),
    }
    Ok(())
}

/// A row without bytes. A blob that nothing refers to may be half collected: its row is all that is left, and harmless.
fn lost(index: &Index, sum: Checksum, size: u64, report: &mut Report) -> Result<(), Error> {
    let refs = index.blob(&sum)?.map_or(0, |row| row.refs);
    if refs == 0 && sum != Checksum::EMPTY {
        return Ok(());
    }
    let paths = paths(index, &sum)?;
    report.findings.push(Finding {
        problem: Problem::Missing { sum, size, paths },
        repaired: None,
        failed: None,
    });
    Ok(())
}

/// Gives stray blobs a name in `lost+found`, so that nothing is lost and everything is known again.
///
/// A blob whose bytes are not those of its checksum stays where it is: under a name it would only be served wrongly.
fn name_stray_blobs(index: &Index, store: &Filestore, report: &mut Report) -> Result<(), Error> {
    for finding in &mut report.findings {
        let Problem::StrayBlob { sum, .. } = finding.problem else { continue };
        let Some(digest) = store.digest_blob(&sum)?.filter(|digest| digest.checksum == sum) else { continue };
        let name = free_name(index, &sum)?;
        index.commit(&adoption(index, &digest, &name)?)?;
        // A crash in a repair is one before or after each thing it does: what is left is found again.
        failpoint::hit("repair.adopted");
        finding.repaired = Some(format!("named lost+found/{name}"));
    }
    index.sync()?;
    Ok(())
}

/// A name for a blob in `lost+found`: its checksum, or that with a number where a file of that name has become another one.
fn free_name(index: &Index, sum: &Checksum) -> Result<String, Error> {
    let mut name = sum.to_string();
    let mut tries = 1;
    while index.lookup(LOST_FOUND, name.as_bytes())?.is_some() {
        tries += 1;
        name = format!("{sum}.{tries}");
    }
    Ok(name)
}

/// A new file of root's in `lost+found` with these bytes as its content.
fn adoption(index: &Index, digest: &Digest, name: &str) -> Result<[Change; 2], Error> {
    let (ino, at) = (index.next_number()?, clock::now());
    let (atime, mtime, ctime, btime) = (at, at, at, at);
    let (kind, mode, uid, gid, rdev, nlink, size, checksum) = (Kind::File, 0o600, 0, 0, 0, 1, 0, None);
    let inode = Inode { ino, kind, mode, uid, gid, rdev, nlink, size, checksum, atime, mtime, ctime, btime };
    let create = Change::Create {
        parent: LOST_FOUND,
        name: name.into(),
        cookie: index.next_number()?,
        inode,
        target: None,
        xattrs: Vec::new(),
    };
    let Digest { checksum, size, blake3 } = *digest;
    Ok([create, Change::Content { ino, checksum, size, blake3: Some(blake3), mtime, ctime }])
}

fn paths(index: &Index, sum: &Checksum) -> Result<Vec<String>, Error> {
    Ok(index.names(sum, PATHS_MAX)?.iter().map(|path| text(path)).collect())
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The rows of `blob`, page by page.
struct Known<'a> {
    index: &'a Index,
    page: std::vec::IntoIter<(Checksum, u64)>,
    last: Option<Checksum>,
    ended: bool,
}

impl Known<'_> {
    fn next(&mut self) -> Result<Option<(Checksum, u64)>, Error> {
        if let Some(row) = self.page.next() {
            self.last = Some(row.0);
            return Ok(Some(row));
        }
        if self.ended {
            return Ok(None);
        }
        let rows = self.index.blobs(self.last.as_ref(), PAGE)?;
        self.ended = rows.len() < PAGE;
        self.page = rows.into_iter().map(|row| (row.checksum, row.size)).collect::<Vec<_>>().into_iter();
        let row = self.page.next();
        self.last = row.map(|row| row.0).or(self.last);
        Ok(row)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.problem, f)?;
        match (&self.repaired, &self.failed) {
            (Some(done), _) => write!(f, " [repaired: {done}]"),
            (None, Some(why)) => write!(f, " [not repaired: {why}]"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Index(what) => write!(f, "index: {what}"),
            Problem::Missing { sum, size, paths } => {
                write!(f, "blob {sum} ({size} bytes) is missing{}", shown_by(paths))
            }
            Problem::WrongSize { sum, size, found, paths } => {
                write!(f, "blob {sum} has {found} bytes instead of {size}{}", shown_by(paths))
            }
            Problem::StrayBlob { sum, size } => {
                write!(f, "blob {sum} ({size} bytes) is not known to the index")
            }
            Problem::StrayFile(path) => write!(f, "{path} does not belong into the filestore: move it away"),
            Problem::StrayStaging(name) => write!(f, "staging file {name} belongs to no file"),
            Problem::MissingStaging { name, path, previous: true } => {
                write!(f, "the newest bytes of {path} are lost: staging file {name} is missing")
            }
            Problem::MissingStaging { name, path, previous: false } => {
                write!(
                    f,
                    "all bytes of {path} are lost, staging file {name} is missing: the next mount removes the name"
                )
            }
        }
    }
}

fn shown_by(paths: &[String]) -> String {
    if paths.is_empty() { String::new() } else { format!("; content of {}", paths.join(", ")) }
}

#[cfg(test)]
mod tests;
