//! The local directory and the façade: what the laws cannot see because it lies below the trait.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::laws::{self, bytes_of, fresh_name, listed, open, put, sum_of};
use super::volume::{Volume, Work};
use super::*;

const ID: [u8; 16] = [0xab; 16];
const MIB: u64 = 1 << 20;

/// A staging file that holds `bytes`, as an element of a batch.
fn staged(provider: &dyn Provider, bytes: &[u8]) -> (Checksum, Staged) {
    let (sum, Offer { name, size, .. }) = laws::staged(provider, bytes);
    (sum, Staged { name, size })
}

fn detach(store: &Filestore, sum: &Checksum) -> Result<()> {
    let file = open(&*store.provider, sum).unwrap().file_id().unwrap();
    store.detach(&store.latch(sum), fresh_name(), file)
}

/// A filestore in a directory of its own.
struct Depot {
    dir: PathBuf,
    store: Filestore,
    _root: Option<TempDir>,
}

impl Depot {
    fn new() -> Depot {
        let root = TempDir::new().unwrap();
        let mut depot = Depot::on(root.path());
        depot._root = Some(root);
        depot
    }

    fn on(root: &Path) -> Depot {
        let dir = root.join("filestore");
        Filestore::create(&dir, ID).unwrap();
        let store = Filestore::open(&dir, ID, &Options::default()).unwrap();
        Depot { dir, store, _root: None }
    }

    /// As after a crash: the same directory, opened by a new daemon.
    fn reopened(mut self) -> Depot {
        self.store = Filestore::open(&self.dir, ID, &Options::default()).unwrap();
        self
    }

    fn provider(&self) -> &dyn Provider {
        &*self.store.provider
    }

    fn blob(&self, sum: &Checksum) -> PathBuf {
        let name = sum.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    fn pre(&self, name: StagingName) -> PathBuf {
        self.dir.join("_pre").join(name.to_string())
    }

    fn pre_is_empty(&self) -> bool {
        fs::read_dir(self.dir.join("_pre")).unwrap().next().is_none()
    }
}

/// A file system mounted for one test; gone with it.
struct Mounted(TempDir);

impl Mounted {
    fn tmpfs(options: &str) -> Option<Mounted> {
        let dir = TempDir::new().unwrap();
        let mounted = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options));
        match mounted {
            Ok(()) => Some(Mounted(dir)),
            Err(e) => skipped(&format!("cannot mount a tmpfs: {e}")),
        }
    }

    /// Makes a file system of this type in an image of 400 MiB; the kernel frees the loop device with the mount.
    fn made_by(mkfs: &str, images: &TempDir) -> Option<Mounted> {
        let image = images.path().join(mkfs);
        fs::File::create(&image).unwrap().set_len(400 * MIB).unwrap();
        let made = Command::new(mkfs).arg("-q").arg(&image).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            return skipped(&format!("{mkfs} does not work here: {made:?}"));
        }
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Mounted(dir)),
            other => skipped(&format!("cannot mount what {mkfs} made: {other:?}")),
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Says past the harness's capture that a test proves nothing on this host.
fn skipped<T>(why: &str) -> Option<T> {
    writeln!(io::stderr(), "SKIPPED: {why}").unwrap();
    None
}

#[test]
fn the_laws_hold_for_a_local_directory() {
    laws::hold_for(|| {
        let depot = Depot::new();
        (depot._root, depot.store.provider)
    });
}

#[test]
fn the_laws_hold_on_other_file_systems() {
    let images = TempDir::new().unwrap();
    let others = [Mounted::tmpfs("size=64m"), Mounted::made_by("mkfs.btrfs", &images)];
    let xfs = Mounted::made_by("mkfs.xfs", &images);
    for mounted in others.into_iter().chain([xfs]).flatten() {
        let count = std::cell::Cell::new(0);
        laws::hold_for(|| {
            count.set(count.get() + 1);
            let depot = Depot::on(&mounted.path().join(count.get().to_string()));
            ((), depot.store.provider)
        });
    }
}

