//! What the check finds in depots that were damaged on purpose, and what it mends.

use super::*;
use crate::change::ROOT;
use crate::config::Secret;
use crate::filestore::object_store::{self, ObjectStore, Service};
use crate::filestore::{FileSystem, Options, Parts, Staged};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

struct Depot {
    dir: tempfile::TempDir,
    index: Index,
    store: Filestore,
}

impl Depot {
    fn new() -> Depot {
        let dir = tempfile::tempdir().unwrap();
        let (db, blobs) = (dir.path().join("index.db"), dir.path().join("filestore"));
        FileSystem::create(&blobs, [7; 16], &Options::default()).unwrap();
        Index::create(&db, &index::Init { depot_id: [7; 16], uid: 0, gid: 0, mode: 0o755, at: 1 }).unwrap();
        let store = Filestore::open(&blobs, [7; 16], &Options::default()).unwrap();
        Depot { dir, index: Index::open(&db).unwrap(), store }
    }

    /// A blob in the filestore that the index does not know.
    fn stray(&self, bytes: &[u8]) -> Digest {
        let name = StagingName(self.index.next_number().unwrap());
        let file = self.store.stage(name).unwrap();
        file.write_at(bytes, 0).unwrap();
        let digest = self.store.open_staging(name).unwrap().digest(|| true).unwrap().unwrap();
        let latch = self.store.latch(&digest.checksum);
        self.store.put(&[(digest.checksum, Staged { name, size: digest.size })]).unwrap();
        drop(latch);
        self.store.discard(name).unwrap();
        digest
    }

    /// A blob that file `repo/file` shows.
    fn file(&self, bytes: &[u8]) -> Digest {
        let digest = self.stray(bytes);
        let number = || self.index.next_number().unwrap();
        let [create, content] = adoption(&self.index, &digest, "file").unwrap();
        let Change::Create { inode, target, xattrs, cookie, .. } = create else { panic!() };
        let repo = Inode { ino: number(), kind: Kind::Directory, mode: 0o755, nlink: 2, ..inode.clone() };
        let parent = repo.ino;
        let make = |parent, name: &str, cookie, inode| Change::Create {
            parent,
            name: name.into(),
            cookie,
            inode,
            target: target.clone(),
            xattrs: xattrs.clone(),
        };
        let changes = [make(ROOT, "repo", number(), repo), make(parent, "file", cookie, inode), content];
        self.index.commit(&changes).unwrap();
        digest
    }

    fn blob(&self, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.dir.path().join("filestore").join(&name[..2]).join(name)
    }

    fn check(&self, repair: bool) -> Report {
        run(&self.index, &self.store, repair).unwrap()
    }
}

#[test]
fn a_sound_depot_has_no_findings() {
    let depot = Depot::new();
    assert_eq!(depot.check(true), Report { blobs: 1, ..Report::default() });
    depot.file(b"bytes");
    assert_eq!(depot.check(false), Report { blobs: 2, ..Report::default() });
}

