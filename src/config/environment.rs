//! `${NAME}` in texts and secrets: the environment variable of that name, put in when the configuration is loaded.
//!
//! `$${` stands for the characters `${`. No message shows more of a text than the names of variables in it, as it may be a
//! secret.

use std::ffi::OsString;
use std::fmt;

use super::Problem;
use super::keys::{self, Key, Kind};
use super::values::Values;

/// Looks a variable up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variables of this process.
pub fn of_process(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A text that only [`Secret::expose`] tells.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret, its variables already put in.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// What nobody else may see.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Shown in place of a secret.
pub const HIDDEN: &str = "***";

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// These characters.
    Plain(&'a str),
    /// A variable.
    Variable(&'a str),
}

/// Says what is wrong with the `${` of a text, if anything is.
pub(super) fn check(text: &str) -> Result<(), String> {
    pieces(text).map(drop)
}

/// The variables that a text names, which `check` has passed.
pub(super) fn variables(text: &str) -> Vec<&str> {
    let name = |piece| match piece {
        Piece::Variable(name) => Some(name),
        Piece::Plain(_) => None,
    };
    pieces(text).unwrap_or_default().into_iter().filter_map(name).collect()
}

/// `text` with its variables put in.
pub(super) fn expand(text: &str, lookup: Lookup) -> Result<String, String> {
    let mut whole = String::new();
    for piece in pieces(text)? {
        match piece {
            Piece::Plain(text) => whole.push_str(text),
            Piece::Variable(name) => {
                let value =
                    lookup(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
                let value =
                    value.to_str().ok_or_else(|| format!("the environment variable {name} is not UTF-8"))?;
                whole.push_str(value);
            }
        }
    }
    Ok(whole)
}

/// `values` with the variables put in, and which could not be.
pub(super) fn resolve(table: &'static [Key], values: &Values, lookup: Lookup) -> (Values, Vec<Problem>) {
    let (mut resolved, mut problems) = (values.clone(), Vec::new());
    for (name, text) in values.iter().filter(|(name, _)| takes_variables(table, name)) {
        match expand(text, lookup) {
            Ok(text) => resolved.insert(name, text),
            Err(why) => problems.push(Problem::new(name, format!("{name}: {why}"))),
        }
    }
    (resolved, problems)
}

/// Whether `${NAME}` means something in the value of this key.
pub(super) fn takes_variables(table: &'static [Key], name: &str) -> bool {
    keys::find(table, name).is_ok_and(|key| matches!(key.kind, Kind::Text | Kind::Secret))
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            pieces.extend([Piece::Plain(before), Piece::Plain("${")]);
            rest = &rest[at + 2..];
            continue;
        }
        let name = rest[at + 2..].split_once('}').filter(|(name, _)| is_name(name));
        let (name, after) = name.ok_or(
            "it has a \"${\" without the name of an environment variable and a \"}\" behind it: write \"$${\" for these \
             characters themselves",
        )?;
        pieces.extend([Piece::Plain(&rest[..at]), Piece::Variable(name)]);
        rest = after;
    }
    pieces.push(Piece::Plain(rest));
    Ok(pieces)
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<OsString> {
        use std::os::unix::ffi::OsStringExt;
        match name {
            "KEY" => Some("open sesame".into()),
            "_x1" => Some("${KEY}".into()),
            "EMPTY" => Some("".into()),
            "BYTES" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }
    }

    #[test]
    fn variables_are_put_in_once() {
        for (text, whole) in [
            ("", ""),
            ("plain $5 {x} $$", "plain $5 {x} $$"),
            ("${KEY}", "open sesame"),
            ("<${KEY}${EMPTY}>", "<open sesame>"),
            ("${_x1}", "${KEY}"),
            ("$${KEY}", "${KEY}"),
            ("$$${KEY}", "$${KEY}"),
            ("$${${KEY}}", "${open sesame}"),
            ("$${", "${"),
        ] {
            assert_eq!(expand(text, &lookup), Ok(whole.into()), "{text}");
        }
        assert_eq!(variables("a${KEY}$${NO}${EMPTY}"), ["KEY", "EMPTY"]);
    }

    #[test]
    fn what_cannot_be_put_in_is_named_and_nothing_else_is() {
        assert!(expand("hush${GONE}", &lookup).unwrap_err().contains("GONE is not set"));
        assert!(expand("hush${BYTES}", &lookup).unwrap_err().contains("BYTES is not UTF-8"));
        for bad in ["${", "hush${}", "${hush", "${1a}", "${a b}", "${ä}", "${a${KEY}}"] {
            let why = check(bad).unwrap_err();
            assert!(why.contains("\"$${\"") && !why.contains("hush"), "{bad}: {why}");
        }
    }

    #[test]
    fn only_texts_and_secrets_have_variables() {
        const TABLE: &[Key] = &[
            Key { name: "text", kind: Kind::Text, default: None, doc: "." },
            Key { name: "list[].secret", kind: Kind::Secret, default: None, doc: "." },
            Key { name: "path", kind: Kind::Path, default: None, doc: "." },
        ];
        let values = Values::from([
            ("text", "${KEY}".to_owned()),
            ("path", "${KEY}".to_owned()),
            ("list[0].secret", "${GONE}".to_owned()),
            ("list[1].secret", "${KEY}".to_owned()),
        ]);
        let (resolved, problems) = resolve(TABLE, &values, &lookup);
        let of = |name: &str| resolved.get(name).unwrap();
        assert_eq!((of("text"), of("path"), of("list[1].secret")), ("open sesame", "${KEY}", "open sesame"));
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].key, "list[0].secret");
        assert!(problems[0].text.contains("list[0].secret") && problems[0].text.contains("GONE"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("open sesame");
        assert_eq!((format!("{secret:?}").as_str(), secret.expose()), (HIDDEN, "open sesame"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[${}A-Z\\PC]{0,20}") {
            let _ = expand(&text, &lookup);
            let _ = variables(&text);
        }

        #[test]
        fn every_text_can_be_written(text in "[${}A-Z\\PC]{0,20}") {
            // As the docs have it: each "${" that is meant as such is written "$${".
            prop_assert_eq!(expand(&text.replace("${", "$${"), &lookup), Ok(text));
        }
    }
}