#[test]
fn a_new_filestore_holds_the_empty_blob_and_nothing_else() {
    let depot = Depot::new();
    assert_eq!(listed(depot.provider(), None), [(Checksum::EMPTY.to_string(), Some(0))]);
    let empty = fs::metadata(depot.blob(&Checksum::EMPTY)).unwrap();
    assert_eq!((empty.nlink(), empty.permissions().mode() & 0o7777), (1, 0o400));
    assert!(depot.pre_is_empty());
    assert_eq!(fs::read_to_string(depot.dir.join(".depotfs")).unwrap(), "ab".repeat(16) + "\n");
    Filestore::create(&depot.dir, ID).unwrap();
}

#[test]
fn only_a_directory_of_this_depot_is_opened() {
    let depot = Depot::new();
    let refused = |dir: &Path, id| Filestore::open(dir, id, &Options::default()).unwrap_err();
    let foreign = refused(&depot.dir, [1; 16]);
    assert!(matches!(&foreign, Error::Foreign { .. }), "{foreign}");
    assert!(foreign.to_string().contains(&"01".repeat(16)), "{foreign}");
    assert!(matches!(Filestore::create(&depot.dir, [1; 16]), Err(Error::Foreign { .. })));
    let absent = refused(&depot.dir.join("gone"), ID);
    assert!(matches!(&absent, Error::NotADepotDirectory { .. }), "{absent}");
    assert!(absent.to_string().contains("does not exist"), "{absent}");
    let unmarked = refused(depot.dir.parent().unwrap(), ID);
    assert!(matches!(&unmarked, Error::NotADepotDirectory { .. }), "{unmarked}");
    fs::remove_file(depot.dir.join(".depotfs")).unwrap();
    fs::write(depot.dir.join(".depotfs"), "not an id").unwrap();
    assert!(matches!(refused(&depot.dir, ID), Error::NotADepotDirectory { .. }));
}

#[test]
fn a_duplicate_keeps_the_first_file() {
    let depot = Depot::new();
    let sum = put(depot.provider(), b"same");
    let first = fs::metadata(depot.blob(&sum)).unwrap().ino();
    let again = staged(depot.provider(), b"same");
    depot.store.put(&[again]).unwrap();
    assert_eq!(fs::metadata(depot.blob(&sum)).unwrap().ino(), first);
    depot.store.open_staging_writer(again.1.name).unwrap();
}

#[test]
fn a_blob_of_the_wrong_size_is_found_and_healed() {
    let depot = Depot::new();
    let sum = put(depot.provider(), b"whole");
    let path = depot.blob(&sum);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, b"who").unwrap();
    let found = depot.store.open_blob(&sum, 5).unwrap_err();
    assert!(matches!(found, Error::WrongSize { expected: 5, found: 3, .. }), "{found}");
    put(depot.provider(), b"whole");
    assert_eq!(bytes_of(&depot.store.open_blob(&sum, 5).unwrap()), b"whole");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
    fs::remove_file(&path).unwrap();
    assert!(matches!(depot.store.open_blob(&sum, 5), Err(Error::Missing(_))));
    symlink("/dev/null", &path).unwrap();
    depot.store.open_blob(&sum, 5).unwrap_err();
    put(depot.provider(), b"whole");
    assert_eq!(bytes_of(&depot.store.open_blob(&sum, 5).unwrap()), b"whole");
    assert!(depot.pre_is_empty());
}

