//! `depot.toml` as text: reading it into checked values, and writing the one that `init` makes.
//!
//! The tables of a list, `[[sharding.shard]]`, are told apart by their numbers: `sharding.shard[0].dir`.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::keys::{self, Key, Kind, brief};
use super::nearest::suggestion;
use super::{Chosen, Problem, Values};

/// Reads the text of a depot.toml: the values that are good, and what is wrong with the others. What is not TOML at all is
/// the one problem of the error.
pub fn read(keys: &'static [Key], text: &str) -> Result<(Values, Vec<Problem>), Problem> {
    let table: Table = text.parse().map_err(|error| Problem::new("", syntax(text, &error)))?;
    let mut reader = Reader { keys, values: Values::new(), problems: Vec::new() };
    reader.collect("", &table);
    Ok((reader.values, reader.problems))
}

/// What is wrong and where. The line itself is not shown, as a secret may stand in it.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column} is not TOML: {}", error.message().trim())
}

/// The keys without which nothing can be done and that are not there, and the tables that are left out between others.
pub fn missing(keys: &'static [Key], chosen: &Chosen, values: &Values) -> Vec<Problem> {
    let mut problems = Vec::new();
    for key in keys.iter().filter(|key| chosen.uses(key.section())) {
        let names = match key.table().strip_suffix("[]") {
            Some(list) => {
                values.tables(list).iter().map(|i| key.name.replace("[]", &format!("[{i}]"))).collect()
            }
            None => vec![key.name.to_owned()],
        };
        let missing = names.into_iter().filter(|name| key.default.is_none() && !values.contains_key(name));
        problems.extend(missing.map(|name| {
            let text = format!("\"{name}\" is missing: {}", key.doc);
            Problem::new(name, text)
        }));
    }
    problems.extend(lists(keys).filter_map(|list| {
        let gap = (0..).zip(values.tables(list)).find(|(i, there)| i != there)?.0;
        let text = format!("\"{list}[{gap}]\" is missing: number the tables from 0 on and leave none out");
        Some(Problem::new(format!("{list}[{gap}]"), text))
    }));
    problems
}

/// The names of the lists of tables, without the brackets.
fn lists(keys: &'static [Key]) -> impl Iterator<Item = &'static str> {
    keys.chunk_by(|a, b| a.table() == b.table()).filter_map(|rows| rows[0].table().strip_suffix("[]"))
}

/// Checks one `key=value` as `init --set` takes it.
pub fn assignment(keys: &'static [Key], text: &str) -> Result<(String, String), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("\"{}\" is not of the form key=value", brief(text)));
    };
    let name = name.trim();
    let key = keys::find(keys, name)?;
    if key.kind == Kind::Id {
        return Err(format!("\"{name}\" cannot be chosen: init makes it"));
    }
    let value = key.kind.normal(value.trim()).map_err(|why| format!("{name}: {why}"))?;
    Ok((name.to_owned(), value))
}

/// The text of a depot.toml with these values, the remaining keys as comments with their defaults.
pub fn render(keys: &'static [Key], values: &Values) -> String {
    let mut text =
        String::from("# Configuration of a depotfs depot. Relative paths start at this directory.\n");
    for rows in keys.chunk_by(|a, b| a.table() == b.table()) {
        let table = rows[0].table();
        if let Some(list) = table.strip_suffix("[]") {
            render_list(&mut text, list, rows, values);
            continue;
        }
        if !table.is_empty() {
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, "\n[{table}]\n");
        }
        for key in rows {
            let _ = write!(text, "\n# {}\n", key.doc);
            render_key(&mut text, key, values.get(key.name));
        }
    }
    text
}

/// The tables of a list with their values; a commented one where there are none.
fn render_list(text: &mut String, list: &str, rows: &[Key], values: &Values) {
    let tables = values.tables(list);
    if tables.is_empty() {
        let _ = write!(text, "\n# [[{list}]]\n");
    }
    for key in rows.iter().filter(|_| tables.is_empty()) {
        let _ = writeln!(text, "# {}", key.doc);
        render_key(text, key, None);
    }
    for table in tables {
        let _ = write!(text, "\n[[{list}]]\n");
        for key in rows {
            let _ = writeln!(text, "# {}", key.doc);
            render_key(text, key, values.get(&format!("{list}[{table}].{}", key.own_name())));
        }
    }
}

