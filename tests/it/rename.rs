//! rename(2) and renameat2(2): what replaces what, and what is refused.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::harness::{Fails, Tree, sh};

modes!(all:
    replaces_a_file_at_once, directories_replace_only_empty_ones, into_itself_is_refused, two_links_of_one_file_stay,
    noreplace, exchange_files, exchange_trees, links_of_directories_follow, contradicting_flags_are_refused,
    a_replaced_open_file_lives_on, moving_a_tree_keeps_what_is_in_it, concurrent_renames_never_show_a_gap,
);
modes!(mounted: whiteout_is_refused);

fn exchange(a: &Path, b: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)
}

fn replaces_a_file_at_once(t: &Tree) {
    let states: [fn(&Tree, &str, &str); 2] = [|t, n, b| drop(t.file(n, b)), |t, n, b| drop(t.sealed(n, b))];
    for (round, (make_old, make_new)) in states.iter().flat_map(|a| states.map(|b| (a, b))).enumerate() {
        make_old(t, "old", &format!("old {round}"));
        make_new(t, "new", &format!("new {round}"));
        let ino = fs::metadata(t.path("new")).unwrap().ino();
        fs::rename(t.path("new"), t.path("old")).unwrap();
        assert_eq!(fs::read_to_string(t.path("old")).unwrap(), format!("new {round}"));
        assert_eq!(fs::metadata(t.path("old")).unwrap().ino(), ino);
        fs::metadata(t.path("new")).fails(Errno::ENOENT);
    }
    t.remount();
    assert_eq!(fs::read_to_string(t.path("old")).unwrap(), "new 3");
    fs::rename(t.path("missing"), t.path("x")).fails(Errno::ENOENT);
    fs::rename(t.path("old"), t.path("missing/x")).fails(Errno::ENOENT);
    fs::rename(t.path("old"), t.path("old")).unwrap();
    symlink("old", t.path("link")).unwrap();
    fs::rename(t.path("link"), t.path("old")).unwrap();
    assert!(fs::symlink_metadata(t.path("old")).unwrap().is_symlink());
}

fn directories_replace_only_empty_ones(t: &Tree) {
    for dir in ["full", "full/x", "empty", "dir"] {
        fs::create_dir(t.path(dir)).unwrap();
    }
    t.file("dir/inside", "kept");
    let file = t.file("file", "x");
    fs::rename(t.path("dir"), t.path("full")).fails(Errno::ENOTEMPTY);
    fs::rename(t.path("dir"), &file).fails(Errno::ENOTDIR);
    fs::rename(&file, t.path("empty")).fails(Errno::EISDIR);
    fs::rename(t.path("dir"), t.path("empty")).unwrap();
    assert_eq!(fs::read(t.path("empty/inside")).unwrap(), b"kept");
    fs::metadata(t.path("dir")).fails(Errno::ENOENT);
}

fn into_itself_is_refused(t: &Tree) {
    fs::create_dir_all(t.path("a/b/c")).unwrap();
    fs::rename(t.path("a"), t.path("a/b/c/a")).fails(Errno::EINVAL);
    fs::rename(t.path("a"), t.path("a/x")).fails(Errno::EINVAL);
    fs::rename(t.path("a/b/c"), t.path("a")).fails(Errno::ENOTEMPTY);
    exchange(&t.path("a"), &t.path("a/b")).fails(Errno::EINVAL);
    exchange(&t.path("a/b/c"), &t.path("a")).fails(Errno::EINVAL);
    assert!(t.path("a/b/c").is_dir());
}

fn two_links_of_one_file_stay(t: &Tree) {
    t.file("a", "x");
    fs::hard_link(t.path("a"), t.path("b")).unwrap();
    fs::rename(t.path("a"), t.path("b")).unwrap();
    assert_eq!(fs::metadata(t.path("a")).unwrap().nlink(), 2);
    assert!(t.path("b").exists());
}

fn noreplace(t: &Tree) {
    let rename = |a: &str, b: &str| {
        renameat2(AT_FDCWD, &t.path(a), AT_FDCWD, &t.path(b), RenameFlags::RENAME_NOREPLACE)
    };
    t.file("a", "a");
    t.file("b", "b");
    rename("a", "b").fails(Errno::EEXIST);
    rename("a", "c").unwrap();
    fs::create_dir(t.path("dir")).unwrap();
    rename("dir", "b").fails(Errno::EEXIST);
    rename("missing", "d").fails(Errno::ENOENT);
    assert_eq!(
        (fs::read(t.path("b")).unwrap(), fs::read(t.path("c")).unwrap()),
        (b"b".to_vec(), b"a".to_vec())
    );
}

