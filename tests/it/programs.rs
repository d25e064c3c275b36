//! Programs that people run, from a local disk's point of view.

use std::fs;

use crate::harness::{Tree, sh};

modes!(everywhere:
    git_clones_checks_and_repacks, tar_round_trip, sqlite_with_a_write_ahead_log, a_c_project, rsync_in_every_manner,
    cp_keeps_everything, linked_copies, flock_excludes, find_and_du, editors_and_stream_tools, archives_and_sums,
);
modes!(root: a_cargo_build, an_overlay_on_top, rsync_of_special_files);

/// A tree with something of everything that an ordinary user can make.
const SAMPLE: &str = "
mkdir -p sample/{a,b/c,empty}
for i in 1 2 3 4 5; do echo \"content $i\" > sample/a/f$i; done
head -c 300000 /dev/urandom > sample/b/random
truncate -s 1M sample/b/c/sparse; echo tail >> sample/b/c/sparse
: > sample/empty/nothing
ln sample/a/f1 sample/b/linked
ln -s ../a/f2 sample/b/symbolic
ln -s nowhere sample/b/dangling
mkfifo sample/b/fifo
chmod 4755 sample/a/f3; chmod 600 sample/a/f4; chmod 2755 sample/b; chmod 1777 sample/empty
setfattr -n user.one -v 'first value' sample/a/f1
setfattr -n user.two -v 0x00ff00 sample/b
setfacl -m u:1234:rw,g:2345:r sample/a/f2
setfacl -d -m u:1234:rwx sample/b/c
touch -d '2001-02-03 04:05:06.123456789' sample/a/f5
touch -d '1999-12-31 23:59:59.5' sample/b/c
touch -d '2002-03-04 05:06:07.987654321' sample sample/a sample/b sample/empty
";

/// Everything a faithful copy keeps: names, kinds, modes, owners, sizes, times, link counts, attributes, lists, bytes.
const DESCRIBE: &str = "
describe() { (cd $1; find . -mindepth 1 -printf '%P %y %m %U:%G %n %l\\n' | sort
find . -mindepth 1 -type f -printf '%P %s %TY-%Tm-%Td %TT\\n' | sort; find . -mindepth 1 -type d -printf '%P %TY-%Tm-%Td %TT\\n' | sort
find . -type f | sort | xargs sha1sum
find . | sort | xargs getfattr -h -d -m - -e hex 2>/dev/null; find . | sort | xargs getfacl -P -n 2>/dev/null); }
same() { describe $1 > /tmp/depotfs-it.$$.a; describe $2 > /tmp/depotfs-it.$$.b
diff /tmp/depotfs-it.$$.a /tmp/depotfs-it.$$.b >&2; rc=$?; rm -f /tmp/depotfs-it.$$.[ab]; return $rc; }
settle() { find $1 -type d -exec touch -d '2002-03-04 05:06:07.987654321' {} +; }
";

/// A script on the sample tree, with `same A B` to compare two trees.
#[track_caller]
fn on_sample(t: &Tree, script: &str) {
    sh(t.dir(), SAMPLE);
    t.seal();
    sh(t.dir(), &format!("{DESCRIBE}{script}"));
}

/// A C project of some files with a library, objects, headers and a generated source.
const C_PROJECT: &str = "
mkdir -p c/src
cat > c/Makefile <<'END'
objects := $(patsubst %,src/m%.o,$(shell seq 40))
program: $(objects) main.o
\tcc -o $@ main.o -L. libm40.a
libm40.a: $(objects)
\tar rcs $@ $^
program: libm40.a
src/%.c:
\techo \"int $*(void) { return 1; }\" > $@
%.o: %.c
\tcc -O1 -c -o $@ $<
END
printf 'int m1(void), m40(void);\\nint main(void) { return m1() + m40() - 2; }\\n' > c/main.c
";

