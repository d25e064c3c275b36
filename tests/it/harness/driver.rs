//! A program that works in a mount that may die at any call, and knows what has to be there afterwards.
//!
//! Each call is a line in a log outside of the depot when it begins and one when it is answered, and a change of a model of
//! the tree. What was answered has to be there; the call that was not, wholly or not at all, but for a write, of which any
//! part may be.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::RenameFlags;

use crate::data::noise;
use crate::sys;

/// The daemon is gone.
#[derive(Debug)]
pub struct Died;

/// A file, directory or symlink.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    what: What,
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Seen after the last call that was answered; `None` while it is not known.
    mtime: Option<(i64, i64)>,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Fifo,
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::File(bytes) => write!(f, "{} bytes, SHA-1 {}", bytes.len(), &super::sha1(bytes)[..8]),
            What::Directory => f.write_str("directory"),
            What::Symlink(to) => write!(f, "-> {to}"),
            What::Fifo => f.write_str("fifo"),
        }
    }
}

/// The tree: names, and what they name.
#[derive(Clone, Debug, Default)]
struct Model {
    names: BTreeMap<String, usize>,
    nodes: Vec<Node>,
}

/// What a name shows from outside: the node, its number of names, and the first of these.
type Picture = BTreeMap<String, (Node, u64, String)>;

impl Model {
    fn node(&mut self, name: &str) -> &mut Node {
        let at = self.names[name];
        &mut self.nodes[at]
    }

    fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        let node = self.node(name);
        node.mtime = None;
        match &mut node.what {
            What::File(bytes) => bytes,
            _ => panic!("{name} is no file"),
        }
    }

    fn put(&mut self, name: &str, what: What, mode: u32) {
        self.nodes.push(Node { what, mode, xattrs: BTreeMap::new(), mtime: None });
        self.names.insert(name.to_owned(), self.nodes.len() - 1);
        self.touch_parent(name);
    }

    /// The directory of a name gets another mtime.
    fn touch_parent(&mut self, name: &str) {
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        self.node(&parent).mtime = None;
    }

    /// Moves a name and all below it.
    fn rename(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        for name in moved {
            let at = self.names.remove(&name).unwrap();
            self.names.insert(format!("{to}{}", &name[from.len()..]), at);
        }
        self.touch_parent(from);
        self.touch_parent(to);
    }

    fn picture(&self) -> Picture {
        let names =
            |at: usize| self.names.iter().filter(move |(_, other)| **other == at).map(|(name, _)| name);
        let links = |at: usize| match self.nodes[at].what {
            What::Directory => 0,
            _ => names(at).count() as u64,
        };
        let shown = |at: usize| (self.nodes[at].clone(), links(at), names(at).next().unwrap().clone());
        self.names.iter().map(|(name, at)| (name.clone(), shown(*at))).collect()
    }
}

/// The tree as the mount shows it.
fn look(root: &Path) -> Picture {
    let mut found: Picture = BTreeMap::new();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    let mut all = vec![String::new()];
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if entry.file_type().unwrap().is_dir() {
                open.push(name.clone());
            }
            all.push(name);
        }
    }
    all.sort();
    for name in all {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            What::Directory
        } else if kind.is_symlink() {
            What::Symlink(fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(bytes.len() as u64, meta.len(), "size of {name}");
            What::File(bytes)
        } else {
            What::Fifo
        };
        let listed = if kind.is_symlink() { Vec::new() } else { sys::listxattr(&path).unwrap() };
        let own = listed.into_iter().filter(|x| x.starts_with("user.") && !x.starts_with("user.depotfs."));
        let xattrs = own.map(|x| (x.clone(), sys::getxattr(&path, &x).unwrap())).collect();
        let mtime = Some((meta.mtime(), meta.mtime_nsec()));
        let mode = if kind.is_symlink() { 0 } else { meta.permissions().mode() & 0o7777 };
        let links = if kind.is_dir() { 0 } else { meta.nlink() };
        let twin = first.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        found.insert(name, (Node { what, mode, xattrs, mtime }, links, twin));
    }
    found
}