fn exchange_files(t: &Tree) {
    let (a, b) = (t.file("a", "a"), t.sealed("b", "b"));
    let inos = [&a, &b].map(|p| fs::metadata(p).unwrap().ino());
    exchange(&a, &b).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!([&b, &a].map(|p| fs::metadata(p).unwrap().ino()), inos);
    t.file("c", "c");
    exchange(&t.path("c"), &b).unwrap();
    exchange(&a, &t.path("missing")).fails(Errno::ENOENT);
    assert!(a.exists());
    t.remount();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"c".to_vec()));
    fs::create_dir(t.path("dir")).unwrap();
    exchange(&a, &t.path("dir")).unwrap();
    assert!(a.is_dir());
    assert_eq!(fs::read(t.path("dir")).unwrap(), b"b");
}

fn exchange_trees(t: &Tree) {
    sh(t.dir(), "mkdir -p p/one/x q/two/y/z; echo 1 > p/one/x/f; echo 2 > q/two/f; touch q/file");
    let links = |name: &str| fs::metadata(t.path(name)).unwrap().nlink();
    exchange(&t.path("p/one"), &t.path("q/two")).unwrap();
    assert_eq!(fs::read(t.path("q/two/x/f")).unwrap(), b"1\n");
    assert_eq!(fs::read(t.path("p/one/f")).unwrap(), b"2\n");
    assert_eq!((links("p"), links("q"), links("p/one"), links("q/two")), (3, 3, 3, 3));
    assert_eq!(fs::metadata(t.path("q/two/..")).unwrap().ino(), fs::metadata(t.path("q")).unwrap().ino());
    exchange(&t.path("p/one"), &t.path("q/file")).unwrap();
    assert_eq!((links("p"), links("q")), (2, 4), "a directory against a file moves a link");
    assert!(t.path("q/file/y/z").is_dir());
}

fn links_of_directories_follow(t: &Tree) {
    sh(t.dir(), "mkdir -p a/sub b/victim");
    let links = |name: &str| fs::metadata(t.path(name)).unwrap().nlink();
    fs::rename(t.path("a/sub"), t.path("b/sub")).unwrap();
    assert_eq!((links("a"), links("b")), (2, 4));
    fs::rename(t.path("b/sub"), t.path("b/victim")).unwrap();
    assert_eq!(links("b"), 3);
}

fn contradicting_flags_are_refused(t: &Tree) {
    t.file("a", "a");
    t.file("b", "b");
    let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
    renameat2(AT_FDCWD, &t.path("a"), AT_FDCWD, &t.path("b"), both).fails(Errno::EINVAL);
}

fn a_replaced_open_file_lives_on(t: &Tree) {
    for sealed in [false, true] {
        let old = if sealed { t.sealed("old", "old bytes") } else { t.file("old", "old bytes") };
        let mut open = File::open(&old).unwrap();
        t.file("new", "new");
        fs::rename(t.path("new"), &old).unwrap();
        t.seal();
        let mut bytes = String::new();
        open.read_to_string(&mut bytes).unwrap();
        assert_eq!(bytes, "old bytes");
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read(&old).unwrap(), b"new");
    }
}

fn moving_a_tree_keeps_what_is_in_it(t: &Tree) {
    sh(
        t.dir(),
        "mkdir -p src/{a,b}/{c,d}; for d in src/*/*; do for i in 1 2 3; do echo $d $i > $d/f$i; done; done",
    );
    let listing = |dir: &str| {
        sh(t.path(dir), "find . -type f | sort | xargs sha1sum; find . -printf '%P %i %m %T@\\n' | sort")
    };
    let before = listing("src");
    fs::create_dir(t.path("other")).unwrap();
    fs::rename(t.path("src"), t.path("other/dst")).unwrap();
    assert_eq!(listing("other/dst"), before);
    t.remount();
    assert_eq!(listing("other/dst"), before);
}

fn concurrent_renames_never_show_a_gap(t: &Tree) {
    let target = t.file("target", "0");
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            for i in 1..=150 {
                fs::write(t.path("tmp"), format!("{i}")).unwrap();
                fs::rename(t.path("tmp"), &target).unwrap();
            }
        });
        while !writer.is_finished() {
            let seen = fs::read_to_string(&target).unwrap();
            assert!(seen.parse::<u32>().is_ok(), "saw {seen:?}");
        }
        writer.join().unwrap();
    });
    assert_eq!(fs::read_to_string(&target).unwrap(), "150");
}

fn whiteout_is_refused(t: &Tree) {
    t.file("a", "a");
    renameat2(AT_FDCWD, &t.path("a"), AT_FDCWD, &t.path("b"), RenameFlags::RENAME_WHITEOUT)
        .fails(Errno::EINVAL);
    assert!(t.path("a").exists());
}
