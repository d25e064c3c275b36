//! The rows of the tables, and how a key is found.

use super::*;

#[test]
fn every_row_is_well_formed() {
    for table in [DEPOT, REPOSITORY] {
        let mut tables: Vec<&str> = table.iter().map(Key::table).collect();
        tables.dedup();
        assert!(tables.iter().skip(1).all(|table| !table.is_empty()), "keys without a section come first");
        for key in table {
            // A list has a table of its own in the file, with no other key of its section behind it.
            let plain = key.name.replacen("[].", ".", 1);
            assert!(
                plain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)),
                "{}",
                key.name
            );
            assert_eq!(tables.iter().filter(|t| **t == key.table()).count(), 1, "{}", key.name);
            assert!(key.doc.ends_with('.'), "{}", key.name);
            if let Some(default) = key.default {
                assert_eq!(key.kind.check(default), Ok(()), "default of {}", key.name);
            }
            assert_eq!(table.iter().filter(|other| other.name == key.name).count(), 1, "{}", key.name);
        }
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let text = find(DEPOT, "file-system.blob-moed").unwrap_err();
    assert!(
        text.contains("\"file-system.blob-moed\"") && text.contains("\"file-system.blob-mode\""),
        "{text}"
    );
    assert!(find(REPOSITORY, "durability").is_ok());
}

#[test]
fn keys_of_several_tables_are_found_by_number() {
    const TABLE: &[Key] = &[Key { name: "a.shard[].dir", kind: Kind::Path, default: None, doc: "." }];
    for good in ["a.shard[0].dir", "a.shard[18446744073709551615].dir"] {
        assert_eq!(find(TABLE, good).unwrap().name, "a.shard[].dir");
    }
    for bad in [
        "a.shard[].dir",
        "a.shard[00].dir",
        "a.shard[+1].dir",
        "a.shard[-1].dir",
        "a.shard.dir",
        "a.shard[18446744073709551616].dir",
        "a.shard[0][1].dir",
        "a.shard]0[.dir",
        "a.shard[0.dir",
        "a.shard[0].dri",
    ] {
        let why = find(TABLE, bad).unwrap_err();
        assert!(why.contains("\"a.shard[0].dir\"") || bad.len() > 20, "{why}");
    }
    let key = &TABLE[0];
    assert_eq!((key.table(), key.own_name(), key.section()), ("a.shard[]", "dir", "a"));
}
