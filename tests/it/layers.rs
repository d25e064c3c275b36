//! Chains of providers: how they are chosen, what their commands tell, what damage below them does.

use std::fs;

use nix::errno::Errno;

use crate::harness::{Depot, Fails, Mode, guarded, sha1};

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
