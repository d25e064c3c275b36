//! All handles and mappings of one file see each other's writes at once, whoever opened first, in every state of the file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{ftruncate, truncate};

use crate::data::{noise, rw};
use crate::harness::{Tree, eventually, sha1};
use crate::sys::{Aligned, Map, copy_range};

modes!(every_chain:
    a_reader_sees_a_later_writer, a_writer_is_seen_by_a_later_reader, every_order_of_opens, tail_follows,
    an_open_file_keeps_its_bytes, two_names_of_one_content_are_two_files, one_reader_through_many_versions,
    random_handles_agree, hard_links_are_one_file, a_reader_in_another_process,
);

modes!(mounted:
    a_writer_beside_a_reader_of_what_was_just_sealed, a_twin_that_is_written_again_leaves_the_others_alone,
);

/// Three files of one content: what is done to the second must not let the third in on the file of the first.
fn a_twin_that_is_written_again_leaves_the_others_alone(t: &Tree) {
    let bytes = noise(1, 100_000);
    let one = t.sealed("one", &bytes);
    let first = File::open(&one).unwrap();
    let two = t.file("two", &bytes);
    let reader = File::open(&two).unwrap();
    t.seal();
    drop(rw(&two));
    t.seal();
    let three = t.sealed("three", &bytes);
    let third = File::open(&three).unwrap();
    rw(&one).write_all_at(b"only in the first", 0).unwrap();
    rw(&two).write_all_at(b"only in the second", 0).unwrap();
    let mut seen = vec![0; bytes.len()];
    third.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == bytes, "the third file shows what was written to another");
    first.read_exact_at(&mut seen[..17], 0).unwrap();
    assert_eq!(seen[..17], *b"only in the first");
    reader.read_exact_at(&mut seen[..18], 0).unwrap();
    assert_eq!(seen[..18], *b"only in the second");
}

const PAGES: usize = 3 * 4096;
const START: u8 = b'.';

/// How a file came to be before the handles under test are opened.
const STATES: [&str; 3] = ["open", "closed", "sealed"];

/// A file of three pages in the given state; "open" is kept so by the file returned.
fn in_state(t: &Tree, name: &str, state: &str) -> (std::path::PathBuf, Option<File>) {
    let path = t.path(name);
    let file = rw(&path);
    file.write_all_at(&[START; PAGES], 0).unwrap();
    if state == "open" {
        return (path, Some(file));
    }
    drop(file);
    if state == "sealed" {
        t.seal();
    }
    (path, None)
}

/// What can be looked at: the whole file through one handle or mapping.
enum Reader {
    Handle(File),
    Direct(File),
    Map(Map),
}

impl Reader {
    const KINDS: [&str; 4] = ["read", "rdwr", "direct", "map"];

    fn open(kind: &str, path: &Path) -> Reader {
        match kind {
            "read" => Reader::Handle(File::open(path).unwrap()),
            "rdwr" => Reader::Handle(rw(path)),
            "direct" => {
                Reader::Direct(OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap())
            }
            "map" => Reader::Map(Map::shared_readonly(&File::open(path).unwrap(), PAGES).unwrap()),
            _ => unreachable!(),
        }
    }

    /// The first three pages, or less when the file is shorter.
    fn see(&self, size: usize) -> Vec<u8> {
        match self {
            Reader::Handle(file) => {
                let mut bytes = vec![0; PAGES];
                let n = file.read_at(&mut bytes, 0).unwrap();
                bytes.truncate(n);
                bytes
            }
            Reader::Direct(file) => {
                let mut bytes = Aligned::filled(0, PAGES);
                let n = file.read_at(&mut bytes, 0).unwrap();
                bytes[..n].to_vec()
            }
            // Beyond the end of the file a mapping has no pages to look at.
            Reader::Map(map) => map.read(0, size.min(PAGES)),
        }
    }
}

