//! Chains of providers: how they are chosen, what their commands tell, what damage below them does.

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::harness::{Depot, Fails, Mode, Steered, eventually, guarded, sha1};

#[test]
fn a_template_is_chosen_by_its_name() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let init = |args: &[&str]| depot.cli(&[&["init", depot.dir_str()], args].concat());
        let err = init(&["--template", "full-db-dierct"]).fails(2);
        assert!(err.contains("\"full-db-direct\""), "{err}");
        let err = init(&["--template", "full-db-direct", "--set", "file-system.dir=blobs"]).fails(1);
        assert!(err.contains("\"file-system.dir\" is set") && err.contains("it is full-db"), "{err}");
        assert!(!depot.dir.exists(), "a refused init leaves nothing");
        let blobs = depot.scratch().join("elsewhere");
        init(&["--template", "full-db-direct", "--set", &format!("full-db.dir={}", blobs.display())]).ok();
        assert!(blobs.join("blobs.db").exists() && !depot.dir.join("filestore").exists());
        let status = depot.status();
        assert_eq!(status["chain"][0]["kind"], "full-db");
        assert_eq!(status["chain"][0]["directory"], blobs.to_str().unwrap());
    });
}

/// Damage in a database of blobs concerns the files it is of, and is told.
#[test]
fn damaged_rows_concern_their_files() {
    guarded(|| {
        let depot = Depot::new(Mode::Database);
        depot.mount();
        let repo = depot.path("repo");
        fs::create_dir(&repo).unwrap();
        let contents =
            [("good", vec![1; 200_000]), ("lost", vec![2; 200_000]), ("altered", vec![3; 200_000])];
        for (name, bytes) in &contents {
            fs::write(repo.join(name), bytes).unwrap();
        }
        depot.flush();
        depot.umount();
        let meddle = |sql: &str, bytes: &[u8]| {
            let c = rusqlite::Connection::open(depot.store().join("blobs.db")).unwrap();
            let sum: Vec<u8> =
                (0..20).map(|i| u8::from_str_radix(&sha1(bytes)[2 * i..2 * i + 2], 16).unwrap()).collect();
            assert_eq!(c.execute(sql, [sum]).unwrap(), 1, "{sql}");
        };
        meddle("DELETE FROM blob WHERE sum = ?1", &contents[1].1);
        meddle(
            "UPDATE part SET bytes = zeroblob(65536) WHERE id = (SELECT id FROM blob WHERE sum = ?1) << 24",
            &contents[2].1,
        );
        let found = depot.cli(&["check", depot.dir_str()]);
        assert_eq!(found.code, Some(4), "{}", found.err);
        assert!(found.out.contains("repo/lost") && !found.out.contains("repo/good"), "{}", found.out);
        depot.mount();
        assert_eq!(fs::read(repo.join("good")).unwrap(), contents[0].1);
        fs::read(repo.join("lost")).fails(Errno::EIO);
        assert_eq!(depot.cli(&["blob", "verify", depot.dir_str(), "repo/altered"]).code, Some(4));
        depot.cli(&["blob", "verify", depot.dir_str(), "repo/good"]).ok();
        // Writing the content again heals.
        fs::write(repo.join("again"), &contents[1].1).unwrap();
        depot.flush();
        assert_eq!(fs::read(repo.join("lost")).unwrap(), contents[1].1);
    });
}

/// A depot over shards, with a repository.
fn sharded() -> (Depot, PathBuf) {
    let depot = Depot::new(Mode::Sharded);
    depot.mount();
    let repo = depot.path("repo");
    fs::create_dir(&repo).unwrap();
    (depot, repo)
}

/// The shards that have a blob.
fn holders(depot: &Depot, sum: &str) -> Vec<PathBuf> {
    let paths = depot.stores().into_iter().map(|store| store.join(&sum[..2]).join(sum));
    paths.filter(|path| path.exists()).collect()
}

#[test]
fn every_blob_has_its_copies() {
    guarded(|| {
        let (depot, repo) = sharded();
        for i in 0..30_u8 {
            fs::write(repo.join(format!("file{i}")), [i; 5_000]).unwrap();
        }
        depot.flush();
        for sum in depot.blobs() {
            let holders = holders(&depot, &sum);
            assert_eq!(holders.len(), 2, "{sum}");
            let told = depot.cli(&["blob", "locate", depot.dir_str(), &sum]).ok();
            assert!(holders.iter().all(|path| told.contains(path.to_str().unwrap())), "{told}");
            depot.cli(&["blob", "verify", depot.dir_str(), &sum]).ok();
        }
        depot.umount();
        depot.check();
    });
}

