//! Random changes keep every invariant.

use proptest::prelude::*;

use super::*;

const DIRECTORIES: u64 = 6;

/// A change over few names and numbers, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Create { parent: u8, name: u8, kind: u8, content: Option<u8> },
    Link { ino: u8, parent: u8, name: u8 },
    Remove { at: u8 },
    Rename { at: u8, parent: u8, name: u8, replace: bool },
    Exchange { a: u8, b: u8 },
    Content { ino: u8, sum: u8 },
    Stage { ino: u8 },
    Unstage { ino: u8 },
    Reap { ino: u8 },
    ReapAny,
    Forget { sum: u8 },
    Setting { ino: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    let (n, few) = (any::<u8>, 0u8..5);
    prop_oneof![
        6 => (n(), few.clone(), n(), proptest::option::of(0u8..4))
            .prop_map(|(parent, name, kind, content)| Create { parent, name, kind, content }),
        2 => (n(), n(), few.clone()).prop_map(|(ino, parent, name)| Link { ino, parent, name }),
        3 => n().prop_map(|at| Remove { at }),
        5 => (n(), n(), few.clone(), any::<bool>())
            .prop_map(|(at, parent, name, replace)| Rename { at, parent, name, replace }),
        3 => (n(), n()).prop_map(|(a, b)| Exchange { a, b }),
        4 => (n(), 0u8..4).prop_map(|(ino, sum)| Content { ino, sum }),
        1 => n().prop_map(|ino| Stage { ino }),
        1 => n().prop_map(|ino| Unstage { ino }),
        1 => n().prop_map(|ino| Reap { ino }),
        2 => Just(ReapAny),
        2 => (0u8..4).prop_map(|sum| Forget { sum }),
        1 => n().prop_map(|ino| Setting { ino }),
    ]
}

/// Turns a step into a change that has a chance, by what the index holds now.
fn change(d: &Depot, step: &Step, made: &mut Vec<Ino>) -> Option<Change> {
    let pick = |n: u8| made.get(usize::from(n) % made.len().max(1)).copied();
    let directory = |n: u8| if n < 50 { Some(ROOT) } else { pick(n) };
    let place = |n: u8| {
        let ino = pick(n)?;
        let (parent, name) = d.index.parent(ino).unwrap()?;
        Some((parent, name, ino))
    };
    let name = |n: u8| vec![b'a' + n];
    let size = |n: u8| u64::from(n) + 1;
    Some(match *step {
        Step::Create { parent, name: n, kind, content } => {
            let number = i64::from(kind) % 3 + 1;
            let kind = Kind::from_number(number).unwrap();
            let ino = d.number();
            let parent = directory(parent)?;
            let content = content.filter(|_| kind == Kind::File);
            let checksum = content.map(|n| sum(size(n)));
            let i = Inode { checksum, size: content.map_or(0, size), ..inode(ino, kind, 1) };
            let target = (kind == Kind::Symlink).then(|| b"t".to_vec());
            let xattrs = vec![(b"user.x".to_vec(), vec![number as u8])];
            if made.len() as u64 > DIRECTORIES * 4 {
                made.remove(0);
            }
            made.push(ino);
            Change::Create { parent, name: name(n), cookie: d.number(), inode: i, target, xattrs }
        }
        Step::Link { ino, parent, name: n } => Change::Link {
            ino: pick(ino)?,
            parent: directory(parent)?,
            name: name(n),
            cookie: d.number(),
            at: 2,
        },
        Step::Remove { at } => {
            let (parent, name, ino) = place(at)?;
            Change::Remove { parent, name, ino, at: 3 }
        }
        Step::Rename { at, parent: to, name: n, replace } => {
            let (parent, old, ino) = place(at)?;
            let (new_parent, new_name) = (directory(to)?, name(n));
            let there = d.index.lookup(new_parent, &new_name).unwrap().map(|i| i.ino);
            let replaced = there.filter(|_| replace);
            Change::Rename {
                parent,
                name: old,
                new_parent,
                new_name,
                cookie: d.number(),
                ino,
                replaced,
                at: 4,
            }
        }
        Step::Exchange { a, b } => {
            let ((parent, name, ino), (new_parent, new_name, new_ino)) = (place(a)?, place(b)?);
            Change::Exchange { parent, name, ino, new_parent, new_name, new_ino, at: 5 }
        }
        Step::Content { ino, sum: n } => content(pick(ino)?, sum(size(n)), size(n)),
        Step::Stage { ino } => Change::Stage(staged(pick(ino)?, d.number())),
        Step::Unstage { ino } => Change::Unstage { ino: pick(ino)? },
        Step::Reap { ino } => Change::Reap { ino: pick(ino)? },
        Step::ReapAny => Change::Reap { ino: *d.index.orphans().unwrap().first()? },
        Step::Forget { sum: n } => Change::Forget { checksum: sum(size(n)) },
        Step::Setting { ino } => {
            Change::Setting { repository: pick(ino)?, key: "k".into(), value: Some("v".into()) }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_changes_keep_the_index_consistent(steps in proptest::collection::vec(step(), 1..120)) {
        let d = Depot::new();
        let mut made = Vec::new();
        for pair in steps.chunks(2) {
            let changes: Vec<Change> = pair.iter().filter_map(|s| change(&d, s, &mut made)).collect();
            let before = dump(&d.index);
            match d.index.commit(&changes) {
                Ok(_) => {}
                Err(Error::Sql { source, .. }) => panic!("{source}: {changes:?}"),
                Err(Error::Corrupt { what, .. }) => panic!("{what}: {changes:?}"),
                Err(_) => prop_assert_eq!(dump(&d.index), before),
            }
            prop_assert_eq!(d.index.check(false).unwrap(), vec![], "{:?}", changes);
            for ino in &made {
                let path = d.index.path(*ino).unwrap();
                let top = path.as_ref().and_then(|p| p.split(|b| *b == b'/').next().map(<[u8]>::to_vec));
                let repository = top.map(|top| d.index.lookup(ROOT, &top).unwrap().unwrap().ino);
                prop_assert_eq!(d.index.repository(*ino).unwrap(), repository);
            }
        }
        let copy = files::killed(&d);
        prop_assert_eq!(dump(&Index::open(&copy.path().join("index.db")).unwrap()), dump(&d.index));
    }
}
