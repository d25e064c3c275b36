//! The top of the tree: repositories, reserved names, what stays within a repository.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode as Bits, SFlag, mknod};

use crate::harness::{Fails, Tree, as_user, sh};

modes!(mounted:
    only_directories_stand_at_the_top, links_stay_within_a_repository, files_move_between_repositories,
    trees_move_between_repositories, exchange_between_repositories, reserved_names, settings_move_with_a_rename,
    settings_survive_a_remount, a_repository_is_removed_like_a_directory, settings_are_checked,
);
modes!(mounted_root: the_root_directory_keeps_owner_and_mode);

const RESERVED: [&str; 3] = [".trash", ".snapshots", "lost+found"];

fn only_directories_stand_at_the_top(t: &Tree) {
    let at = |name: &str| t.depot().path(name);
    File::create(at("file")).fails(Errno::EPERM);
    symlink("repo", at("link")).fails(Errno::EPERM);
    mknod(&at("file"), SFlag::S_IFREG, Bits::S_IRWXU, 0).fails(Errno::EPERM);
    nix::unistd::mkfifo(&at("fifo"), Bits::S_IRWXU).fails(Errno::EPERM);
    t.file("file", "x");
    fs::rename(t.path("file"), at("file")).fails(Errno::EPERM);
    assert_eq!(fs::read(t.path("file")).unwrap(), b"x");
    let listed =
        |name: &str| fs::read_dir(at(name)).unwrap().map(|e| e.unwrap().file_name()).collect::<BTreeSet<_>>();
    fs::create_dir(at("second")).unwrap();
    assert_eq!(listed("."), ["repo", "second"].map(Into::into).into());
    fs::rename(at("second"), at("third")).unwrap();
    assert_eq!(listed("."), ["repo", "third"].map(Into::into).into());
    let links = fs::metadata(at(".")).unwrap().nlink();
    assert!(
        [4, 7].contains(&links),
        "two, one for each repository, perhaps one for each reserved directory: {links}"
    );
}

fn links_stay_within_a_repository(t: &Tree) {
    let file = t.sealed("file", "x");
    let other = t.depot().path("other");
    fs::create_dir(&other).unwrap();
    fs::hard_link(&file, other.join("file")).fails(Errno::EXDEV);
    fs::create_dir(t.path("sub")).unwrap();
    fs::hard_link(&file, t.path("sub/file")).unwrap();
    fs::rename(&file, other.join("file")).fails(Errno::EXDEV);
    assert_eq!(fs::metadata(&file).unwrap().nlink(), 2);
    fs::remove_file(t.path("sub/file")).unwrap();
    fs::rename(&file, other.join("file")).unwrap();
    assert_eq!(fs::read(other.join("file")).unwrap(), b"x");
}

fn files_move_between_repositories(t: &Tree) {
    let other = t.depot().path("other");
    fs::create_dir(&other).unwrap();
    let open = File::open(t.file("file", "bytes")).unwrap();
    let ino = open.metadata().unwrap().ino();
    fs::rename(t.path("file"), other.join("moved")).unwrap();
    assert_eq!(fs::metadata(other.join("moved")).unwrap().ino(), ino);
    assert_eq!(fs::read(other.join("moved")).unwrap(), b"bytes");
    fs::hard_link(other.join("moved"), other.join("linked")).unwrap();
    fs::hard_link(other.join("moved"), t.path("linked")).fails(Errno::EXDEV);
    drop(open);
}

fn trees_move_between_repositories(t: &Tree) {
    fs::create_dir(t.depot().path("other")).unwrap();
    sh(t.dir(), "mkdir -p a/b/c; for i in 1 2 3; do echo $i > a/b/$i; done; ln a/b/1 a/b/c/one; ln -s x a/l");
    let look =
        |dir: &Path| sh(dir, "find . -type f | sort | xargs sha1sum; find . -printf '%P %i %n %m\\n' | sort");
    let before = look(&t.path("a"));
    fs::rename(t.path("a"), t.depot().path("other/a")).unwrap();
    assert_eq!(look(&t.depot().path("other/a")), before);
    fs::metadata(t.path("a")).fails(Errno::ENOENT);
    fs::hard_link(t.depot().path("other/a/b/2"), t.path("two")).fails(Errno::EXDEV);
    t.remount();
    assert_eq!(look(&t.depot().path("other/a")), before);
}

fn exchange_between_repositories(t: &Tree) {
    let other = t.depot().path("other");
    fs::create_dir_all(other.join("dir/sub")).unwrap();
    fs::write(other.join("dir/sub/file"), "in other").unwrap();
    t.file("file", "in repo");
    let exchange = RenameFlags::RENAME_EXCHANGE;
    renameat2(AT_FDCWD, &t.path("file"), AT_FDCWD, &other.join("dir"), exchange).unwrap();
    assert_eq!(fs::read(other.join("dir")).unwrap(), b"in repo");
    assert_eq!(fs::read(t.path("file/sub/file")).unwrap(), b"in other");
}