fn render_key(text: &mut String, key: &Key, value: Option<&str>) {
    let name = key.own_name();
    let _ = match value {
        Some(value) => writeln!(text, "{name} = {}", toml_of(key.kind, value)),
        None => writeln!(text, "# {name} = {}", key.default.map_or("...".into(), |d| toml_of(key.kind, d))),
    };
}

fn toml_of(kind: Kind, value: &str) -> String {
    match kind {
        Kind::Count { .. } | Kind::Flag => value.into(),
        Kind::Chain => Value::Array(super::chain::names(value).map(Value::from).collect()).to_string(),
        _ => Value::from(value).to_string(),
    }
}

/// Walks the tables of the file, turning nested names into dotted ones.
struct Reader {
    keys: &'static [Key],
    values: Values,
    problems: Vec<Problem>,
}

/// What a name in the file leads to.
enum Place {
    /// A value.
    Key(&'static Key),
    /// A table with keys.
    Section,
    /// Several tables with keys.
    List,
}

impl Reader {
    fn collect(&mut self, prefix: &str, table: &Table) {
        for (own, value) in table {
            let name = if prefix.is_empty() { own.clone() } else { format!("{prefix}.{own}") };
            if own.contains(['.', '[', ']']) {
                let text = format!(
                    "unknown key \"{}\": what stands in quotes is one name, without dots",
                    brief(&name)
                );
                self.problem(&name, text);
                continue;
            }
            match (self.place(&name), value) {
                (Some(Place::Key(key)), value) => self.take(key, &name, value),
                (Some(Place::Section), Value::Table(inner)) => self.collect(&name, inner),
                (Some(Place::Section), _) => {
                    self.problem(
                        &name,
                        format!("\"{name}\" is a section: write [{name}] and its keys below it"),
                    );
                }
                (Some(Place::List), Value::Array(tables)) => self.collect_list(&name, tables),
                (Some(Place::List), _) => self.no_list(&name),
                (None, Value::Table(_)) => self.unknown_section(&name),
                (None, _) => {
                    let text = keys::find(self.keys, &name).err().unwrap_or_default();
                    self.problem(&name, text);
                }
            }
        }
    }

    fn collect_list(&mut self, list: &str, tables: &[Value]) {
        for (i, table) in tables.iter().enumerate() {
            let name = format!("{list}[{i}]");
            match table {
                Value::Table(table) if table.is_empty() => {
                    self.problem(
                        &name,
                        format!("\"{name}\" is a table without keys: give it some, or take it out"),
                    );
                }
                Value::Table(table) => self.collect(&name, table),
                _ => return self.no_list(list),
            }
        }
    }

    fn take(&mut self, key: &'static Key, name: &str, value: &Value) {
        let text = text_of(key.kind, value).ok_or_else(|| {
            // No value that may be a secret is shown.
            let shown = match key.kind {
                Kind::Secret => format!("this {}", value.type_str()),
                _ => brief(&value.to_string()),
            };
            format!("{shown} is not {}", key.kind.wanted())
        });
        match text.and_then(|text| key.kind.normal(&text)) {
            Ok(text) => self.values.insert(name, text),
            Err(why) => self.problem(name, format!("{name}: {why}")),
        }
    }

    fn place(&self, name: &str) -> Option<Place> {
        let name = keys::row_name(name);
        let below = |key: &Key| key.name.strip_prefix(&*name).and_then(|rest| rest.chars().next());
        let found = |key: &'static Key| match below(key) {
            None if key.name == name => Some(Place::Key(key)),
            Some('.') => Some(Place::Section),
            Some('[') => Some(Place::List),
            _ => None,
        };
        self.keys.iter().find_map(found)
    }

    fn no_list(&mut self, name: &str) {
        self.problem(
            name,
            format!("\"{name}\" is a list of tables: write [[{name}]] above the keys of each"),
        );
    }

