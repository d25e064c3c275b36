//! `depot.toml` as text: reading it into checked values, and writing the one that `init` makes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use toml::{Table, Value};

use super::keys::{self, DEPOT, Kind};

/// Values by key, as text, each checked against its row of the table.
pub type Values = BTreeMap<&'static str, String>;

/// Reads the text of a depot.toml; the error says what is wrong, without the name of the file.
pub fn parse(text: &str) -> Result<Values, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut values = Values::new();
    collect("", &table, &mut values)?;
    match DEPOT.iter().find(|key| key.default.is_none() && !values.contains_key(key.name)) {
        Some(missing) => Err(format!("\"{}\" is missing: {}", missing.name, missing.doc)),
        None => Ok(values),
    }
}

/// Checks one `key=value` as `init --set` takes it.
pub fn assignment(text: &str) -> Result<(&'static str, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("\"{text}\" is not of the form key=value"))?;
    let key = keys::find(DEPOT, name.trim())?;
    if key.default.is_none() {
        return Err(format!("\"{}\" cannot be chosen: init makes it", key.name));
    }
    let value = value.trim();
    key.kind.check(value).map_err(|why| format!("{}: {why}", key.name))?;
    Ok((key.name, value.to_owned()))
}

/// The text of a depot.toml with these values, the remaining keys as comments with their defaults.
pub fn render(values: &Values) -> String {
    let mut text =
        String::from("# Configuration of a depotfs depot. Relative paths start at this directory.\n");
    let mut section = "";
    for key in DEPOT {
        let (its_section, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if its_section != section {
            section = its_section;
            // Writing to a String cannot fail, here and below.
            let _ = write!(text, "\n[{section}]\n");
        }
        let _ = write!(text, "\n# {}\n", key.doc);
        let _ = match values.get(key.name) {
            Some(value) => writeln!(text, "{name} = {}", Value::from(value.as_str())),
            None => writeln!(text, "# {name} = {}", Value::from(key.default.unwrap_or_default())),
        };
    }
    text
}

/// Walks the tables of the file, turning nested names into dotted ones.
fn collect(prefix: &str, table: &Table, values: &mut Values) -> Result<(), String> {
    for (name, value) in table {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Value::Table(inner) = value {
            known_section(&name)?;
            collect(&name, inner, values)?;
            continue;
        }
        let key = keys::find(DEPOT, &name)?;
        let value = text_of(key.kind, value)
            .ok_or_else(|| format!("{name}: {value} is not {}", key.kind.wanted()))?;
        key.kind.check(&value).map_err(|why| format!("{name}: {why}"))?;
        values.insert(key.name, value);
    }
    Ok(())
}

/// Refuses a section that no key lives in, naming the nearest one.
fn known_section(name: &str) -> Result<(), String> {
    let sections = || DEPOT.iter().filter_map(|key| Some(key.name.rsplit_once('.')?.0));
    if sections().any(|section| section == name) {
        return Ok(());
    }
    Err(format!("unknown section [{name}]{}", super::nearest::suggestion(name, sections())))
}

/// The text of a value of a fitting TOML type: modes may also be numbers (`0o440`).
fn text_of(kind: Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::String(text)) => Some(text.clone()),
        (Kind::ReadOnlyMode, Value::Integer(mode)) => Some(format!("{:04o}", u32::try_from(*mode).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "id = \"00112233445566778899aabbccddeeff\"\n";

    #[test]
    fn what_is_rendered_is_what_is_parsed() {
        let mut values = Values::from([("id", "00112233445566778899aabbccddeeff".to_owned())]);
        values.insert("file-system.dir", "/a \"b\" \\ c".into());
        values.insert("log.level", "debug".into());
        let text = render(&values);
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
            let why = parse(&format!("{ID}{text}")).unwrap_err();
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
            let why = parse(&format!("{ID}{text}")).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        assert!(parse("").unwrap_err().contains("\"id\" is missing"));
        assert!(parse("id = ").unwrap_err().contains("line 1"));
    }

    #[test]
    fn modes_may_be_numbers() {
        let values = parse(&format!("{ID}[file-system]\nblob-mode = 0o440")).unwrap();
        assert_eq!(values["file-system.blob-mode"], "0440");
    }

    #[test]
    fn assignments_are_checked() {
        assert_eq!(assignment("log.level = debug"), Ok(("log.level", "debug".into())));
        assert_eq!(assignment("index=/a=b"), Ok(("index", "/a=b".into())));
        for (bad, part) in [
            ("index", "key=value"),
            ("indx=/a", "\"index\""),
            ("id=1", "init makes it"),
            ("atime=x", "atime"),
        ] {
            assert!(assignment(bad).unwrap_err().contains(part), "{bad}");
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
            let _ = parse(&text);
            let _ = assignment(&text);
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
                    for (name, value) in &values {
                        prop_assert_eq!(keys::find(DEPOT, name).unwrap().kind.check(value), Ok(()));
                    }
                    prop_assert_eq!(parse(&render(&values)).unwrap(), values);
                }
                Err(why) => prop_assert!(!why.is_empty()),
            }
            for (row, value) in &lines {
                for value in [value.as_str(), value.trim_matches(['"', '\''])] {
                    let _ = DEPOT[*row].kind.check(value);
                    let _ = assignment(&format!("{}={value}", DEPOT[*row].name));
                }
            }
        }

        #[test]
        fn every_value_survives_writing(dir in "[^\0]{1,40}") {
            let values = Values::from([("id", "00112233445566778899aabbccddeeff".to_owned()), ("index", dir)]);
            prop_assert_eq!(parse(&render(&values)).unwrap(), values);
        }
    }
}
