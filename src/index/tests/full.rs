//! A disk filled to the last byte. Needs root, for a small file system of its own.

use std::io::Write;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// A file system of `mib` MiB; gone when dropped.
pub(super) struct Small(TempDir);

impl Small {
    pub fn new(mib: u32) -> Option<Small> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m");
        let mounted =
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        match mounted {
            Ok(()) => Some(Small(dir)),
            Err(e) => {
                eprintln!("skipped: cannot mount a small file system here: {e}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all space there is.
    pub fn fill(&self) {
        let mut file =
            fs::OpenOptions::new().append(true).create(true).open(self.0.path().join("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

pub(super) fn make(index: &Index, parent: Ino, name: &str, kind: Kind) -> Result<Ino> {
    let ino = index.next_number()?;
    index.commit(&[create(parent, name, index.next_number()?, inode(ino, kind, 1))])?;
    Ok(ino)
}

#[test]
fn removals_work_on_a_full_disk_and_nothing_else_is_lost() {
    let Some(disk) = Small::new(64) else { return };
    let path = disk.0.path().join("index.db");
    Index::create(&path, &init()).unwrap();
    let index = Index::open(&path).unwrap();
    let repo = make(&index, ROOT, "repo", Kind::Directory).unwrap();
    let mut files = Vec::new();
    for n in 0..2000 {
        let ino = make(&index, repo, &format!("file{n}"), Kind::File).unwrap();
        index.commit(&[content(ino, sum(n), 10)]).unwrap();
        files.push(ino);
    }
    disk.fill();
    let full = loop {
        match make(&index, repo, &format!("more{}", files.len()), Kind::File) {
            Ok(ino) => files.push(ino),
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::Full { .. }), "{full:?}");
    assert_eq!(index.reserve_bytes(), reserve::RESERVE_BYTES);
    let before = dump(&index);
    for _ in 0..3 {
        assert!(matches!(make(&index, repo, "again", Kind::File), Err(Error::Full { .. })));
        let attr = Change::Attr {
            ino: repo,
            mode: Some(0),
            uid: None,
            gid: None,
            atime: None,
            mtime: None,
            ctime: None,
        };
        let mixed = [remove(repo, "file0", files[0], 1), attr];
        assert!(matches!(index.commit(&mixed), Err(Error::Full { .. })));
    }
    assert!(dump(&index) == before, "a refused commit changed something");
    disk.fill();
    for (n, ino) in files.iter().enumerate().take(2000) {
        index.commit(&[remove(repo, &format!("file{n}"), *ino, 1)]).unwrap();
        index.commit(&[Change::Reap { ino: *ino }]).unwrap();
        index.commit(&[Change::Forget { checksum: sum(n as u64) }]).unwrap();
        disk.fill();
    }
    assert!(files[..2000].iter().all(|ino| index.inode(*ino).unwrap().is_none()));
    index.sync().unwrap();
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    assert_eq!(index.check(false).unwrap(), []);
    make(&index, repo, "space again", Kind::File).unwrap();
    index.sync().unwrap();
    assert_eq!(index.reserve_bytes(), reserve::RESERVE_BYTES);
    assert_eq!(index.check(false).unwrap(), []);
}

#[test]
fn an_index_opens_on_a_full_disk() {
    let Some(disk) = Small::new(24) else { return };
    let path = disk.0.path().join("index.db");
    Index::create(&path, &init()).unwrap();
    let index = Index::open(&path).unwrap();
    let repo = make(&index, ROOT, "repo", Kind::Directory).unwrap();
    drop(index);
    disk.fill();
    let index = Index::open(&path).unwrap();
    index.commit(&[remove(ROOT, "repo", repo, 1)]).unwrap();
    assert_eq!(index.check(false).unwrap(), []);
}
