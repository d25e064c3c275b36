//! Texts for people: an error with its causes, a name without what a terminal or a log would act on.

use std::error::Error;
use std::fmt::Write as _;

/// An error and what is behind it: `what was attempted: why it failed: why that did`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// A name or path: what is not UTF-8 is replaced, and a control character is shown as its escape, so that nobody's name
/// begins a line of its own.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if !text.contains(char::is_control) {
        return text.into_owned();
    }
    text.chars().fold(String::new(), |mut shown, c| {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn every_cause_is_told_once() {
        let error = Layer("a", Some(Box::new(Layer("b", Some(Box::new(Layer("c", None)))))));
        assert_eq!(chain(&error), "a: b: c");
        assert_eq!(chain(&Layer("alone", None)), "alone");
    }

    #[test]
    fn a_name_is_one_line_and_moves_no_cursor() {
        assert_eq!(shown(b"libs/a b\\n.jar"), "libs/a b\\n.jar");
        assert_eq!(shown("größe".as_bytes()), "größe");
        assert_eq!(shown(b"a\nERROR b\x1b[2J\x7f"), "a\\nERROR b\\u{1b}[2J\\u{7f}");
        assert_eq!(shown(b"\xff\t"), "\u{fffd}\\t");
    }
}