#[test]
fn altered_bytes_are_found() {
    let depot = Depot::new();
    let sum = put(depot.provider(), b"good bytes");
    let digest = depot.store.digest_blob(&sum).unwrap().unwrap();
    let good = Verdict::Good { blake3: digest.blake3, size: 10 };
    assert_eq!(depot.store.verify(&sum, 10, None, &|| true).unwrap(), good);
    assert_eq!(depot.store.verify(&sum, 10, Some(&digest.blake3), &|| true).unwrap(), good);
    fs::set_permissions(depot.blob(&sum), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(depot.blob(&sum), b"evil bytes").unwrap();
    assert_eq!(depot.store.verify(&sum, 10, None, &|| true).unwrap(), Verdict::Altered { size: 10 });
    assert_eq!(
        depot.store.verify(&sum, 10, Some(&digest.blake3), &|| true).unwrap(),
        Verdict::Altered { size: 10 }
    );
    assert!(depot.store.remove_blob(&depot.store.latch(&sum)).unwrap());
    assert_eq!(depot.store.verify(&sum, 10, None, &|| true).unwrap(), Verdict::Missing);
    assert_eq!(depot.store.digest_blob(&sum).unwrap(), None);
}

#[test]
fn strays_are_told_and_an_unfinished_listing_is_an_error() {
    let depot = Depot::new();
    let sum = put(depot.provider(), b"a blob");
    let folder = depot.blob(&sum).parent().unwrap().to_owned();
    let upper = sum.to_string().to_uppercase();
    let elsewhere = format!("{:0>40}", "1");
    for stray in [folder.join("junk"), folder.join(&upper), folder.join(&elsewhere), depot.dir.join("note")] {
        fs::write(stray, b"").unwrap();
    }
    let no_text = folder.join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::write(no_text, b"").unwrap();
    let mut found = listed(depot.provider(), None);
    found.retain(|(_, size)| size.is_none());
    found.sort();
    let mut expected = ["junk".to_owned(), upper, elsewhere, "note".to_owned(), "\u{fffd}".to_owned()]
        .map(|name| (name, None));
    expected.sort();
    assert_eq!(found, expected);
    fs::remove_dir(depot.dir.join("fe")).unwrap();
    assert_eq!(
        listed(depot.provider(), Some(&Checksum([0xfd; 20]))),
        [],
        "a folder not made yet is an empty one"
    );
    fs::write(depot.dir.join("fe"), b"").unwrap();
    depot.store.list(None, &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err();
}

#[test]
fn a_folder_that_is_gone_is_made_again() {
    let depot = Depot::new();
    let sum = sum_of(b"into the void");
    fs::remove_dir(depot.blob(&sum).parent().unwrap()).unwrap();
    assert_eq!(put(depot.provider(), b"into the void"), sum);
    assert_eq!(depot.store.stat_blob(&sum).unwrap(), Some(13));
}

#[test]
fn blobs_wear_the_configured_mode_and_owner_and_writers_take_them_off() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("owners can be changed by root only").unwrap_or_default();
    }
    let depot = Depot::new();
    let options = Options { blob_mode: 0o755, blob_owner: Some((1234, 2345)) };
    let store = Filestore::open(&depot.dir, ID, &options).unwrap();
    let (sum, one) = staged(&*store.provider, b"owned");
    store.put(&[(sum, one)]).unwrap();
    let found = fs::metadata(depot.blob(&sum)).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1234, 2345, 0o444));
    assert!(matches!(store.open_staging_writer(one.name), Err(Error::Linked { .. })));
    assert_eq!(store.stat_staging(one.name).unwrap().links, 2);
    assert!(store.remove_blob(&store.latch(&sum)).unwrap());
    store.open_staging_writer(one.name).unwrap();
    let found = fs::metadata(depot.pre(one.name)).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600));
}

#[test]
fn staging_files_are_made_once_and_discarded_at_ease() {
    let depot = Depot::new();
    let names: Vec<StagingName> = (0..5).map(|_| fresh_name()).collect();
    for name in &names {
        depot.store.stage(*name).unwrap();
    }
    depot.store.stage(names[0]).unwrap_err();
    fs::write(depot.dir.join("_pre/elsewhat"), b"").unwrap();
    assert_eq!(depot.store.staging_names().unwrap(), names);
    assert_eq!(fs::metadata(depot.pre(names[0])).unwrap().mode() & 0o7777, 0o600);
    depot.store.discard(names[0]).unwrap();
    depot.store.discard(names[0]).unwrap();
    depot.store.open_staging(names[0]).unwrap_err();
    depot.store.open_staging_writer(names[0]).unwrap_err();
    let reader = depot.store.open_staging(names[1]).unwrap();
    depot.store.open_staging_writer(names[1]).unwrap().write_at(b"seen", 2).unwrap();
    assert_eq!(reader.stat().unwrap().size, 6);
    nix::sys::uio::pwrite(reader.as_fd(), b"x", 0).unwrap_err();
}

