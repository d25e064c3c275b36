//! What may stand in a depot.toml, what may not, and that what is written is what is read.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::keys::DEPOT;
use crate::config::{parse_duration, parse_size};

/// A key of every kind that has no example in depot.toml yet, and lists of tables.
const ODD: &[Key] = &[
    row("chain", Kind::Chain, Some("file-system")),
    row("word", Kind::Text, Some("")),
    row("cache.size", Kind::Size, Some("5GB")),
    row("cache.age", Kind::Duration, Some("1h30min")),
    row("cache.workers", Kind::Count { min: 1, max: 64 }, Some("8")),
    row("cache.fair", Kind::Flag, Some("false")),
    row("cache.password", Kind::Secret, None),
    row("sharding.copies", Kind::Count { min: 1, max: u64::MAX }, Some("1")),
    row("sharding.shard[].dir", Kind::Path, None),
    row("sharding.shard[].zone", Kind::Text, Some("")),
];

const fn row(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { name, kind, default, doc: "It is explained." }
}

fn parse_odd(text: &str) -> Result<Values, Vec<String>> {
    told(read(ODD, text))
}

fn parse(text: &str) -> Result<Values, Vec<String>> {
    told(read(DEPOT, text))
}

fn told(said: Result<(Values, Vec<Problem>), Problem>) -> Result<Values, Vec<String>> {
    match said {
        Ok((values, problems)) if problems.is_empty() => Ok(values),
        Ok((_, problems)) => Err(problems.iter().map(Problem::to_string).collect()),
        Err(problem) => Err(vec![problem.to_string()]),
    }
}

#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    let why = parse_odd(text).unwrap_err().join("\n");
    assert!(parts.iter().all(|part| why.contains(part)), "{text}: {why}");
}

#[test]
fn what_is_rendered_is_what_is_parsed() {
    let mut values = Values::from([("id", "00112233445566778899aabbccddeeff".to_owned())]);
    values.insert("file-system.dir", "/a \"b\" \\ c".into());
    values.insert("log.level", "debug".into());
    values.insert("chain", "full-db".into());
    let text = render(DEPOT, &values);
    assert!(text.contains("\nchain = [\"full-db\"]\n"), "{text}");
    assert_eq!(parse(&text).unwrap(), values, "{text}");
    for key in DEPOT {
        assert!(text.contains(key.doc), "{} is not explained", key.name);
    }
}

#[test]
fn unknown_keys_and_sections_are_named_with_the_nearest() {
    for (text, unknown, nearest) in [
        ("tempalte = \"file-system\"", "\"tempalte\"", "\"template\""),
        ("[file-system]\ndri = \"x\"", "\"file-system.dri\"", "\"file-system.dir\""),
        ("[filesystem]\ndir = \"x\"", "[filesystem]", "\"file-system\""),
    ] {
        let why = parse(text).unwrap_err().remove(0);
        assert!(why.contains(unknown) && why.contains(nearest), "{why}");
    }
}

#[test]
fn wrong_values_say_what_is_wanted() {
    for (text, part) in [
        ("durability = \"sometimes\"", "one of \"fsync\", \"close\", \"remote\""),
        ("durability = 3", "one of"),
        ("[file-system]\nblob-mode = 0o644", "nobody write"),
        ("index = \"\"", "not a path"),
        ("[log]\nlevel = \"loud\"", "log.level"),
    ] {
        let why = parse(text).unwrap_err().remove(0);
        assert!(why.contains(part), "{text}: {why}");
    }
    assert!(parse("\nid = ").unwrap_err()[0].starts_with("line 2, column 6 is not TOML: "));
}

#[test]
fn every_kind_has_its_toml_types() {
    let text = "chain = ['full-db']\nword = '${X} ä'\n[cache]\nsize = 5e+10\nage = '1d'\nworkers = 0x10\n\
                fair = true\npassword = ''";
    let values = parse_odd(text).unwrap();
    let of = |name: &str| values.get(name).unwrap();
    assert_eq!((of("chain"), of("word"), of("cache.size")), ("full-db", "${X} ä", "50000000000"));
    assert_eq!((of("cache.workers"), of("cache.fair"), of("cache.password")), ("16", "true", ""));
    for size in ["5_000", "'5kB'", "5e3", "5000.0"] {
        let values = parse_odd(&format!("[cache]\nsize = {size}")).unwrap();
        assert_eq!(parse_size(values.get("cache.size").unwrap()), Ok(5000), "{size}");
    }
}