    /// A section that no key lives in, with the nearest one.
    fn unknown_section(&mut self, name: &str) {
        let sections =
            self.keys.iter().map(|key| key.table().trim_end_matches("[]")).filter(|t| !t.is_empty());
        let text = format!("unknown section [{}]{}", brief(name), suggestion(name, sections));
        self.problem(name, text);
    }

    fn problem(&mut self, key: &str, text: String) {
        self.problems.push(Problem::new(key, text));
    }
}

/// The text of a value of a fitting TOML type: modes may also be numbers (`0o440`), and so on.
fn text_of(kind: Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::String(text)) => Some(text.clone()),
        (Kind::ReadOnlyMode, Value::Integer(mode)) => Some(format!("{:04o}", u32::try_from(*mode).ok()?)),
        (Kind::Size | Kind::Count { .. } | Kind::Duration, Value::Integer(number)) => {
            Some(number.to_string())
        }
        // As some tools write sizes, 5e+10.
        (Kind::Size, Value::Float(number)) if number.is_finite() => Some(format!("{number}")),
        (Kind::Flag, Value::Boolean(flag)) => Some(flag.to_string()),
        (Kind::Chain, Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().filter(|name| !name.contains(',')));
            Some(names.collect::<Option<Vec<_>>>()?.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::DEPOT;
    use super::*;
    use proptest::prelude::*;

    /// A key of every kind that has no example in depot.toml yet, and lists of tables.
    const ODD: &[Key] = &[
        row("word", Kind::Text, Some("")),
        row("cache.size", Kind::Size, Some("5GB")),
        row("cache.age", Kind::Duration, Some("1h30min")),
        row("cache.workers", Kind::Count { min: 1, max: 64 }, Some("8")),
        row("cache.fair", Kind::Flag, Some("false")),
        row("cache.password", Kind::Secret, None),
        row("sharding.copies", Kind::Count { min: 1, max: u64::MAX }, Some("1")),
        row("sharding.shard[].dir", Kind::Path, None),
        row("sharding.shard[].zone", Kind::Text, Some("")),
        row("chain", Kind::Chain, Some("file-system")),
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
            assert_eq!(super::super::parse_size(values.get("cache.size").unwrap()), Ok(5000), "{size}");
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
        let text = "[sharding]\ncopies = 2\n[[sharding.shard]]\ndir = 'a'\nzone = 'z'\n[[sharding.shard]]\ndir = 'b'\n";
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
            (
                "[[sharding.shard]]\ndri = 'a'",
                &["\"sharding.shard[0].dri\"", "\"sharding.shard[0].dir\""][..],
            ),
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
        for name in
            ["sharding.shard[0].dir", "sharding.shard[2].zone", "sharding.shard[7].dir", "cache.password"]
        {
            values.insert(name, "x".into());
        }
        assert_eq!(missing(ODD, &[], &values), ["sharding.shard[2].dir", "sharding.shard[1]"]);
        const LEAF: &[Key] = &[row("full-db.bucket", Kind::Text, None)];
        assert_eq!(missing(LEAF, &["full-db"], &values), ["full-db.bucket"]);
        assert!(missing(LEAF, &["file-system"], &values).is_empty());
    }

    #[test]
    fn odd_files_are_read_or_refused() {
        for text in [
            "\u{feff}",
            "#",
            "\r\n",
            "\0",
            &"[".repeat(100_000),
            &"a.".repeat(50_000),
            &"[[a]]\n".repeat(10_000),
        ] {
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
            word in "\\PC{0,20}", size: u64, workers in 1u64..=64, fair: bool, password in "(?s).{0,20}",
            dirs in proptest::collection::vec("[^\0]{1,20}", 0..12),
        ) {
            let written = |text: &str| text.replace("${", "$${");
            let mut values = Values::from([
                ("word", written(&word)),
                ("cache.size", size.to_string()),
                ("cache.workers", workers.to_string()),
                ("cache.fair", fair.to_string()),
                ("cache.password", written(&password)),
            ]);
            for (i, dir) in dirs.into_iter().enumerate() {
                values.insert(format!("sharding.shard[{i}].dir"), dir);
            }
            prop_assert_eq!(parse_odd(&render(ODD, &values)), Ok(values));
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
}