#[test]
fn forcing_takes_one_and_many_and_misses_none() {
    let depot = Depot::new();
    let names: Vec<StagingName> = (0..200).map(|_| fresh_name()).collect();
    for name in &names {
        depot.store.stage(*name).unwrap().write_at(&[1; 5000], 0).unwrap();
    }
    depot.store.force_staging(&names[..1]).unwrap();
    depot.store.force_staging(&names).unwrap();
    depot.store.force_staging(&names[..2]).unwrap();
    depot.store.force_staging(&[]).unwrap();
    depot.store.force_staging(&[names[0], fresh_name()]).unwrap_err();
    depot.store.force_staging(&[&names[..], &[fresh_name()]].concat()).unwrap_err();
    depot.store.force_staging(&names).unwrap();
}

#[test]
fn a_file_the_disk_refused_is_never_called_forced() {
    let depot = Depot::new();
    let (sum, one) = staged(depot.provider(), b"lost on the way");
    let dir = depot.provider().staging(one.name).unwrap();
    dir.refuse(one.name);
    assert!(matches!(depot.store.force_staging(&[one.name]), Err(Error::Unforced { .. })));
    assert!(matches!(depot.store.put(&[(sum, one)]), Err(Error::Unforced { .. })));
    depot.store.set_aside(one.name, "the disk refused it").unwrap();
    assert_eq!(depot.store.aside().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_sealed_is_set_aside_and_expires() {
    let depot = Depot::new();
    let (_, one) = staged(depot.provider(), b"collided");
    let path = depot.store.set_aside(one.name, "same SHA-1 as another content").unwrap();
    assert_eq!(depot.store.set_aside(one.name, "again").unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"collided");
    assert!(depot.store.staging_names().unwrap().is_empty());
    let aside = depot.store.aside().unwrap();
    assert_eq!(aside.len(), 1);
    assert_eq!((aside[0].size, aside[0].why.as_str()), (8, "same SHA-1 as another content"));
    assert_eq!(aside[0].path, path);
    assert!(depot.store.expire_aside(KEPT_FOR).unwrap().is_empty());
    assert_eq!(depot.store.expire_aside(Duration::ZERO).unwrap(), aside);
    assert!(depot.store.aside().unwrap().is_empty());
    depot.store.set_aside(fresh_name(), "never was").unwrap_err();
}

#[test]
fn a_detach_that_a_crash_stops_leaves_the_blob_whole() {
    // The link was made, the copy half written.
    let depot = Depot::new();
    let sum = put(depot.provider(), b"precious");
    let name = fresh_name();
    fs::hard_link(depot.blob(&sum), depot.pre(name)).unwrap();
    let temporary = depot.dir.join(format!("_pre/{name}.tmp"));
    fs::write(&temporary, b"prec").unwrap();
    let depot = depot.reopened();
    assert!(!temporary.exists());
    assert_eq!(bytes_of(&open(depot.provider(), &sum).unwrap()), b"precious");
    assert!(matches!(depot.store.open_staging_writer(name), Err(Error::Linked { .. })));

    // The copy has the name, the old file still looks like a blob.
    let copy = depot.dir.join("_pre/copy");
    fs::copy(depot.blob(&sum), &copy).unwrap();
    fs::rename(&copy, depot.blob(&sum)).unwrap();
    let depot = depot.reopened();
    depot.store.open_staging_writer(name).unwrap().write_at(b"PRE", 0).unwrap();
    assert_eq!(fs::metadata(depot.pre(name)).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(bytes_of(&open(depot.provider(), &sum).unwrap()), b"precious");
}

#[test]
fn a_put_that_a_crash_stops_can_be_done_again() {
    // Linked and not committed: the put is repeated and finds its own file.
    let depot = Depot::new();
    let (sum, one) = staged(depot.provider(), b"halfway");
    fs::hard_link(depot.pre(one.name), depot.dir.join("_pre/0.tmp")).unwrap();
    fs::hard_link(depot.pre(one.name), depot.blob(&sum)).unwrap();
    let depot = depot.reopened();
    depot.store.put(&[(sum, one)]).unwrap();
    assert_eq!(depot.store.stat_staging(one.name).unwrap().links, 2);
    depot.store.discard(one.name).unwrap();
    assert_eq!(fs::metadata(depot.blob(&sum)).unwrap().nlink(), 1);
}

#[test]
fn a_sparse_file_stays_sparse_all_the_way() {
    const SIZE: u64 = 5 << 30;
    let depot = Depot::new();
    let name = fresh_name();
    let writer = depot.store.stage(name).unwrap();
    writer.write_at(b"head", 0).unwrap();
    writer.write_at(b"middle", 3 << 30).unwrap();
    writer.set_len(SIZE).unwrap();
    drop(writer);
    let sum = Checksum([3; 20]);
    depot.store.put(&[(sum, Staged { name, size: SIZE })]).unwrap();
    let started = Instant::now();
    let copy = depot.store.stage_from(fresh_name(), &sum, SIZE, u64::MAX).unwrap();
    let cut = depot.store.stage_from(fresh_name(), &sum, SIZE, (3 << 30) + 3).unwrap();
    depot.store.discard(name).unwrap();
    detach(&depot.store, &sum).unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(copy.stat().unwrap().size, SIZE);
    assert_eq!(cut.stat().unwrap().size, (3 << 30) + 3);
    assert!(copy.stat().unwrap().blocks * 512 < MIB);
    assert!(fs::metadata(depot.blob(&sum)).unwrap().blocks() * 512 < MIB);
    let mut found = [0; 6];
    copy.read_at(&mut found, 3 << 30).unwrap();
    assert_eq!(&found, b"middle");
    assert_eq!(cut.read_at(&mut found, 3 << 30).unwrap(), 3);
}

#[test]
fn copies_share_blocks_where_the_file_system_can() {
    let images = TempDir::new().unwrap();
    for mkfs in ["mkfs.btrfs", "mkfs.xfs", "mkfs.ext4"] {
        let Some(mounted) = Mounted::made_by(mkfs, &images) else { continue };
        let depot = Depot::on(mounted.path());
        assert_eq!(depot.store.status().reflink, mkfs != "mkfs.ext4");
        let (sum, size) = (sum_of(b"big"), 64 * MIB);
        let name = fresh_name();
        let writer = depot.store.stage(name).unwrap();
        (0..64).for_each(|i| writer.write_at(&vec![i as u8 + 1; MIB as usize], i * MIB).unwrap());
        depot.store.put(&[(sum, Staged { name, size })]).unwrap();
        depot.store.discard(name).unwrap();
        let copies = [fresh_name(), fresh_name()];
        let before = depot.store.free_space().unwrap().free;
        let whole = depot.store.stage_from(copies[0], &sum, size, size).unwrap();
        let cut = depot.store.stage_from(copies[1], &sum, size, 10 * MIB + 5).unwrap();
        depot.store.force_staging(&copies).unwrap();
        let used = before.saturating_sub(depot.store.free_space().unwrap().free);
        assert_eq!(used < 8 * MIB, mkfs != "mkfs.ext4", "{mkfs}: {used}");
        let mut found = [0; 6];
        whole.read_at(&mut found, 10 * MIB).unwrap();
        assert_eq!(found, [11; 6]);
        assert_eq!(cut.read_at(&mut found, 10 * MIB).unwrap(), 5);
        whole.write_at(b"own", 0).unwrap();
        let mut old = [0; 3];
        depot.store.open_blob(&sum, size).unwrap().read_at(&mut old, 0).unwrap();
        assert_eq!(old, [1; 3]);
    }
}

#[test]
fn a_full_disk_leaves_the_earlier_state() {
    let Some(mounted) = Mounted::tmpfs("size=4m") else { return };
    let depot = Depot::on(mounted.path());
    let sum = put(depot.provider(), &vec![7; 2 * MIB as usize]);
    let before = listed(depot.provider(), None);

    let name = fresh_name();
    let full = depot.store.stage(name).unwrap().write_at(&vec![1; 4 * MIB as usize], 0).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert!(depot.store.stage_from(fresh_name(), &sum, 2 * MIB, u64::MAX).unwrap_err().is_full());
    assert!(detach(&depot.store, &sum).unwrap_err().is_full());
    assert_eq!(depot.store.staging_names().unwrap(), [name]);
    assert_eq!(listed(depot.provider(), None), before);
    assert_eq!(bytes_of(&depot.store.open_blob(&sum, 2 * MIB).unwrap())[5], 7);
    let depot = depot.reopened();
    depot.store.discard(name).unwrap();
    put(depot.provider(), b"goes on");
}

#[test]
fn a_disk_without_inodes_refuses_a_put_and_leaves_nothing() {
    let Some(mounted) = Mounted::tmpfs("size=4m,nr_inodes=274") else { return };
    let depot = Depot::on(mounted.path());
    let batch: Vec<_> = (0..8).map(|i| staged(depot.provider(), &[i; 10])).collect();
    let before = listed(depot.provider(), None);
    let full = depot.store.put(&batch).unwrap_err();
    assert!(full.is_full(), "{full:?}");
    assert_eq!(listed(depot.provider(), None), before);
    for (_, one) in &batch {
        depot.store.open_staging_writer(one.name).unwrap();
    }
    let depot = depot.reopened();
    depot.store.put(&batch[..1]).unwrap();
}

#[test]
fn bytes_that_the_disk_below_loses_are_never_called_forced() {
    // The image of the disk has a hole where there is no room to fill it: writing back fails as on a broken disk.
    let Some(below) = Mounted::tmpfs("size=48m") else { return };
    let images = TempDir::new_in(below.path()).unwrap();
    let Some(mounted) = Mounted::made_by("mkfs.ext4", &images) else { return };
    let depot = Depot::on(mounted.path());
    let safe = put(depot.provider(), b"before");
    let bytes = vec![5; 8 * MIB as usize];
    let batch: Vec<_> = (0..10).map(|_| staged(depot.provider(), &bytes)).collect();
    let lost = batch.iter().filter(|(_, one)| depot.store.force_staging(&[one.name]).is_err()).count();
    assert!(lost > 0, "more was written than fits below");
    let later = batch.iter().filter(|(_, one)| depot.store.force_staging(&[one.name]).is_err()).count();
    assert!(later >= lost, "{lost} were refused, then {later}");
    depot.store.put(&batch).unwrap_err();
    assert_eq!(depot.store.stat_blob(&batch[0].0).unwrap(), None);
    assert_eq!(bytes_of(&depot.store.open_blob(&safe, 6).unwrap()), b"before");
}

#[test]
fn status_is_told_as_json() {
    let status = serde_json::to_value(Depot::new().store.status()).unwrap();
    assert_eq!(status["kind"], "file-system");
    assert_eq!(status["health"], "up");
    assert!(status["space"]["capacity"].as_u64().unwrap() > 0);
}

#[test]
fn latches_of_a_batch_are_taken_once_each_and_in_order() {
    let depot = Depot::new();
    let sums = [3, 1, 3, 2].map(|i| Checksum([i; 20]));
    let held = depot.store.latch_all(sums);
    let order: Vec<u8> = held.iter().map(|latch| latch.checksum().0[0]).collect();
    assert_eq!(order, [1, 2, 3]);
    drop(held);
    drop(depot.store.latch(&sums[0]));
}

#[test]
fn a_blob_whose_file_changes_hands_meanwhile_is_not_called_altered() {
    let depot = Depot::new();
    let bytes = vec![7; 1 << 20];
    let sum = put(depot.provider(), &bytes);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..200 {
                let name = fresh_name();
                let file = open(depot.provider(), &sum).unwrap().file_id().unwrap();
                depot.store.detach(&depot.store.latch(&sum), name, file).unwrap();
                depot.store.open_staging_writer(name).unwrap().write_at(&[9; 4096], 500_000).unwrap();
                depot.store.discard(name).unwrap();
            }
        });
        while !writer.is_finished() {
            let verdict = depot.store.verify(&sum, 1 << 20, None, &|| true).unwrap();
            assert!(matches!(verdict, Verdict::Good { .. }), "{verdict:?}");
        }
    });
}