fn git_clones_checks_and_repacks(t: &Tree) {
    sh(
        t.dir(),
        "export HOME=$PWD GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main origin; cd origin
        for i in 1 2 3 4; do mkdir -p d$i; for f in $(seq 25); do echo $i $f > d$i/$f; done; git add .; git commit -qm \"commit $i\"; done
        cd ..; git clone -q --no-local origin clone; git clone -q origin linked; cd clone
        git fsck --full --strict; test -z \"$(git status --porcelain)\"
        echo change >> d1/1; git rm -q d2/2; git mv d3/3 d3/moved; git add -A; git commit -qm change
        git checkout -q -b side HEAD~2; echo side > side; git add side; git commit -qm side; git merge -q -m merge main
        git gc -q --aggressive --prune=now; git repack -q -a -d; git fsck --full --strict; git push -q origin side
        git worktree add -q ../tree main; test -f ../tree/d3/moved; git stash list
        cd ../origin; git fsck --full; git log --oneline side | wc -l | grep -q 7",
    );
    t.remount();
    sh(
        t.dir(),
        "export HOME=$PWD; cd clone; git fsck --full --strict; test -z \"$(git status --porcelain)\"",
    );
}

fn tar_round_trip(t: &Tree) {
    on_sample(
        t,
        "tar -c --xattrs --xattrs-include='*' --acls -f all.tar sample; mkdir out
        tar -x --xattrs --xattrs-include='*' --acls -p -f all.tar -C out; same sample out/sample
        tar --compare --xattrs --acls -f all.tar; tar -cS -f sparse.tar sample; mkdir out2; tar -xf sparse.tar -C out2; diff -r --no-dereference -x fifo sample out2/sample",
    );
}