/// Changes the file in one way, keeping `model` in step; what it returns keeps its handles open.
fn write_by(kind: &str, path: &Path, model: &mut Vec<u8>) -> Box<dyn std::any::Any> {
    let put =
        |model: &mut Vec<u8>, at: usize, bytes: &[u8]| model[at..at + bytes.len()].copy_from_slice(bytes);
    match kind {
        "pwrite" => {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(b"pwrite", 4093).unwrap();
            put(model, 4093, b"pwrite");
            Box::new(file)
        }
        "append" => {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"append").unwrap();
            model.extend(b"append");
            Box::new(file)
        }
        "truncating" => {
            let mut file = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
            file.write_all(&[b'T'; 5000]).unwrap();
            *model = vec![b'T'; 5000];
            Box::new(file)
        }
        "direct" => {
            let options = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
            let file = options.unwrap();
            file.write_all_at(&Aligned::filled(b'D', 4096), 4096).unwrap();
            put(model, 4096, &[b'D'; 4096]);
            Box::new(file)
        }
        "store" => {
            let map = Map::shared(&rw(path), PAGES).unwrap();
            map.write(8190, b"store");
            put(model, 8190, b"store");
            Box::new(map)
        }
        "truncate" => {
            truncate(path, 4100).unwrap();
            truncate(path, 8200).unwrap();
            model.truncate(4100);
            model.resize(8200, 0);
            Box::new(())
        }
        "ftruncate" => {
            let file = rw(path);
            ftruncate(&file, 7000).unwrap();
            model.truncate(7000);
            Box::new(file)
        }
        "punch" => {
            let file = rw(path);
            fallocate(
                &file,
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                4000,
                300,
            )
            .unwrap();
            model[4000..4300].fill(0);
            Box::new(file)
        }
        "copy" => {
            let file = rw(path);
            assert_eq!(copy_range(&file, 0, &file, 8000, 4000), Ok(4000));
            model.copy_within(0..4000, 8000);
            Box::new(file)
        }
        _ => unreachable!(),
    }
}

const WRITERS: [&str; 9] =
    ["pwrite", "append", "truncating", "direct", "store", "truncate", "ftruncate", "punch", "copy"];

fn a_reader_sees_a_later_writer(t: &Tree) {
    for state in STATES {
        for reader_kind in Reader::KINDS {
            for writer_kind in WRITERS {
                let what = format!("{state} {reader_kind} {writer_kind}");
                let (path, _creator) = in_state(t, &what, state);
                let mut model = vec![START; PAGES];
                let reader = Reader::open(reader_kind, &path);
                assert!(reader.see(PAGES) == model, "{what}: before");
                let writer = write_by(writer_kind, &path, &mut model);
                let seen = &model[..model.len().min(PAGES)];
                assert!(reader.see(model.len()) == seen, "{what}: while the writer is open");
                assert_eq!(fs::metadata(&path).unwrap().len(), model.len() as u64, "{what}: size");
                drop(writer);
                assert!(reader.see(model.len()) == seen, "{what}: after the writer closed");
                assert!(fs::read(&path).unwrap() == model, "{what}: opened anew");
                drop(reader);
                fs::remove_file(&path).unwrap();
            }
        }
    }
}

fn a_writer_is_seen_by_a_later_reader(t: &Tree) {
    for state in STATES {
        for writer_kind in WRITERS {
            let (path, _creator) = in_state(t, &format!("{state} {writer_kind}"), state);
            let mut model = vec![START; PAGES];
            let writer = write_by(writer_kind, &path, &mut model);
            let seen = model[..model.len().min(PAGES)].to_vec();
            let readers = Reader::KINDS.map(|kind| (kind, Reader::open(kind, &path)));
            for (kind, reader) in &readers {
                assert!(reader.see(model.len()) == seen, "{state} {writer_kind} {kind}");
            }
            drop(writer);
            // Everybody sees a further write as well.
            rw(&path).write_all_at(b"further", 100).unwrap();
            for (kind, reader) in &readers {
                assert_eq!(reader.see(model.len())[100..107], *b"further", "{state} {writer_kind} {kind}");
            }
        }
    }
}

/// Opens in every order of the kinds, each time checking that all handles agree.
fn every_order_of_opens(t: &Tree) {
    let open = |kind: usize, path: &Path| {
        let mut options = OpenOptions::new();
        match kind {
            0 => options.read(true),
            1 => options.read(true).write(true),
            2 => options.read(true).append(true),
            _ => options.read(true).write(true).custom_flags(libc::O_DIRECT),
        };
        options.open(path).unwrap_or_else(|e| panic!("open of kind {kind}: {e}"))
    };
    for state in STATES {
        for order in (0..64).map(|n| [n % 4, n / 4 % 4, n / 16]) {
            let (path, _creator) = in_state(t, "file", state);
            let mut handles = Vec::new();
            for (step, kind) in order.into_iter().enumerate() {
                handles.push((kind, open(kind, &path)));
                let fill = b'a' + step as u8;
                if kind != 0 {
                    // Append handles write at the end, the others into the second page.
                    let at = if kind == 2 { PAGES as u64 } else { 4096 };
                    handles.last().unwrap().1.write_all_at(&Aligned::filled(fill, 4096), at).unwrap();
                }
                let expected = fs::read(&path).unwrap();
                for (kind, handle) in &handles {
                    let mut bytes = Aligned::filled(0, 8 * 4096);
                    let n = handle.read_at(&mut bytes, 0).unwrap();
                    assert!(bytes[..n] == expected, "{state} {order:?} step {step}: handle of kind {kind}");
                }
                if kind != 0 {
                    assert!(expected.contains(&fill), "{state} {order:?} step {step}: own write");
                }
            }
            drop(handles);
            fs::remove_file(&path).unwrap();
        }
    }
}