#[test]
fn missing_and_cut_blobs_are_named_with_their_paths_and_stay() {
    let depot = Depot::new();
    let (sum, size) = (depot.file(b"bytes").checksum, 5);
    let paths = || vec!["repo/file".to_owned()];
    fs::set_permissions(depot.blob(&sum), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(depot.blob(&sum), b"byt").unwrap();
    let report = depot.check(true);
    assert_eq!(report.findings[0].problem, Problem::WrongSize { sum, size, found: 3, paths: paths() });
    fs::remove_file(depot.blob(&sum)).unwrap();
    let report = depot.check(true);
    assert_eq!(report.findings[0].problem, Problem::Missing { sum, size, paths: paths() });
    assert_eq!(report.remaining(), 1);
}

#[test]
fn stray_blobs_get_a_name_and_nothing_else_is_touched() {
    let depot = Depot::new();
    let (sum, size) = (depot.stray(b"stray").checksum, 5);
    let report = depot.check(false);
    assert_eq!(
        report.findings,
        [Finding { problem: Problem::StrayBlob { sum, size }, repaired: None, failed: None }]
    );
    assert_eq!(depot.check(true).remaining(), 0);
    assert_eq!(depot.check(false).findings, []);
    let named = depot.index.resolve(format!("lost+found/{sum}").as_bytes()).unwrap().unwrap();
    assert_eq!((named.checksum, named.size), (Some(sum), 5));
    fs::write(depot.dir.path().join("filestore/ab/notes"), b"?").unwrap();
    let report = depot.check(true);
    assert!(
        matches!(&report.findings[..], [Finding { problem: Problem::StrayFile(path), repaired: None, failed: None }]
        if path.ends_with("ab/notes"))
    );
}

#[test]
fn a_stray_blob_whose_name_is_taken_gets_another() {
    let depot = Depot::new();
    let (sum, other) = (depot.stray(b"stray").checksum, depot.stray(b"other"));
    let taken = adoption(&depot.index, &other, &sum.to_string()).unwrap();
    depot.index.commit(&taken).unwrap();
    let report = depot.check(true);
    assert_eq!(report.findings[0].repaired, Some(format!("named lost+found/{sum}.2")));
    let named = depot.index.resolve(format!("lost+found/{sum}.2").as_bytes()).unwrap().unwrap();
    assert_eq!((named.checksum, report.remaining()), (Some(sum), 0));
    assert_eq!(depot.check(false).findings, []);
}

#[test]
fn altered_stray_blobs_are_not_served_under_a_name() {
    let depot = Depot::new();
    let sum = depot.stray(b"stray").checksum;
    fs::set_permissions(depot.blob(&sum), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(depot.blob(&sum), b"STRAY").unwrap();
    assert_eq!(depot.check(true).remaining(), 1);
    assert!(depot.blob(&sum).exists());
}

#[test]
fn staging_files_and_their_rows_are_compared() {
    let depot = Depot::new();
    let sum = depot.file(b"bytes").checksum;
    let ino = depot.index.resolve(b"repo/file").unwrap().unwrap().ino;
    let names: Vec<_> = (0..3).map(|_| StagingName(depot.index.next_number().unwrap())).collect();
    let (boot, mount, checksum, failed) = ([0; 16], [0; 16], None, None);
    let row = |file| StagedRow {
        ino,
        file,
        boot,
        mount,
        forced: true,
        checksum,
        mtime: 1,
        ctime: 1,
        failed: failed.clone(),
    };
    drop(depot.store.stage(names[0]).unwrap());
    drop(depot.store.stage(names[1]).unwrap());
    depot.index.commit(&[Change::Stage(row(names[0]))]).unwrap();
    let report = depot.check(false);
    assert_eq!(report.unsealed, 1);
    assert_eq!(
        report.findings,
        [Finding { problem: Problem::StrayStaging(names[1]), repaired: None, failed: None }]
    );
    depot.store.discard(names[0]).unwrap();
    let report = depot.check(true);
    assert_eq!((report.findings.len(), report.remaining()), (2, 0), "{:?}", report.findings);
    assert_eq!(depot.check(false).findings, []);
    assert_eq!(depot.index.inode(ino).unwrap().unwrap().checksum, Some(sum));
}

#[test]
fn a_blob_that_cannot_be_brought_back_is_told_and_in_nobody_s_way() {
    let dir = tempfile::tempdir().unwrap();
    let port =
        std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).unwrap().port();
    let second = std::time::Duration::from_secs(1);
    let options = object_store::Options {
        dir: dir.path().join("state"),
        service: Service::S3 {
            region: String::new(),
            credentials: Some(("someone".into(), Secret::new("guessed"))),
            path_style: true,
        },
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        bucket: "bucket".into(),
        path: String::new(),
        instance_credentials: false,
        max_connections: 4,
        connection_timeout: second,
        socket_timeout: second,
        multipart_limit: 6 << 20,
        multipart_element_size: 5 << 20,
        test_connection: false,
    };
    ObjectStore::create(&options, [7; 16]).unwrap();
    let objects = Arc::new(ObjectStore::open(&options, [7; 16]).unwrap());
    let parts = Parts { objects: Some(objects.clone()), ..Parts::default() };
    let store = Filestore::of_parts(objects, parts);
    let missing = |n| Problem::Missing { sum: Checksum([n; 20]), size: 3, paths: Vec::new() };
    let findings = [1, 2].map(|n| Finding { problem: missing(n), repaired: None, failed: None }).to_vec();
    let mut report = Report { findings, ..Report::default() };
    assert!(from_versions(&store, &mut report).unwrap());
    assert_eq!(report.remaining(), 2);
    for finding in &report.findings {
        let told = finding.to_string();
        assert!(told.contains("[not repaired: cannot list the versions of s3://bucket"), "{told}");
    }
}
