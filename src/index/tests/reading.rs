//! Listings, plans, and readers beside a writer.

use std::sync::atomic::AtomicBool;

use rusqlite::StatementStatus;

use super::*;

#[test]
fn pages_are_stable_under_changes() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let kept: Vec<Ino> = (0..50).map(|n| d.file(repo, &format!("kept{n}"))).collect();
    let doomed: Vec<Ino> = (0..50).map(|n| d.file(repo, &format!("doomed{n}"))).collect();
    let (mut after, mut seen, mut step) = (0, Vec::new(), 0);
    loop {
        let page = d.index.list(repo, after, 7).unwrap();
        let Some(last) = page.last() else { break };
        after = last.cookie;
        assert!(page.is_sorted_by_key(|e| e.cookie) && page.len() <= 7);
        seen.extend(page.iter().map(|e| e.inode.ino));
        if step < 50 {
            d.ok(&[remove(repo, &format!("doomed{step}"), doomed[step], 1)]);
            if step < 5 {
                d.file(repo, &format!("new{step}"));
            }
            step += 1;
        }
    }
    for ino in &kept {
        assert_eq!(seen.iter().filter(|i| *i == ino).count(), 1);
    }
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len());
    assert_eq!(d.index.list(repo, u64::MAX, 7).unwrap(), []);
    assert_eq!(d.index.list(999, 0, 7).unwrap(), []);
}

#[test]
fn names_in_their_order_and_where_they_are() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let inos = ["b", "a", "c"].map(|name| d.file(repo, name));
    let names = |after: &[u8], limit| {
        let page = d.index.list_by_name(repo, after, limit).unwrap();
        page.into_iter().map(|entry| (entry.name, entry.inode.ino)).collect::<Vec<_>>()
    };
    let [b, a, c] = [(b"b".to_vec(), inos[0]), (b"a".to_vec(), inos[1]), (b"c".to_vec(), inos[2])];
    assert_eq!(names(b"", 9), [a.clone(), b.clone(), c.clone()]);
    assert_eq!((names(b"a", 1), names(b"aa", 9), names(b"c", 9)), (vec![b.clone()], vec![b, c], vec![]));
    for entry in d.index.list(repo, 0, 9).unwrap() {
        let place = d.index.place(entry.inode.ino).unwrap();
        assert_eq!(place, Some((repo, entry.cookie, entry.name)));
    }
    assert_eq!((d.index.place(ROOT).unwrap(), d.index.place(999).unwrap()), (None, None));
    assert_eq!(a.1, d.index.lookup(repo, b"a").unwrap().unwrap().ino);
}

#[test]
fn a_page_of_a_large_directory_costs_what_it_returns() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let steps = |after: Cookie| {
        d.index.flush().unwrap();
        let c = d.index.readers.get().unwrap();
        let page = sql::list(&c, repo, after, 100).unwrap();
        assert_eq!(page.len(), 100);
        let sql = SEEN.with_borrow(|seen| *seen.keys().find(|s| s.contains("LIMIT $3")).unwrap());
        let statement = c.prepare_cached(sql).unwrap();
        (statement.reset_status(StatementStatus::VmStep), statement.reset_status(StatementStatus::Sort))
    };
    let fill = |from: u64, to: u64| {
        let changes: Vec<_> =
            (from..to).map(|n| d.creation(repo, &format!("file{n}"), Kind::File, 1).1).collect();
        d.ok(&changes);
    };
    fill(0, 200);
    let (small, sorts) = steps(0);
    assert_eq!(sorts, 0);
    fill(200, 100_000);
    let middle = d.index.lookup(repo, b"file50000").unwrap().unwrap().ino;
    for after in [0, middle] {
        let (large, sorts) = steps(after);
        assert!(sorts == 0 && large <= small + 20, "{large} steps among 100,000, {small} among 200");
    }
}