fn tail_follows(t: &Tree) {
    for sealed in [false, true] {
        let path = t.file("log", "first\n");
        if sealed {
            t.seal();
        }
        let tail = ["-f", "-n", "+1", "-s", "0.05"];
        let mut tail = Command::new("tail").args(tail).arg(&path).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = std::sync::mpsc::channel();
        let out = tail.stdout.take().unwrap();
        std::thread::spawn(move || {
            use std::io::BufRead;
            std::io::BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| send.send(l))
        });
        let patience = std::time::Duration::from_secs(20);
        let mut heard = vec![lines.recv_timeout(patience)];
        for line in ["second", "third"] {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(format!("{line}\n").as_bytes()).unwrap();
            heard.push(lines.recv_timeout(patience));
            drop(file);
            t.seal();
        }
        tail.kill().unwrap();
        tail.wait().unwrap();
        assert_eq!(heard, ["first", "second", "third"].map(|l| Ok(l.to_owned())));
    }
}

fn an_open_file_keeps_its_bytes(t: &Tree) {
    for state in ["closed", "sealed"] {
        for replace in ["rename", "unlink"] {
            let (path, _) = in_state(t, "file", state);
            let (mut handle, map) = (File::open(&path).unwrap(), Reader::open("map", &path));
            let mut start = [0; 10];
            handle.read_exact(&mut start).unwrap();
            match replace {
                "rename" => {
                    t.file("other", "new");
                    fs::rename(t.path("other"), &path).unwrap();
                }
                _ => fs::remove_file(&path).unwrap(),
            }
            t.seal();
            let mut rest = Vec::new();
            handle.read_to_end(&mut rest).unwrap();
            assert!(rest == vec![START; PAGES - 10], "{state} {replace}: the handle");
            assert!(map.see(PAGES) == vec![START; PAGES], "{state} {replace}: the mapping");
            let _ = fs::remove_file(&path);
        }
    }
}

fn two_names_of_one_content_are_two_files(t: &Tree) {
    for opened_first in ["reader", "writer"] {
        for kind in Reader::KINDS {
            for writer_kind in WRITERS {
                let what = format!("{opened_first} first, {kind} {writer_kind}");
                let (a, _) = in_state(t, "a", "closed");
                let (b, _) = in_state(t, "b", "closed");
                t.seal();
                let mut model = vec![START; PAGES];
                let own_reader = Reader::open(kind, &a);
                let (reader, writer);
                if opened_first == "reader" {
                    reader = Reader::open(kind, &b);
                    writer = write_by(writer_kind, &a, &mut model);
                } else {
                    writer = write_by(writer_kind, &a, &mut model);
                    reader = Reader::open(kind, &b);
                }
                assert!(reader.see(PAGES) == vec![START; PAGES], "{what}: the other file");
                let seen = &model[..model.len().min(PAGES)];
                assert!(own_reader.see(model.len()) == seen, "{what}: the file");
                // Now the other one is written as well.
                rw(&b).write_all_at(b"other", 0).unwrap();
                assert_eq!(reader.see(PAGES)[..6], *b"other.", "{what}");
                assert!(own_reader.see(model.len()) == seen, "{what}: the file after the other");
                drop((reader, writer, own_reader));
                assert!(fs::read(&a).unwrap() == model, "{what}");
                assert_eq!(fs::read(&b).unwrap()[..6], *b"other.", "{what}");
            }
        }
    }
}

fn one_reader_through_many_versions(t: &Tree) {
    let (path, _) = in_state(t, "file", "sealed");
    let readers = Reader::KINDS.map(|kind| (kind, Reader::open(kind, &path)));
    let mut model = vec![START; PAGES];
    for round in 0..12u8 {
        let at = usize::from(round) * 900;
        rw(&path).write_all_at(&[b'A' + round; 50], at as u64).unwrap();
        model[at..at + 50].fill(b'A' + round);
        if round % 3 != 1 {
            t.seal();
        }
        for (kind, reader) in &readers {
            assert!(reader.see(PAGES) == model, "round {round}: {kind}");
        }
    }
}

/// Random work on three files through many handles and mappings against a model in memory.
fn random_handles_agree(t: &Tree) {
    for seed in 1..=4u64 {
        random_round(t, seed);
    }
}

