//! Values of a binarystore.xml as depot.toml has them.

use toml::Value;

use super::table::As;
use crate::config::keys::{brief, parse_flag};
use crate::config::{environment, parse_size};

/// A value as it is kept, and as it is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub plain: String,
    pub toml: String,
}

/// Sizes that are written with a unit.
const SIZES: [(&str, u64); 7] = [
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];
const TIMES: [(&str, u64); 3] = [("h", 3_600_000), ("min", 60_000), ("s", 1000)];

impl As {
    /// Reads a value; the error says what is wrong with it, and nothing of a secret.
    pub(super) fn read(self, value: &str) -> Result<Written, String> {
        Ok(match self {
            As::Text | As::Secret => {
                environment::check(value)?;
                text(value)
            }
            As::Size => text(&with_unit(whole(value)?, &SIZES, "")),
            As::Milliseconds => text(&with_unit(whole(value)?, &TIMES, "ms")),
            As::Count => bare(whole(value)?.to_string()),
            As::Flag => {
                let flag = parse_flag(&value.to_ascii_lowercase());
                bare(flag.ok_or_else(|| wrong(value, "true or false"))?.to_string())
            }
            As::Words(words) => {
                let found = words.iter().find(|(there, _)| there.eq_ignore_ascii_case(value));
                let known: Vec<&str> = words.iter().map(|(there, _)| *there).collect();
                text(found.ok_or_else(|| wrong(value, &format!("one of {}", known.join(", "))))?.1)
            }
        })
    }
}

/// A text in quotes.
pub(super) fn text(value: &str) -> Written {
    Written { plain: value.to_owned(), toml: Value::from(value).to_string() }
}

fn bare(value: String) -> Written {
    Written { toml: value.clone(), plain: value }
}

/// A whole number, which may be written as 5e+10.
fn whole(value: &str) -> Result<u64, String> {
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number = if plain { parse_size(value).ok() } else { None };
    number.ok_or_else(|| wrong(value, "a whole number"))
}

fn wrong(value: &str, wanted: &str) -> String {
    format!("\"{}\" is not {wanted}", brief(value))
}

/// The number in the largest unit of which it is a multiple.
fn with_unit(number: u64, units: &[(&str, u64)], smallest: &str) -> String {
    match units.iter().find(|(_, unit)| number > 0 && number.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", number / unit),
        None => format!("{number}{smallest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_duration;
    use proptest::prelude::*;

    #[test]
    fn amounts_get_units() {
        let read = |kind: As, value: &str| kind.read(value).map(|written| written.toml);
        assert_eq!(read(As::Size, "5e+10").unwrap(), "\"50GB\"");
        assert_eq!(read(As::Size, "1073741824").unwrap(), "\"1GiB\"");
        assert_eq!(read(As::Size, "1001").unwrap(), "\"1001\"");
        assert_eq!(read(As::Milliseconds, "36000000").unwrap(), "\"10h\"");
        assert_eq!(read(As::Milliseconds, "1500").unwrap(), "\"1500ms\"");
        assert_eq!(read(As::Milliseconds, "0").unwrap(), "\"0ms\"");
        assert_eq!(read(As::Count, "2.0e0").unwrap(), "2");
        assert_eq!(read(As::Flag, "TRUE").unwrap(), "true");
        for (kind, value) in [(As::Count, "-1"), (As::Size, "5GB"), (As::Size, ""), (As::Milliseconds, "0.5")]
        {
            assert!(read(kind, value).unwrap_err().contains("not a whole number"), "{value}");
        }
        assert!(read(As::Flag, "yes").is_err() && read(As::Words(&[("a", "b")]), "c").is_err());
        assert!(!read(As::Secret, "hush${").unwrap_err().contains("hush"));
    }

    proptest! {
        #[test]
        fn units_change_no_amount(number: u64) {
            let size = As::Size.read(&number.to_string()).unwrap().plain;
            prop_assert_eq!(parse_size(&size).unwrap(), number);
            let time = As::Milliseconds.read(&number.to_string()).unwrap().plain;
            prop_assert_eq!(parse_duration(&time).unwrap().as_millis(), u128::from(number));
        }
    }
}