/// A copy that is lost or cut is served from another, and made again without anybody asking.
#[test]
fn lost_and_cut_copies_come_back() {
    guarded(|| {
        let (depot, repo) = sharded();
        let (lost, cut) = (vec![1; 100_000], vec![2; 100_000]);
        fs::write(repo.join("lost"), &lost).unwrap();
        fs::write(repo.join("cut"), &cut).unwrap();
        depot.flush();
        depot.umount();
        fs::remove_file(&holders(&depot, &sha1(&lost))[0]).unwrap();
        let damaged = holders(&depot, &sha1(&cut)).remove(1);
        fs::remove_file(&damaged).unwrap();
        fs::write(&damaged, "short").unwrap();
        depot.mount();
        for _ in 0..4 {
            assert_eq!(fs::read(repo.join("lost")).unwrap(), lost);
            assert_eq!(fs::read(repo.join("cut")).unwrap(), cut);
        }
        eventually("the copies to be made again", || {
            holders(&depot, &sha1(&lost)).len() == 2 && fs::read(&damaged).unwrap() == cut
        });
    });
}

/// A shard that is not there at the start: everything with another copy is served, new files are stored, and what the shard
/// lacks is made up for when it is back.
#[test]
fn a_depot_works_without_one_shard() {
    guarded(|| {
        let (depot, repo) = sharded();
        fs::write(repo.join("before"), [1; 50_000]).unwrap();
        depot.flush();
        depot.umount();
        let away = depot.stores().remove(1);
        let elsewhere = depot.scratch().join("unplugged");
        fs::rename(&away, &elsewhere).unwrap();
        depot.mount();
        assert_eq!(fs::read(repo.join("before")).unwrap(), [1; 50_000]);
        for i in 0..6_u8 {
            fs::write(repo.join(format!("during{i}")), [10 + i; 50_000]).unwrap();
        }
        depot.flush();
        assert_eq!(depot.status()["pending"]["closed"], 0);
        let children = depot.status()["chain"][0]["children"].as_array().unwrap().clone();
        let failing = children.iter().filter(|child| child["health"]["failing"].is_string());
        assert_eq!(failing.count(), 1, "{children:?}");
        fs::rename(&elsewhere, &away).unwrap();
        eventually("the shard to be used again", || {
            fs::write(repo.join("after"), [99; 50_000]).unwrap();
            depot.status()["chain"][0]["children"][1]["health"] == "up"
        });
        for i in 0..6_u8 {
            assert_eq!(fs::read(repo.join(format!("during{i}"))).unwrap(), [10 + i; 50_000]);
            assert_eq!(holders(&depot, &sha1(&[10 + i; 50_000])).len(), 2);
        }
    });
}

/// Files of which the newest bytes lie on a shard that is away are not taken for lost: the depot is not mounted without it.
#[test]
fn unsealed_bytes_on_a_shard_that_is_away_are_not_given_up() {
    guarded(|| {
        let depot = Steered::over(Depot::new(Mode::Sharded), "");
        depot.mount();
        let repo = depot.depot.path("repo");
        depot.set("seal.leased=hold\nseal.hashed=hold");
        for i in 0..6_u8 {
            fs::write(repo.join(format!("file{i}")), [i; 30_000]).unwrap();
        }
        depot.kill();
        depot.clear();
        let away = depot.depot.stores().remove(2);
        let elsewhere = depot.depot.scratch().join("unplugged");
        fs::rename(&away, &elsewhere).unwrap();
        let refused = depot.try_mount();
        assert_eq!(refused.code, Some(1));
        assert!(refused.err.contains("shard2") && refused.err.contains("staging file"), "{}", refused.err);
        fs::rename(&elsewhere, &away).unwrap();
        depot.mount();
        for i in 0..6_u8 {
            assert_eq!(fs::read(repo.join(format!("file{i}"))).unwrap(), [i; 30_000]);
        }
    });
}

#[test]
fn a_sharding_that_cannot_be_is_refused() {
    guarded(|| {
        let depot = Depot::uninitialised(Mode::Passthrough);
        let refused = |settings: &[&str], part: &str| {
            let mut args = vec!["init", depot.dir_str(), "--set", "chain=sharding"];
            settings.iter().for_each(|setting| args.extend(["--set", *setting]));
            let err = depot.cli(&args).fails(1);
            assert!(err.contains(part), "{settings:?}: {err}");
            assert!(!depot.dir.exists());
        };
        let (one, two) = ("sharding.shard[0].dir=a", "sharding.shard[1].dir=b");
        refused(&[], "add a [[sharding.shard]]");
        refused(&[one, two, "sharding.redundancy=3"], "3 copies need as many shards, and there are 2");
        refused(&[one, two, "sharding.lenient-limit=2"], "more than the redundancy, 1");
        refused(&[one, "sharding.shard[1].dir=a"], "another shard has the same directory");
        refused(&[one, two, "sharding.read-behavior=zone", "sharding.zone=b"], "no shard is in zone \"b\"");
    });
}