#[test]
fn wrong_types_are_refused_with_what_is_wanted() {
    for (text, parts) in [
        ("word = 5", &["word: 5 is not a text"][..]),
        ("word = '${'", &["word: ", "$${"]),
        ("cache.size = -5", &["cache.size: \"-5\" is negative"]),
        ("cache.size = -5e10", &["negative"]),
        ("cache.size = 1e300", &["more than"]),
        ("cache.size = 1.5", &["whole number"]),
        ("cache.size = nan", &["is not a size"]),
        ("cache.size = inf", &["is not a size"]),
        ("cache.size = true", &["is not a size"]),
        ("cache.size = ''", &["\"\" is not a size"]),
        ("cache.age = 15", &["cache.age: \"15\" ends without a unit"]),
        ("cache.age = 07:32:00", &["is not a duration"]),
        ("cache.workers = 0", &["a number from 1 to 64"]),
        ("cache.workers = 1.0", &["a number from 1 to 64"]),
        ("cache.workers = [1]", &["a number from 1 to 64"]),
        ("sharding.copies = -9223372036854775808", &["a number from 1 on"]),
        ("cache.fair = 1", &["true or false"]),
        ("cache.fair = 'yes'", &["true or false"]),
        ("chain = []", &["chain: an empty chain keeps no blobs"]),
        ("chain = ['']", &["empty chain"]),
        ("chain = ['file-system', 5]", &["is not an array of providers"]),
        ("chain = [['full-db']]", &["is not an array of providers"]),
        ("chain = ['file-system,full-db']", &["is not an array of providers"]),
        ("chain = ['ful-db']", &["\"full-db\""]),
        ("chain = {a = 1}", &["chain: ", "is not an array"]),
        ("[[chain]]\na = 1", &["chain: ", "is not an array"]),
        ("[word]\na = 1", &["word: ", "is not a text"]),
        ("[[word]]\na = 1", &["word: ", "is not a text"]),
        ("cache = 5", &["\"cache\" is a section: write [cache]"]),
        ("[[cache]]\nsize = 5", &["\"cache\" is a section"]),
        ("[cache.size]\nsize = 5", &["cache.size: "]),
        ("[cach]\nsize = 5", &["unknown section [cach]", "\"cache\""]),
        ("[cache.deep]\nsize = 5", &["unknown section [cache.deep]"]),
        ("word = 1\nword = 2", &["line 2", "duplicate key"]),
        ("'cache.size' = 5", &["one name, without dots"]),
        ("'sharding.shard[0].dir' = 'x'", &["one name, without dots"]),
        ("'\u{1b}[2J' = 5", &["line 1"]),
        ("\"\\u001b\\n\" = 5", &["unknown key \"\\u{1b}\\n\""]),
        ("\u{feff}\u{feff}word = 1", &["line 1"]),
        ("word", &["line 1"]),
    ] {
        refused(text, parts);
    }
}

#[test]
fn no_message_shows_a_secret() {
    for text in [
        "cache.password = 5550123",
        "cache.password = 5550123.5",
        "cache.password = ['5550123']",
        "cache.password = {x = '5550123'}",
        "cache.password = '5550123${'",
        "cache.password = '5550123\n",
        "cache.password = \"5550123\\q\"",
        "cache.password = \"5550123\" 5550123",
        "cache.password = 5550123x",
        "cache.password = '1'\ncache.password = '5550123'",
    ] {
        let why = parse_odd(text).unwrap_err().join("\n");
        assert!(!why.contains("5550123") && (why.contains("password") || why.contains("line ")), "{why}");
    }
}