/// Where the tree is not what a picture shows; `None`s in the picture are not compared.
fn differences(found: &Picture, wanted: &Picture) -> Vec<String> {
    let mut all = Vec::new();
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        all.push(format!("{name:?} should not be there: {:?}", found[name].0));
    }
    for (name, (node, links, twin)) in wanted {
        let Some((there, there_links, there_twin)) = found.get(name) else {
            all.push(format!("{name:?} is missing: {node:?}"));
            continue;
        };
        let mtime = node.mtime.and(there.mtime);
        let there = Node { mtime, ..there.clone() };
        if (&there, there_links, there_twin) != (node, links, twin) {
            all.push(format!(
                "{name:?} is {there:?}, {there_links} links, first {there_twin:?}\n    wanted {node:?}, {links}, {twin:?}"
            ));
        }
    }
    all
}

/// The program.
pub struct Driver {
    root: PathBuf,
    log: File,
    log_path: PathBuf,
    /// Makes the bytes of this program others than those of the next.
    salt: u64,
    calls: usize,
    model: Model,
    /// What the tree may also be, when a call was not answered.
    pending: Vec<Model>,
    files: BTreeMap<String, File>,
}

impl Driver {
    /// Works in a directory of `parent` that it makes; the log is kept in `logs`. `salt` tells it from others.
    pub fn new(parent: &Path, salt: usize, logs: &Path) -> Driver {
        let (name, salt) = (format!("program{salt}"), salt as u64);
        let root = parent.join(&name);
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let mut model = Model::default();
        model.nodes.push(Node { what: What::Directory, mode: 0o755, xattrs: BTreeMap::new(), mtime: None });
        model.names.insert(String::new(), 0);
        let log_path = logs.join(format!("{name}.log"));
        let log = File::create(&log_path).unwrap();
        let (calls, pending, files) = (0, Vec::new(), BTreeMap::new());
        Driver { root, log, log_path, salt, calls, model, pending, files }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    /// Bytes that no other program writes.
    pub fn noise(&self, seed: u64, len: usize) -> Vec<u8> {
        noise(self.salt << 8 | seed, len)
    }

    /// What a file should hold.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        match &self.model.nodes[self.model.names[name]].what {
            What::File(bytes) => bytes.clone(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// One call: a line before it, a line after it, and what it changes.
    fn call(
        &mut self,
        line: String,
        change: impl Fn(&mut Model),
        act: impl FnOnce(&mut Driver) -> io::Result<()>,
    ) -> Result<(), Died> {
        self.calls += 1;
        let number = self.calls;
        writeln!(self.log, "{number} {line}").unwrap();
        let mut after = self.model.clone();
        change(&mut after);
        match act(self) {
            Ok(()) => {
                writeln!(self.log, "{number} answered").unwrap();
                self.model = after;
                self.pending.clear();
                self.learn_times();
                Ok(())
            }
            Err(error) if is_death(&error) => {
                writeln!(self.log, "{number} not answered: {error}").unwrap();
                self.pending.push(after);
                Err(Died)
            }
            Err(error) => panic!("{line}: {error}\n{}", self.history()),
        }
    }

    /// Times are what the mount says they are, and have to stay so.
    fn learn_times(&mut self) {
        let named = self.model.names.iter().map(|(name, at)| (name.clone(), *at));
        let unknown: Vec<_> = named.filter(|(_, at)| self.model.nodes[*at].mtime.is_none()).collect();
        for (name, at) in unknown {
            let found = fs::symlink_metadata(self.path(&name)).ok();
            self.model.nodes[at].mtime = found.map(|meta| (meta.mtime(), meta.mtime_nsec()));
        }
    }

    pub fn create(&mut self, name: &str) -> Result<(), Died> {
        let mode = fs::Permissions::from_mode(0o644);
        self.call(
            format!("create {name}"),
            |model| model.put(name, What::File(Vec::new()), 0o644),
            |driver| {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create_new(true).open(driver.path(name))?;
                debug_assert_eq!(file.metadata().map_or(0o644, |m| m.mode() & 0o7777), mode.mode());
                driver.files.insert(name.to_owned(), file);
                Ok(())
            },
        )
    }

    pub fn open(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("open {name}"),
            |_| {},
            |driver| {
                let file = OpenOptions::new().read(true).write(true).open(driver.path(name))?;
                driver.files.insert(name.to_owned(), file);
                Ok(())
            },
        )
    }

    pub fn open_to_read(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("open {name} to read"),
            |_| {},
            |driver| {
                let file = File::open(driver.path(name))?;
                let mut first = [0; 1];
                file.read_at(&mut first, 0)?;
                driver.files.insert(format!("{name} to read"), file);
                Ok(())
            },
        )
    }