#[test]
fn no_statement_of_the_served_tree_sorts_or_scans() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let (f, g) = (d.file(repo, "f"), d.file(repo, "g"));
    let link = d.make(repo, "l", Kind::Symlink, 1);
    d.ok(&[content(f, sum(1), 1), content(g, sum(1), 1), content(f, sum(2), 1)]);
    d.ok(&[Change::Digests { checksum: sum(1), sha256: [0; 32], md5: [0; 16] }]);
    let attr =
        Change::Attr { ino: f, mode: None, uid: None, gid: None, atime: Some(1), mtime: None, ctime: None };
    let xattr = |value| Change::Xattr { ino: f, name: b"user.a".to_vec(), value, ctime: 1 };
    let setting = |value| Change::Setting { repository: repo, key: "k".into(), value };
    d.ok(&[
        attr,
        xattr(Some(vec![])),
        xattr(None),
        setting(Some("v".into())),
        setting(None),
        Change::Stage(staged(f, 1)),
    ]);
    d.ok(&[Change::Link { ino: f, parent: ROOT, name: b"h".to_vec(), cookie: d.number(), at: 1 }]);
    d.ok(&[exchange((repo, "f"), f, (repo, "g"), g), rename((repo, "f"), g, (ROOT, "g"), None, d.number())]);
    d.ok(&[
        remove(ROOT, "g", g, 1),
        remove(repo, "l", link, 1),
        Change::Reap { ino: g },
        Change::Reap { ino: link },
    ]);
    d.ok(&[content(f, sum(3), 1), Change::Forget { checksum: sum(2) }, Change::Unstage { ino: f }]);
    let d2 = d.dir(ROOT, "d2");
    d.ok(&[remove(ROOT, "d2", d2, 1), Change::Reap { ino: d2 }]);
    let x = &d.index;
    x.lookup(repo, b"f").unwrap();
    x.list(repo, 0, 1).unwrap();
    x.list_by_name(repo, b"", 1).unwrap();
    x.place(f).unwrap();
    x.path(f).unwrap();
    x.resolve(b"repo/f").unwrap();
    x.repository(f).unwrap();
    x.names(&sum(1), 1).unwrap();
    x.target(f).unwrap();
    x.xattr(f, b"a").unwrap();
    x.xattr_names(f).unwrap();
    x.blob(&sum(1)).unwrap();
    x.blobs(None, 1).unwrap();
    x.staged().unwrap();
    x.staged_of(f).unwrap();
    x.orphans().unwrap();
    x.unreferenced(5, 5).unwrap();
    x.undigested(5).unwrap();
    x.settings(repo).unwrap();
    x.repositories().unwrap();
    x.counts().unwrap();
    x.inode(f).unwrap();

    x.flush().unwrap();
    let c = x.readers.get().unwrap();
    let statements: Vec<&str> = SEEN.with_borrow(|seen| seen.keys().copied().collect());
    assert!(statements.len() > 50, "{}", statements.len());
    for sql in statements {
        if ["PRAGMA", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"]
            .iter()
            .any(|own| sql.starts_with(own))
        {
            continue;
        }
        let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let plan: String = row.get(3).unwrap();
            assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
            let whole =
                ["WHERE checksum = $1 ORDER BY ino", "FROM staged ORDER BY ino", "FROM orphan ORDER BY ino"];
            let allowed = whole.iter().any(|s| sql.contains(s))
                || plan == "SCAN blob USING INDEX blob_undigested"
                || plan == "SCAN blob USING COVERING INDEX blob_undigested";
            assert!(!plan.contains("SCAN") || allowed, "{sql}\n{plan}");
        }
    }
    let plan = |needle: &str| {
        let sql = SEEN.with_borrow(|seen| *seen.keys().find(|s| s.contains(needle)).unwrap());
        let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let mut rows = statement.raw_query();
        let mut plan = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            plan.push(row.get::<_, String>(3).unwrap());
        }
        plan
    };
    let list = plan("ORDER BY d.cookie LIMIT $3");
    assert!(
        list[0].contains("parent=? AND rowid>?") || list[0].contains("parent=? AND cookie>?"),
        "{list:?}"
    );
    let lookup = plan("WHERE d.parent = $1 AND d.name = $2");
    assert!(lookup[0].contains("parent=? AND name=?"), "{lookup:?}");
}

#[test]
fn readers_see_whole_commits_while_a_writer_works() {
    let d = Depot::new();
    let (a, b) = (d.dir(ROOT, "a"), d.dir(ROOT, "b"));
    let deep = d.dir(a, "deep");
    let file = d.file(deep, "f");
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                s.spawn(|| {
                    let mut seen = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let path = d.index.path(file).unwrap().unwrap();
                        assert!(path == b"a/deep/f" || path == b"b/deep/f");
                        let repository = d.index.repository(file).unwrap();
                        assert!(repository == Some(a) || repository == Some(b));
                        let i = d.get(file);
                        assert_eq!(i.checksum.is_some_and(|c| c == sum(i.size)), i.size > 0);
                        let c = d.index.snapshot().unwrap();
                        let holders = [a, b].map(|p| sql::list(&c, p, 0, 9).unwrap().len());
                        assert_eq!(holders[0] + holders[1], 1);
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        for n in 1..400 {
            let (from, to) = if n % 2 == 1 { (a, b) } else { (b, a) };
            d.ok(&[rename((from, "deep"), deep, (to, "deep"), None, d.number()), content(file, sum(n), n)]);
            assert_eq!(d.index.repository(file).unwrap(), Some(to));
            match n % 50 {
                0 => drop(d.index.sync().unwrap()),
                10 | 30 => d.index.tidy().unwrap(),
                _ => {}
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    d.clean();
}

#[test]
fn paths_begin_at_the_root() {
    let d = Depot::new();
    let repo = d.dir(ROOT, "repo");
    let mut at = repo;
    for n in 0..300 {
        at = d.dir(at, &format!("{n}"));
    }
    assert_eq!(d.index.path(ROOT).unwrap().unwrap(), b"");
    assert_eq!(d.index.path(LOST_FOUND).unwrap().unwrap(), b"lost+found");
    for path in [&b""[..], b"/", b"//"] {
        assert_eq!(d.index.resolve(path).unwrap().unwrap().ino, ROOT);
    }
    let path = d.index.path(at).unwrap().unwrap();
    assert!(path.starts_with(b"repo/0/1/2/"));
    assert_eq!(d.index.resolve(&path).unwrap().unwrap().ino, at);
    assert_eq!(d.index.resolve(b"repo/nothing/0").unwrap(), None);
    assert_eq!(d.index.repository(at).unwrap(), Some(repo));
    assert_eq!(d.index.repository(repo).unwrap(), Some(repo));
    assert_eq!(d.index.repository(ROOT).unwrap(), None);
    assert_eq!(d.index.path(999).unwrap(), None);
    assert_eq!(d.index.parent(ROOT).unwrap(), None);
}
