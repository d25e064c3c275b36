//! What the values of keys may be.

use super::*;

#[test]
fn counts_flags_and_texts() {
    let count = Kind::Count { min: 1, max: 64 };
    assert_eq!(count.normal("064"), Ok("64".into()));
    for bad in ["0", "65", "", "-1", "+1", "1.0", "x", "99999999999999999999", "１"] {
        let why = count.check(bad).unwrap_err();
        assert!(why.contains("a number from 1 to 64"), "{why}");
    }
    assert!(Kind::Count { min: 0, max: u64::MAX }.wanted().ends_with("from 0 on"));
    assert_eq!((parse_flag("true"), parse_flag("false")), (Some(true), Some(false)));
    for bad in ["", "True", "1", "yes"] {
        assert!(Kind::Flag.check(bad).unwrap_err().contains("true or false"));
    }
    for kind in [Kind::Text, Kind::Secret] {
        for good in ["", "any \u{1f980}", "${NAME}", "$${"] {
            assert_eq!(kind.check(good), Ok(()));
        }
        assert!(!kind.check("hush ${").unwrap_err().contains("hush"));
    }
    assert!(Kind::Size.check("5 GX").unwrap_err().starts_with("\"5 GX\" is not a size"));
    assert!(Kind::Duration.check("15").unwrap_err().contains("without a unit"));
}

#[test]
fn no_value_fills_the_screen() {
    let why = Kind::Path.check(&format!("\u{1b}{}\0", "ä".repeat(1 << 20))).unwrap_err();
    assert!(why.len() < 400 && why.contains("\\u{1b}"), "{why}");
}

#[test]
fn modes_let_nobody_write() {
    for (text, mode) in [("0400", Some(0o400)), ("444", Some(0o444)), ("0o440", Some(0o440))] {
        assert_eq!(parse_mode(text), mode, "{text}");
    }
    for bad in ["0600", "0500", "0044", "4400", "9", "", "rw", "-1"] {
        assert_eq!(parse_mode(bad), None, "{bad}");
    }
}

#[test]
fn owners_are_names_or_numbers() {
    assert_eq!(parse_owner(""), Ok((None, None)));
    assert_eq!(parse_owner("root"), Ok((Some(0), None)));
    assert_eq!(parse_owner("12:34"), Ok((Some(12), Some(34))));
    assert_eq!(parse_owner(":root"), Ok((None, Some(0))));
    assert!(parse_owner("no-such-user-here").unwrap_err().contains("no-such-user-here"));
}

#[test]
fn log_filters_are_levels_or_expressions() {
    for good in ["info", "trace", "info,depotfs=debug", "depotfs=trace", "depotfs::vfs=off,fuser=info"] {
        assert_eq!(Kind::LogFilter.check(good), Ok(()), "{good}");
        assert!(tracing_subscriber::EnvFilter::try_new(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "loud",
        "info,depotfs=loud",
        " a\u{a1}=",
        "=",
        ",",
        "a=b=c",
        "info,[{x=\"(\"}]=debug",
        "info, a=warn",
    ] {
        assert!(Kind::LogFilter.check(bad).is_err(), "{bad}");
    }
}