#[test]
fn lists_of_tables_are_numbered() {
    let text =
        "[sharding]\ncopies = 2\n[[sharding.shard]]\ndir = 'a'\nzone = 'z'\n[[sharding.shard]]\ndir = 'b'\n";
    let values = parse_odd(text).unwrap();
    assert_eq!(values.tables("sharding.shard"), [0, 1].into());
    assert_eq!(values.get("sharding.shard[1].dir"), Some("b"));
    assert_eq!(
        parse_odd("sharding.shard = [{dir = 'a', zone = 'z'}, {dir = 'b'}]\nsharding.copies = 2"),
        Ok(values.clone())
    );
    let rendered = render(ODD, &values);
    assert_eq!(rendered.matches("\n[[sharding.shard]]\n").count(), 2, "{rendered}");
    assert_eq!(parse_odd(&rendered), Ok(values));
    assert!(
        render(ODD, &Values::new()).contains("\n# [[sharding.shard]]\n# It is explained.\n# dir = ...\n")
    );
    for (text, parts) in [
        ("[[sharding.shard]]\ndri = 'a'", &["\"sharding.shard[0].dri\"", "\"sharding.shard[0].dir\""][..]),
        ("[[sharding.shrad]]\ndir = 'a'", &["\"sharding.shrad\""]),
        ("[[sharding.shard]]\ndir = 5", &["sharding.shard[0].dir: 5 is not a path"]),
        (
            "[[sharding.shard]]\n[[sharding.shard]]\ndir = 'a'",
            &["\"sharding.shard[0]\" is a table without keys"],
        ),
        ("[sharding.shard]\ndir = 'a'", &["write [[sharding.shard]]"]),
        ("sharding.shard = 5", &["write [[sharding.shard]]"]),
        ("sharding.shard = [5]", &["write [[sharding.shard]]"]),
        ("sharding.shard = [[{dir = 'a'}]]", &["write [[sharding.shard]]"]),
        (
            "[[sharding.shard]]\ndir = 'a'\n[sharding.shard.x]\ny = 1",
            &["unknown section [sharding.shard[0].x]"],
        ),
        ("[[sharding.shard]]\n[sharding.shard.dir]\ny = 1", &["sharding.shard[0].dir: "]),
    ] {
        refused(text, parts);
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let (values, problems) = read(
        ODD,
        "word = 1\nodd = 2\n[cache]\nsize = 'x'\nage = '5s'\n[[sharding.shard]]\ndir = 1\nzone = 2",
    )
    .unwrap();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["cache.size", "odd", "sharding.shard[0].dir", "sharding.shard[0].zone", "word"]);
    assert_eq!(values, Values::from([("cache.age", "5s".to_owned())]));
}

