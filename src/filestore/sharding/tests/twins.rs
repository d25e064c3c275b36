//! Two paths to one directory, or to one file: what seems to be on two shards has one copy.

use std::path::{Path, PathBuf};

use super::super::super::laws::put;
use super::super::super::{Error, Layer, ShardOptions, open_chain};
use super::super::{Provider as _, Write};
use super::{Fixture, ID, Plan};

const ONE_OF_THREE: Plan = Plan { shards: 3, redundancy: 1, lenient_limit: 1, drained: None };

fn layer(dir: &Path, shards: &[PathBuf]) -> Layer {
    let shard = |dir: &PathBuf| ShardOptions { dir: dir.clone(), zone: String::new(), write_enabled: true };
    Layer::Sharding {
        dir: dir.join("sharding"),
        shards: shards.iter().map(shard).collect(),
        redundancy: 1,
        lenient_limit: 1,
        write: Write::RoundRobin,
        read_zone: None,
        write_zone: None,
        check_period: std::time::Duration::from_millis(1),
    }
}

fn refused(dir: &Path, a: PathBuf, b: PathBuf) {
    let layer = layer(dir, &[a.clone(), b.clone()]);
    layer.create(ID).unwrap();
    let opened = open_chain(&[layer], ID);
    assert!(
        matches!(&opened, Err(Error::OneDirectory { dir, other }) if *dir == b && *other == a),
        "{opened:?}"
    );
}

#[test]
fn one_directory_under_two_paths_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("a")).unwrap();
    std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
    refused(dir.path(), at("a"), at("link"));
    std::fs::create_dir(at("bound")).unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    if nix::mount::mount(Some(&at("a")), &at("bound"), None::<&str>, flags, None::<&str>).is_err() {
        return; // Nobody but root can.
    }
    let outcome = std::panic::catch_unwind(|| refused(dir.path(), at("a"), at("bound")));
    nix::mount::umount(&at("bound")).unwrap();
    outcome.unwrap();
}

/// Added to a depot in use, it is not used, and does no harm to what is under way in the directory.
#[test]
fn a_second_path_is_not_added() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shards = [at("a"), at("b")];
    let one = layer(dir.path(), &shards);
    one.create(ID).unwrap();
    let store = open_chain(&[one], ID).unwrap();
    std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
    let under_way = at("a").join("_pre/0000000000000007.tmp");
    std::fs::write(&under_way, "half").unwrap();
    let wanted = crate::filestore::Wanted { blobs: &|_| Some(Vec::new()), staged: &|| Some(Vec::new()) };
    let more = layer(dir.path(), &[at("a"), at("b"), at("link")]);
    let told = store.change(&[more], ID, &wanted).unwrap();
    assert!(told.len() == 1 && told[0].contains("link is not added"), "{told:?}");
    assert!(told[0].contains("is the directory of shard"), "{told:?}");
    assert!(under_way.exists());
    assert_eq!(store.status().children.len(), 2);
}

/// A folder of one shard leads into another one: the one file there is neither two copies nor one too many.
#[test]
fn one_file_on_two_shards_is_one_copy() {
    for redundancy in [1, 2] {
        let fixture = Fixture::new(Plan { redundancy, shards: 2, ..ONE_OF_THREE });
        let sum = put(&fixture.sharding, b"the only copy");
        let from = fixture.holders(&sum)[0];
        let folder = |i: usize| fixture.path(i, &sum).parent().unwrap().to_owned();
        std::fs::remove_dir_all(folder(1 - from)).unwrap();
        std::os::unix::fs::symlink(folder(from), folder(1 - from)).unwrap();
        assert_eq!(fixture.holders(&sum), [0, 1]);
        for _ in 0..3 {
            assert_eq!(fixture.sharding.mend(&sum).unwrap().removed, 0);
            assert_eq!(std::fs::read(fixture.path(from, &sum)).unwrap(), b"the only copy");
        }
        let owed = if redundancy == 2 { vec![sum] } else { Vec::new() };
        assert_eq!(fixture.sharding.owed(None, 9), owed);
    }
}

/// The same with a third shard that has a copy of its own.
#[test]
fn a_copy_beside_one_file_on_two_shards_is_surplus_once() {
    let fixture = Fixture::new(ONE_OF_THREE);
    let sum = put(&fixture.sharding, b"some bytes");
    let from = fixture.holders(&sum)[0];
    let (twin, other) = ((from + 1) % 3, (from + 2) % 3);
    let folder = |i: usize| fixture.path(i, &sum).parent().unwrap().to_owned();
    std::fs::remove_dir_all(folder(twin)).unwrap();
    std::os::unix::fs::symlink(folder(from), folder(twin)).unwrap();
    std::fs::copy(fixture.path(from, &sum), fixture.path(other, &sum)).unwrap();
    assert_eq!(fixture.sharding.mend(&sum).unwrap().removed, 1);
    let left = fixture.holders(&sum);
    assert!(left == [other] || left.len() == 2, "{left:?}");
    let at = fixture.path(left[0], &sum);
    assert_eq!(std::fs::read(at).unwrap(), b"some bytes");
}