#[test]
fn the_disk_is_failing_until_what_failed_works_again() {
    let depot = Depot::new();
    let volume = Volume::open(&depot.dir, ID).unwrap();
    let refused = |errno| Err::<(), _>(io::Error::from_raw_os_error(errno)).doing("force", &depot.dir);
    let fails = |work, errno| volume.noted(work, refused(errno)).unwrap_err();
    assert_eq!(volume.failing(), None);
    fails(Work::Force, libc::ENOENT);
    assert_eq!(volume.failing(), None, "a file that is gone is no fault of the disk");
    fails(Work::Force, libc::EROFS);
    assert!(volume.failing().unwrap().contains("Read-only file system"));
    volume.noted(Work::Stage, Ok(())).unwrap();
    assert!(volume.failing().is_some(), "the cache takes names from which the disk gets nothing");
    volume.noted(Work::Put, Ok(())).unwrap();
    assert_eq!(volume.failing(), None);
}

#[test]
fn spoiled_notes_do_not_hide_what_was_set_aside() {
    let depot = Depot::new();
    let mut names = Vec::new();
    for bytes in ["one", "two", "three", "four"] {
        let (_, staged) = staged(depot.provider(), bytes.as_bytes());
        depot.store.set_aside(staged.name, "why").unwrap();
        names.push(staged.name);
    }
    let note = |name: StagingName| depot.dir.join("_aside").join(format!("{name}.txt"));
    for name in &names {
        fs::remove_file(note(*name)).unwrap();
    }
    fs::write(note(names[0]), b"not \xff UTF-8\n").unwrap();
    // A terabyte of zeroes, all of which nobody wants to read.
    fs::File::create(note(names[1])).unwrap().set_len(1 << 40).unwrap();
    nix::unistd::mkfifo(&note(names[2]), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", note(names[3])).unwrap();
    let aside = depot.dir.join("_aside");
    fs::create_dir(aside.join("fffffffffffffff0")).unwrap();
    nix::unistd::mkfifo(&aside.join("fffffffffffffff1"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(aside.join("garbage"), "").unwrap();
    let found = depot.store.aside().unwrap();
    assert_eq!(found.iter().map(|one| one.name).collect::<Vec<_>>(), names);
    assert_eq!(found[0].why, "not \u{fffd} UTF-8");
    assert!(found[1].why.len() <= 64 * 1024);
    assert_eq!((found[2].why.as_str(), found[3].why.as_str()), ("", ""));
    assert_eq!(depot.store.expire_aside(Duration::ZERO).unwrap().len(), 4);
}

#[test]
fn a_marker_with_anything_in_it_is_no_marker() {
    for bytes in [
        &b""[..],
        b"\n",
        b"\xff\xfe",
        b"00112233",
        &[b'a'; 33],
        &[b'0'; 5000],
        b"zz112233445566778899aabbccddeeff",
    ] {
        let depot = Depot::new();
        let marker = depot.dir.join(".depotfs");
        fs::remove_file(&marker).unwrap();
        fs::write(&marker, bytes).unwrap();
        let why = Filestore::open(&depot.dir, ID, &Options::default()).expect_err("refused");
        assert!(matches!(why, Error::NotADepotDirectory { .. }), "{bytes:?}: {why}");
        fs::File::options().write(true).open(&marker).unwrap().set_len(1 << 40).unwrap();
        assert!(Filestore::open(&depot.dir, ID, &Options::default()).is_err());
    }
}