#[test]
fn what_is_missing_is_named() {
    let chosen = |providers: &[&'static str]| Chosen { template: None, providers: providers.to_vec() };
    let missing = |keys, providers: &[&'static str], values: &Values| -> Vec<String> {
        missing(keys, &chosen(providers), values).into_iter().map(|problem| problem.key).collect()
    };
    assert_eq!(missing(DEPOT, &["file-system"], &Values::new()), ["id"]);
    let mut values = Values::new();
    assert_eq!(missing(ODD, &[], &values), ["cache.password"]);
    for name in ["sharding.shard[0].dir", "sharding.shard[2].zone", "sharding.shard[7].dir", "cache.password"]
    {
        values.insert(name, "x".into());
    }
    assert_eq!(missing(ODD, &["sharding"], &values), ["sharding.shard[2].dir", "sharding.shard[1]"]);
    const LEAF: &[Key] = &[row("full-db.bucket", Kind::Text, None)];
    assert_eq!(missing(LEAF, &["full-db"], &values), ["full-db.bucket"]);
    assert!(missing(LEAF, &["file-system"], &values).is_empty());
}

#[test]
fn odd_files_are_read_or_refused() {
    for text in
        ["\u{feff}", "#", "\r\n", "\0", &"[".repeat(100_000), &"a.".repeat(50_000), &"[[a]]\n".repeat(10_000)]
    {
        let _ = read(ODD, text);
    }
    assert!(read(ODD, &format!("a = {}", "[".repeat(100_000))).is_err());
    let long =
        format!("word = 1\n\"{0}\" = 5\n[\"{0}\\n\"]\nx = 1\n[cache]\nsize = '{0}'", "x".repeat(100_000));
    let told = parse_odd(&long).unwrap_err();
    assert!(told.len() == 4 && told.iter().all(|why| why.len() < 400), "{told:?}");
}

#[test]
fn modes_may_be_numbers() {
    let values = parse("[file-system]\nblob-mode = 0o440").unwrap();
    assert_eq!(values.get("file-system.blob-mode"), Some("0440"));
}

#[test]
fn assignments_are_checked() {
    let good = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
    assert_eq!(assignment(DEPOT, "log.level = debug"), good("log.level", "debug"));
    assert_eq!(assignment(DEPOT, "index=/a=b"), good("index", "/a=b"));
    assert_eq!(assignment(DEPOT, "chain= full-db "), good("chain", "full-db"));
    assert_eq!(assignment(ODD, "sharding.shard[3].dir=a"), good("sharding.shard[3].dir", "a"));
    assert_eq!(assignment(ODD, "cache.password=${X}"), good("cache.password", "${X}"));
    assert_eq!(assignment(ODD, "cache.workers=08"), good("cache.workers", "8"));
    assert!(assignment(ODD, "sharding.shard[].dir=a").unwrap_err().contains("\"sharding.shard[0].dir\""));
    for (bad, part) in [
        ("index", "key=value"),
        ("indx=/a", "\"index\""),
        ("id=1", "init makes it"),
        ("atime=x", "atime"),
        ("chain=", "empty chain"),
        ("chain=file-system,full-db", "put it last"),
        ("=", "unknown key"),
    ] {
        assert!(assignment(DEPOT, bad).unwrap_err().contains(part), "{bad}");
    }
}

/// Values of every type, those among them that fit some key.
fn value() -> impl Strategy<Value = String> {
    let words = [
        "00112233445566778899aabbccddeeff",
        "file-system",
        "close",
        "noatime",
        "info",
        "info,depotfs=debug",
        "0444",
        "root:root",
        ":0",
        "4294967296:1",
        "a=b=c",
        "[{x=\\\"(\\\"}]=debug",
        "\\u0000",
        "",
    ];
    let others = ["0o440", "0x1ff", "true", "[1, 2]", "{a = 1}", "1979-05-27", "'x'", "inf", "nan", "[["];
    prop_oneof![
        4 => proptest::sample::select(words.to_vec()).prop_map(|text| format!("\"{text}\"")),
        1 => any::<i64>().prop_map(|n| n.to_string()),
        1 => any::<f64>().prop_map(|n| n.to_string()),
        1 => proptest::sample::select(others.to_vec()).prop_map(str::to_owned),
        2 => "[^\"\\\\\\p{Cc}]{0,20}".prop_map(|text| format!("\"{text}\"")),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
        for keys in [DEPOT, ODD] {
            let _ = read(keys, &text);
            let _ = assignment(keys, &text);
        }
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_named(
        lines in proptest::collection::vec((0..DEPOT.len(), value()), 1..5),
    ) {
        let mut text = String::new();
        for (row, value) in &lines {
            text.push_str(&format!("{} = {value}\n", DEPOT[*row].name));
        }
        match parse(&text) {
            Ok(values) => {
                for (name, value) in values.iter() {
                    prop_assert_eq!(keys::find(DEPOT, name).unwrap().kind.check(value), Ok(()));
                }
                prop_assert_eq!(parse(&render(DEPOT, &values)).unwrap(), values);
            }
            Err(why) => prop_assert!(!why.is_empty() && why.iter().all(|text| !text.is_empty())),
        }
        for (row, value) in &lines {
            for value in [value.as_str(), value.trim_matches(['"', '\''])] {
                let _ = DEPOT[*row].kind.check(value);
                let _ = assignment(DEPOT, &format!("{}={value}", DEPOT[*row].name));
            }
        }
    }

    #[test]
    fn every_value_survives_writing(dir in "[^\0]{1,40}") {
        let values = Values::from([("id", "00112233445566778899aabbccddeeff".to_owned()), ("index", dir)]);
        prop_assert_eq!(parse(&render(DEPOT, &values)).unwrap(), values);
    }

    #[test]
    fn every_kind_and_list_survives_writing(
        word in "\\PC{0,20}", size: u64, age: u64, workers in 1u64..=64, fair: bool, password in "(?s).{0,20}",
        dirs in proptest::collection::vec("[^\0]{1,20}", 0..12),
    ) {
        let written = |text: &str| text.replace("${", "$${");
        let mut values = Values::from([
            ("word", written(&word)),
            ("cache.size", size.to_string()),
            ("cache.age", format!("{age}ms")),
            ("cache.workers", workers.to_string()),
            ("cache.fair", fair.to_string()),
            ("cache.password", written(&password)),
        ]);
        for (i, dir) in dirs.into_iter().enumerate() {
            values.insert(format!("sharding.shard[{i}].dir"), dir);
        }
        let read = parse_odd(&render(ODD, &values)).unwrap();
        prop_assert_eq!(parse_size(read.get("cache.size").unwrap()), Ok(size));
        prop_assert_eq!(parse_duration(read.get("cache.age").unwrap()), Ok(Duration::from_millis(age)));
        prop_assert_eq!(read, values);
    }

    #[test]
    fn any_value_of_an_odd_key_is_taken_or_named(
        lines in proptest::collection::vec((0..ODD.len(), value()), 1..5),
    ) {
        let text: String =
            lines.iter().map(|(row, value)| format!("{} = {value}\n", ODD[*row].name.replace("[]", ""))).collect();
        if let Ok(values) = parse_odd(&text) {
            prop_assert_eq!(parse_odd(&render(ODD, &values)).unwrap(), values);
        }
    }
}