fn reserved_names(t: &Tree) {
    let listed: Vec<_> =
        fs::read_dir(&t.depot().mountpoint).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed, ["repo"]);
    fs::create_dir(t.path("dir")).unwrap();
    for name in RESERVED {
        let path = t.depot().path(name);
        assert!(fs::metadata(&path).unwrap().is_dir(), "{name} is reachable by name");
        assert!(fs::create_dir(&path).is_err(), "mkdir {name}");
        assert!(File::create(&path).is_err(), "create {name}");
        fs::rename(&path, t.depot().path("elsewhere")).fails(Errno::EPERM);
        fs::rename(t.path("dir"), &path).fails(Errno::EPERM);
        assert!(renameat2(AT_FDCWD, &t.path("dir"), AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE).is_err());
        fs::remove_dir(&path).fails(Errno::EPERM);
        assert!(fs::metadata(&path).unwrap().is_dir());
        // Further down they are names like any other.
        fs::create_dir(t.path(name)).unwrap();
    }
    assert!(t.path("dir").is_dir());
    let listed: BTreeSet<_> = fs::read_dir(t.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed, ["dir", ".trash", ".snapshots", "lost+found"].map(Into::into).into());
}

fn show(t: &Tree, repo: &str) -> String {
    t.depot().cli(&["repo", "show", t.depot().dir_str(), repo]).ok()
}

fn settings_move_with_a_rename(t: &Tree) {
    let depot = t.depot();
    depot.cli(&["repo", "set", depot.dir_str(), "repo", "durability=close"]).ok();
    assert!(show(t, "repo").contains("close"));
    fs::rename(t.dir(), depot.path("renamed")).unwrap();
    assert!(show(t, "renamed").contains("close"));
    depot.cli(&["repo", "show", depot.dir_str(), "repo"]).fails(1);
    fs::create_dir(t.dir()).unwrap();
    assert!(!show(t, "repo").contains("close"), "a new repository begins with the defaults");
    let list = depot.cli(&["repo", "list", depot.dir_str()]).ok();
    assert!(list.contains("renamed") && list.contains("repo"), "{list}");
}

fn settings_survive_a_remount(t: &Tree) {
    let depot = t.depot();
    // Any path inside the mount names the depot, too.
    depot.cli(&["repo", "set", t.dir().to_str().unwrap(), "repo", "verify=always", "durability=close"]).ok();
    t.remount();
    let told = show(t, "repo");
    assert!(told.contains("always") && told.contains("close"), "{told}");
    depot.cli(&["repo", "set", depot.dir_str(), "repo", "verify=never"]).ok();
    assert!(!show(t, "repo").contains("always"));
}

fn settings_are_checked(t: &Tree) {
    let depot = t.depot();
    let set = |setting: &str| depot.cli(&["repo", "set", depot.dir_str(), "repo", setting]);
    let err = set("durabilty=close").fails(2);
    assert!(err.contains("durabilty") && err.contains("durability"), "{err}");
    let err = set("durability=sometimes").fails(2);
    assert!(err.contains("sometimes") && err.contains("fsync"), "{err}");
    let err = depot.cli(&["repo", "set", depot.dir_str(), "missing", "durability=close"]).fails(1);
    assert!(err.contains("missing"), "{err}");
}

fn a_repository_is_removed_like_a_directory(t: &Tree) {
    t.file("file", "x");
    fs::remove_dir(t.dir()).fails(Errno::ENOTEMPTY);
    fs::remove_file(t.path("file")).unwrap();
    fs::remove_dir(t.dir()).unwrap();
    assert_eq!(fs::read_dir(&t.depot().mountpoint).unwrap().count(), 0);
}

fn the_root_directory_keeps_owner_and_mode(t: &Tree) {
    let root = t.depot().mountpoint.clone();
    as_user(1001, 1001, || fs::create_dir(root.join("users")).fails(Errno::EACCES));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o1777)).unwrap();
    as_user(1001, 1001, || fs::create_dir(root.join("users")).unwrap());
    assert_eq!(fs::metadata(root.join("users")).unwrap().uid(), 1001);
    as_user(1002, 1002, || fs::remove_dir(root.join("users")).fails(Errno::EPERM));
    std::os::unix::fs::chown(&root, Some(1003), Some(1004)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    t.remount();
    let meta = fs::metadata(&root).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 1003, 1004));
    as_user(1003, 1003, || fs::create_dir(root.join("own")).unwrap());
    as_user(1001, 1001, || fs::create_dir(root.join("foreign")).fails(Errno::EACCES));
}