fn random_round(t: &Tree, seed: u64) {
    let mut numbers = noise(seed, 8 * 10_000)
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect::<Vec<_>>()
        .into_iter();
    let mut pick = |n: usize| (numbers.next().unwrap() >> 16) as usize % n;
    // Two files begin with one content, the third is a second name of the first.
    let paths = [t.path(format!("r{seed}a")), t.path(format!("r{seed}b")), t.path(format!("r{seed}c"))];
    let mut models = [vec![START; PAGES], vec![START; PAGES]];
    fs::write(&paths[0], &models[0]).unwrap();
    fs::write(&paths[1], &models[1]).unwrap();
    t.seal();
    fs::hard_link(&paths[0], &paths[2]).unwrap();
    let mut handles: Vec<(usize, Reader, &str)> = Vec::new();
    let mut writers: Vec<Box<dyn std::any::Any>> = Vec::new();
    for step in 0..160 {
        let name = pick(3);
        let file = name % 2;
        let path = &paths[name];
        let what;
        match pick(8) {
            0 | 1 => {
                let kind = Reader::KINDS[pick(4)];
                what = format!("open {kind}");
                handles.push((file, Reader::open(kind, path), kind));
            }
            2 if !handles.is_empty() => {
                what = "close".into();
                drop(handles.swap_remove(pick(handles.len())));
            }
            3 if !writers.is_empty() => {
                what = "close of a writer".into();
                drop(writers.swap_remove(pick(writers.len())));
            }
            4 if pick(4) == 0 => {
                what = "seal".into();
                t.seal();
            }
            5 => {
                let at = pick(PAGES - 100);
                what = format!("write at {at}");
                rw(path).write_all_at(&[b'a' + (step % 26) as u8; 100], at as u64).unwrap();
                let model = &mut models[file];
                let end = (at + 100).max(model.len());
                model.resize(end, 0);
                model[at..at + 100].fill(b'a' + (step % 26) as u8);
            }
            _ => {
                // The kinds that keep three pages, so that no mapping loses the pages it stands on.
                let kind = ["pwrite", "direct", "store", "punch", "copy", "append"][pick(6)];
                if models[file].len() > 5 * PAGES {
                    continue;
                }
                what = format!("write by {kind}");
                writers.push(write_by(kind, path, &mut models[file]));
            }
        }
        for (file, reader, kind) in &handles {
            let model = &models[*file][..PAGES];
            assert!(
                reader.see(PAGES) == model,
                "seed {seed} step {step}, after {what} of {name}: {kind} of {file}"
            );
        }
        if step % 10 == 0 {
            for (name, path) in paths.iter().enumerate() {
                assert!(
                    fs::read(path).unwrap() == models[name % 2],
                    "seed {seed} step {step}: read of {name}"
                );
            }
        }
    }
    drop((handles, writers));
    t.remount();
    for (name, path) in paths.iter().enumerate() {
        assert!(fs::read(path).unwrap() == models[name % 2], "seed {seed}: {name} after a remount");
    }
}

fn hard_links_are_one_file(t: &Tree) {
    for state in STATES {
        let (a, _creator) = in_state(t, &format!("{state} a"), state);
        let b = t.path(format!("{state} b"));
        let reader = Reader::open("read", &a);
        fs::hard_link(&a, &b).unwrap();
        let map = Reader::open("map", &b);
        let mut model = vec![START; PAGES];
        let _writer = write_by("pwrite", &b, &mut model);
        let _store = write_by("store", &a, &mut model);
        assert!(reader.see(PAGES) == model && map.see(PAGES) == model, "{state}");
        assert!(fs::read(&a).unwrap() == model && fs::read(&b).unwrap() == model, "{state}");
    }
}

fn a_reader_in_another_process(t: &Tree) {
    let path = t.sealed("file", "0");
    // The child keeps one descriptor and reads the file through it each time it is asked.
    let script = "exec 3<\"$1\"; while read -r _; do cat <&3 | tail -c 20; echo; exec 3<\"$1\"; done";
    let mut child = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, mut answer) =
        (child.stdin.take().unwrap(), std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut file = rw(&path);
    for round in 1..10 {
        file.seek(SeekFrom::Start(0)).unwrap();
        write!(file, "{round}").unwrap();
        writeln!(ask, "go").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut answer, &mut line).unwrap();
        assert_eq!(line.trim(), round.to_string());
    }
    drop(ask);
    eventually("the child to end", || child.try_wait().unwrap().is_some());
}

fn a_writer_beside_a_reader_of_what_was_just_sealed(t: &Tree) {
    for i in 0..4 {
        let mut model = noise(i, 100_000);
        let path = t.file(format!("file{i}"), &model);
        let sum = sha1(&model);
        // Sealed by itself, so that nothing of it need be durable yet.
        eventually("the seal", || t.depot().blob(&sum).exists());
        let reader = File::open(&path).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all_at(b"new bytes", 5000).unwrap();
        model[5000..5009].copy_from_slice(b"new bytes");
        let mut seen = vec![0; model.len()];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == model, "the reader sees what the writer wrote");
        assert_eq!(sha1(&fs::read(t.depot().blob(&sum)).unwrap()), sum, "the blob keeps its bytes");
    }
}