    pub fn open_empty(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("open {name}, emptied"),
            |model| model.bytes(name).clear(),
            |driver| {
                let file = OpenOptions::new().write(true).truncate(true).open(driver.path(name))?;
                driver.files.insert(name.to_owned(), file);
                Ok(())
            },
        )
    }

    /// Writes to an open file.
    pub fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) -> Result<(), Died> {
        let write = |model: &mut Model, bytes: &[u8]| {
            let content = model.bytes(name);
            content.resize(content.len().max(offset + bytes.len()), 0);
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let before = self.model.clone();
        let what = format!("write {name}, {} bytes at {offset}", bytes.len());
        let done = self.call(
            what,
            |model| write(model, bytes),
            |driver| driver.files[name].write_all_at(bytes, offset as u64),
        );
        if done.is_err() {
            let mut half = before;
            write(&mut half, &bytes[..bytes.len() / 2]);
            self.pending.push(half);
        }
        done
    }

    pub fn close(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("close {name}"),
            |_| {},
            |driver| {
                let file = driver.files.remove(name).unwrap();
                Ok(nix::unistd::close(file.into_raw_fd())?)
            },
        )
    }

    /// A closed file with these bytes.
    pub fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Died> {
        self.create(name)?;
        self.write(name, 0, bytes)?;
        self.close(name)
    }

    pub fn fsync(&mut self, name: &str) -> Result<(), Died> {
        self.call(format!("fsync {name}"), |_| {}, |driver| driver.files[name].sync_all())
    }

    /// Reads a whole file, which has to be what the model says.
    pub fn read(&mut self, name: &str) -> Result<(), Died> {
        let wanted = self.bytes(name);
        self.call(
            format!("read {name}"),
            |_| {},
            |driver| {
                assert!(fs::read(driver.path(name))? == wanted, "the bytes of {name}");
                Ok(())
            },
        )
    }

    pub fn truncate(&mut self, name: &str, size: usize) -> Result<(), Died> {
        self.call(
            format!("truncate {name} to {size}"),
            |model| model.bytes(name).resize(size, 0),
            |driver| Ok(nix::unistd::truncate(&driver.path(name), size as i64)?),
        )
    }

    /// copy_file_range(2) between open files, from `at` to the start.
    pub fn copy(&mut self, from: &str, at: usize, to: &str) -> Result<(), Died> {
        let bytes = self.bytes(from)[at..].to_vec();
        let put = |model: &mut Model, bytes: &[u8]| {
            let content = model.bytes(to);
            content.resize(content.len().max(bytes.len()), 0);
            content[..bytes.len()].copy_from_slice(bytes);
        };
        self.call(
            format!("copy {from} from {at} to {to}"),
            |model| put(model, &bytes),
            |driver| {
                let source = &driver.files[&format!("{from} to read")];
                let done = sys::copy_range(source, at as i64, &driver.files[to], 0, bytes.len())?;
                assert_eq!(done, bytes.len(), "copied at once");
                Ok(())
            },
        )
    }

    pub fn mkdir(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("mkdir {name}"),
            |model| model.put(name, What::Directory, 0o755),
            |driver| fs::create_dir(driver.path(name)),
        )
    }

    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Died> {
        self.call(
            format!("rename {from} {to}"),
            |model| model.rename(from, to),
            |driver| fs::rename(driver.path(from), driver.path(to)),
        )
    }

    pub fn exchange(&mut self, a: &str, b: &str) -> Result<(), Died> {
        let change = |model: &mut Model| {
            let (of_a, of_b) = (model.names[a], model.names[b]);
            model.names.insert(a.to_owned(), of_b);
            model.names.insert(b.to_owned(), of_a);
            model.touch_parent(a);
            model.touch_parent(b);
        };
        self.call(format!("exchange {a} {b}"), change, |driver| {
            let (a, b) = (driver.path(a), driver.path(b));
            let here = nix::fcntl::AT_FDCWD;
            Ok(nix::fcntl::renameat2(here, &a, here, &b, RenameFlags::RENAME_EXCHANGE)?)
        })
    }

    pub fn link(&mut self, old: &str, new: &str) -> Result<(), Died> {
        let change = |model: &mut Model| {
            model.names.insert(new.to_owned(), model.names[old]);
            model.touch_parent(new);
        };
        self.call(format!("link {old} {new}"), change, |driver| {
            fs::hard_link(driver.path(old), driver.path(new))
        })
    }

    pub fn symlink(&mut self, to: &str, name: &str) -> Result<(), Died> {
        self.call(
            format!("symlink {to} {name}"),
            |model| model.put(name, What::Symlink(to.to_owned()), 0),
            |driver| std::os::unix::fs::symlink(to, driver.path(name)),
        )
    }

    pub fn fifo(&mut self, name: &str) -> Result<(), Died> {
        self.call(
            format!("mkfifo {name}"),
            |model| model.put(name, What::Fifo, 0o640),
            |driver| {
                Ok(nix::unistd::mkfifo(&driver.path(name), nix::sys::stat::Mode::from_bits_truncate(0o640))?)
            },
        )
    }

    pub fn unlink(&mut self, name: &str) -> Result<(), Died> {
        let change = |model: &mut Model| {
            model.names.remove(name);
            model.touch_parent(name);
        };
        self.call(format!("unlink {name}"), change, |driver| fs::remove_file(driver.path(name)))
    }

    pub fn rmdir(&mut self, name: &str) -> Result<(), Died> {
        let change = |model: &mut Model| {
            model.names.remove(name);
            model.touch_parent(name);
        };
        self.call(format!("rmdir {name}"), change, |driver| fs::remove_dir(driver.path(name)))
    }

    pub fn chmod(&mut self, name: &str, mode: u32) -> Result<(), Died> {
        self.call(
            format!("chmod {mode:o} {name}"),
            |model| model.node(name).mode = mode,
            |driver| fs::set_permissions(driver.path(name), fs::Permissions::from_mode(mode)),
        )
    }

    pub fn set_mtime(&mut self, name: &str, seconds: i64) -> Result<(), Died> {
        let change = |model: &mut Model| model.node(name).mtime = Some((seconds, 0));
        self.call(format!("utimens {name} {seconds}"), change, |driver| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds as u64);
            File::open(driver.path(name))?.set_times(fs::FileTimes::new().set_modified(time))
        })
    }

    pub fn set_xattr(&mut self, name: &str, key: &str, value: &[u8]) -> Result<(), Died> {
        let change = |model: &mut Model| {
            model.node(name).xattrs.insert(key.to_owned(), value.to_vec());
        };
        self.call(format!("setxattr {name} {key}"), change, |driver| {
            Ok(sys::setxattr(driver.path(name), key, value, 0)?)
        })
    }

    /// Lets go of everything open.
    pub fn close_all(&mut self) {
        self.files.clear();
    }

    /// Nothing is pending: whatever the last call was, the tree has been looked at since.
    fn settle(&mut self, chosen: Model) {
        self.model = chosen;
        self.pending.clear();
        self.learn_times();
    }

    /// The tree has to be what was answered, with or without the call that was not.
    #[track_caller]
    pub fn compare(&mut self) {
        let found = look(&self.root);
        let mut why = String::new();
        let choices: Vec<Model> =
            std::iter::once(self.model.clone()).chain(self.pending.iter().cloned()).collect();
        for (number, model) in choices.into_iter().enumerate() {
            let wrong = differences(&found, &model.picture());
            if wrong.is_empty() {
                return self.settle(model);
            }
            let which = if number == 0 { "as answered" } else { "with the call that was not answered" };
            why += &format!("  {which}:\n  {}\n", wrong.join("\n  "));
        }
        panic!("{} is neither\n{why}{}", self.root.display(), self.history());
    }

    /// The log, for the text of a failure.
    fn history(&self) -> String {
        let text = fs::read_to_string(&self.log_path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Whether an error says that nobody answers any more.
fn is_death(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::ENOTCONN | Errno::ECONNABORTED))
}