fn sqlite_with_a_write_ahead_log(t: &Tree) {
    sh(
        t.dir(),
        "sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);' | grep -q wal
        (for i in $(seq 60); do echo \"INSERT INTO t (v) VALUES (hex(randomblob(2000)));\"; done; echo 'PRAGMA wal_checkpoint(TRUNCATE);') > inserts
        sqlite3 -cmd '.timeout 20000' db < inserts > /dev/null & writer=$!
        while kill -0 $writer 2>/dev/null; do sqlite3 -readonly -cmd '.timeout 20000' db 'PRAGMA quick_check' | grep -qx ok; done
        wait $writer; test \"$(sqlite3 db 'SELECT count(*) FROM t')\" = 60
        for i in 1 2 3 4; do (for j in $(seq 10); do sqlite3 -cmd '.timeout 20000' db \"INSERT INTO t (v) VALUES ('$i')\"; done) & done; wait
        test \"$(sqlite3 db 'SELECT count(*) FROM t')\" = 100; sqlite3 db 'PRAGMA integrity_check' | grep -qx ok
        sqlite3 rollback 'CREATE TABLE t (v); BEGIN; INSERT INTO t VALUES (1); ROLLBACK; INSERT INTO t VALUES (2); VACUUM; PRAGMA integrity_check' | grep -qx ok",
    );
    t.remount();
    sh(
        t.dir(),
        "sqlite3 db 'PRAGMA integrity_check' | grep -qx ok; test \"$(sqlite3 db 'SELECT count(*) FROM t')\" = 100",
    );
}

fn a_c_project(t: &Tree) {
    sh(t.dir(), C_PROJECT);
    sh(t.dir(), "cd c; make -s -j2; ./program; test -z \"$(make -s -q && echo '' || echo rebuilds)\"");
    sh(
        t.dir(),
        "cd c; touch src/m7.c; make -j2 | grep -c -- '-c -o' | grep -qx 1; ./program; rm program; make -s -j2; ./program",
    );
}

fn rsync_in_every_manner(t: &Tree) {
    on_sample(
        t,
        "rm sample/b/fifo; settle sample
        rsync -aHAX --delete sample/ copy/; same sample copy; test -z \"$(rsync -aHAXi --delete sample/ copy/)\"
        echo changed > sample/a/f2; rm sample/a/f4; mkdir sample/new; echo n > sample/new/n; echo extra > copy/extra; settle sample
        rsync -aHAX --delete sample/ copy/; same sample copy; test ! -e copy/extra
        head -c 200000 /dev/urandom > sample/b/big; rsync -a sample/ copy/; printf 'middle' | dd of=sample/b/big bs=1 seek=100000 conv=notrunc status=none; touch -d '2003-01-01' sample/b/big
        rsync -a --inplace --no-whole-file sample/ copy/; cmp sample/b/big copy/b/big
        rsync -a --sparse sample/ sparse/; diff -r --no-dereference sample sparse
        rsync -a --append-verify sample/ copy/; rsync -aHAX --link-dest=$PWD/copy sample/ linked/; diff -r --no-dereference sample linked
        test $(stat -c %h linked/b/big) = 2; test -z \"$(rsync -aci sample/ linked/)\"; rsync -a --checksum --delay-updates sample/ copy/; diff -r --no-dereference sample copy",
    );
}

fn rsync_of_special_files(t: &Tree) {
    on_sample(
        t,
        "mknod sample/null c 1 3; settle sample; setfattr -n trusted.t -v v sample/a/f1; chown 12:34 sample/a/f5; chown -h 5:6 sample/b/symbolic
        rsync -aHAX --delete sample/ copy/; same sample copy; cp -a sample copy2; same sample copy2
        tar -c --xattrs --xattrs-include='*' --acls -f all.tar sample; mkdir out; tar -x --xattrs --xattrs-include='*' --acls -p -f all.tar -C out; same sample out/sample",
    );
}

fn cp_keeps_everything(t: &Tree) {
    on_sample(
        t,
        "cp -a sample copy; same sample copy; cp -a copy copy2; same sample copy2; mv copy2 moved; same sample moved",
    );
    t.remount();
    sh(t.dir(), &format!("{DESCRIBE} same sample copy"));
    // Out of the tree, back into it, over what is there.
    let outside = crate::harness::scratch_for(t);
    let outside = outside.path().to_str().unwrap();
    sh(
        t.dir(),
        &format!(
            "{DESCRIBE} cp -a sample {outside}/s; same sample {outside}/s; rm -r copy; mv {outside}/s copy; same sample copy; cp -rf sample/a/. copy/a/; install -m 640 -D sample/a/f1 deep/er/f1; cmp sample/a/f1 deep/er/f1"
        ),
    );
}

fn linked_copies(t: &Tree) {
    on_sample(
        t,
        "cp -al sample linked; test $(stat -c %h linked/a/f2) = 2; test $(stat -c %h linked/b/linked) = 4; same linked linked; echo x >> linked/a/f2; cmp sample/a/f2 linked/a/f2; rm -r linked; test $(stat -c %h sample/a/f2) = 1",
    );
}

fn flock_excludes(t: &Tree) {
    sh(
        t.dir(),
        "echo 0 > n; for i in 1 2 3 4; do (for j in $(seq 15); do flock lock sh -c 'echo $(($(cat n) + 1)) > n.new; mv n.new n'; done) & done; wait
        test $(cat n) = 60; exec 9> lock; flock -n 9; ! flock -n lock true; exec 9>&-; flock -n lock true",
    );
}

fn find_and_du(t: &Tree) {
    on_sample(
        t,
        "test $(find sample -type f | wc -l) = 9; test $(find sample -type d | wc -l) = 5; test $(find sample -links 2 -type f | wc -l) = 2
        find sample -name 'f[1-3]' -newer sample/a/f5 | grep -c f | grep -qx 3; test $(du -s --apparent-size --block-size=1 sample/b/random | cut -f1) = 300000
        du -s sample > /dev/null; find sample -empty -type f | grep -q nothing; find sample -perm -4000 | grep -q f3; ls -lR sample > /dev/null
        find sample -type f -delete; test $(find sample -type f | wc -l) = 0; rm -rf sample; test ! -e sample",
    );
}

fn editors_and_stream_tools(t: &Tree) {
    sh(
        t.dir(),
        "seq 1000 > f; sed -i 's/^5$/five/' f; grep -qx five f; sort -r -o f f; head -1 f | grep -qx five; cp f f.orig; sed -i '3d' f
        diff -u f.orig f > p || true; cp f.orig g; patch -s g p; cmp f g; split -n 7 -d f part.; cat part.* | cmp - f; shuf f -o f; sort -rn f | md5sum > a; sort -rn g | md5sum > b; cmp a b
        dd if=f of=h bs=100 conv=notrunc,fsync status=none; cmp f h; truncate -s 10 h; test $(stat -c %s h) = 10; tee -a h < /dev/null; : >> h; printf x | tee -a h; test $(stat -c %s h) = 11
        mktemp -p . > name; rm $(cat name); ln -sfn f link; readlink -f link > /dev/null; test link -ef f",
    );
}

fn archives_and_sums(t: &Tree) {
    sh(
        t.dir(),
        "mkdir d; for i in $(seq 30); do head -c 20000 /dev/urandom > d/$i; done; tar czf d.tgz d; gzip -t d.tgz; mkdir e; tar xzf d.tgz -C e; diff -r d e/d
        (cd d; sha1sum *) > sums; (cd e/d; sha1sum --quiet -c ../../sums); gzip -k d/1; zcmp d/1 d/1.gz || cmp d/1 <(gzip -dc d/1.gz)",
    );
}

fn a_cargo_build(t: &Tree) {
    fs::create_dir_all(t.path("tiny/src")).unwrap();
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    fs::write(t.path("tiny/Cargo.toml"), manifest).unwrap();
    fs::write(
        t.path("tiny/src/lib.rs"),
        "pub fn two() -> u32 { 2 }\n#[test]\nfn is_two() { assert_eq!(two(), 2) }\n",
    )
    .unwrap();
    fs::write(t.path("tiny/src/main.rs"), "fn main() { println!(\"{}\", tiny::two() + 40) }\n").unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let home = std::env::var("HOME").unwrap_or_default();
    let build = |what: &str| {
        sh(
            t.path("tiny"),
            &format!(
                "export HOME='{home}'; unset CARGO_TARGET_DIR RUSTFLAGS; CARGO_INCREMENTAL=1 '{cargo}' {what} --offline 2>&1"
            ),
        )
    };
    build("build");
    assert_eq!(sh(t.path("tiny"), "./target/debug/tiny"), "42\n");
    assert!(!build("build").contains("Compiling"), "nothing changed, nothing to do");
    fs::write(t.path("tiny/src/lib.rs"), "pub fn two() -> u32 { 3 }\n").unwrap();
    build("build");
    assert_eq!(sh(t.path("tiny"), "./target/debug/tiny"), "43\n");
    build("build --release");
}

fn an_overlay_on_top(t: &Tree) {
    on_sample(t, "true");
    let above = crate::harness::scratch_for(t);
    let above = above.path().to_str().unwrap();
    let lower = t.path("sample");
    let script = format!(
        "cd {above}; mkdir upper work merged; mount -t overlay -o lowerdir={},upperdir=upper,workdir=work overlay merged
        trap 'umount -l merged' EXIT
        cmp merged/a/f1 {0}/a/f1; echo more >> merged/a/f1; grep -q more merged/a/f1; ! grep -q more {0}/a/f1
        rm merged/a/f2; test ! -e merged/a/f2; test -e {0}/a/f2; mv merged/b/random merged/random; cmp merged/random {0}/b/random
        mkdir merged/new; echo x > merged/new/x; getfattr -n user.one merged/a/f1 | grep -q first; diff {0}/a/f3 merged/a/f3; merged/../upper/none 2>/dev/null || true
        umount merged; trap - EXIT; test -e upper/new/x",
        lower.display()
    );
    sh("/", &script);
}
