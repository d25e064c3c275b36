//! Amounts as people write them: bytes such as `5GB`, times such as `1h30min`.
//!
//! An error is the rest of a sentence that begins with the text.

use std::time::Duration;

/// What a size must be, as the end of "is not ...".
pub(super) const SIZE: &str = "a size such as \"5GB\", \"5GiB\" or \"5000000000\"";
/// What a duration must be.
pub(super) const DURATION: &str =
    "a duration such as \"15s\", \"500ms\", \"2min\", \"10h\", \"1d\" or \"1h30min\"";

/// Units of sizes, and their bytes.
const SIZES: [(&str, u64); 12] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

/// Units of durations, largest first, and their milliseconds.
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes from `5GB` (decimal), `5GiB` (binary), `5000000000` or `5e+10`; upper and lower case are the same.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if text.starts_with('-') {
        return Err("is negative, and a size cannot be".into());
    }
    let Some((mantissa, power, unit)) = number_and_unit(text) else { return Err(format!("is not {SIZE}")) };
    let overflow = || format!("is more than the {} bytes that can be counted", u64::MAX);
    let mantissa = mantissa.parse::<u128>().ok().and_then(|n| n.checked_mul(unit.into()));
    let mantissa = mantissa.ok_or_else(overflow)?;
    if mantissa == 0 {
        return Ok(0);
    }
    let ten_to_the = 10u128.checked_pow(power.unsigned_abs());
    let bytes = match ten_to_the {
        Some(factor) if power >= 0 => mantissa.checked_mul(factor),
        None if power >= 0 => None,
        Some(divisor) if mantissa.is_multiple_of(divisor) => Some(mantissa / divisor),
        _ => return Err("is not a whole number of bytes".into()),
    };
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(overflow)
}

/// The digits of a decimal number, the power of ten that they are multiplied with, and the bytes of the unit behind it.
fn number_and_unit(text: &str) -> Option<(String, i32, u64)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.').map(digits) {
        Some(("", _)) => return None,
        Some(found) => found,
        None => ("", rest),
    };
    let (exponent, rest) = match rest.strip_prefix(['e', 'E']) {
        Some(rest) => exponent(rest)?,
        None => (0, rest),
    };
    let unit = rest.trim_start();
    let (_, unit) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let power = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    (!whole.is_empty()).then(|| (format!("{whole}{fraction}"), power, *unit))
}

/// The number behind an `e`, and what follows it.
fn exponent(text: &str) -> Option<(i32, &str)> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, rest) = digits(text);
    Some((sign * number.parse::<i32>().ok()?, rest))
}

/// Time from numbers with units, the larger unit first: `15s`, `500ms`, `2min`, `10h`, `1d`, `1h30min`.
///
/// At most 2^64 milliseconds, which can be added to any time of this age.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("is not {DURATION}");
    let (mut rest, mut milliseconds, mut units) = (text.trim(), 0u64, DURATIONS.iter());
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let (number, after) = digits(rest);
        let after = after.trim_start();
        let (word, after) =
            after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        if number.is_empty() {
            return Err(wrong());
        }
        if word.is_empty() && after.is_empty() {
            return Err("ends without a unit: add d, h, min, s or ms".into());
        }
        // Going on from the last unit refuses a smaller one before a larger one, and one that comes twice.
        let (_, unit) = units.find(|(unit, _)| *unit == word).ok_or_else(wrong)?;
        let sum = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*unit)?.checked_add(milliseconds));
        milliseconds = sum.ok_or_else(|| "is longer than can be counted".to_owned())?;
        rest = after.trim_start();
    }
    Ok(Duration::from_millis(milliseconds))
}

/// The digits that a text begins with, and the rest.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_decimal_or_binary() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("5GiB", 5 << 30),
            ("5 gib", 5 << 30),
            ("5000000000", 5_000_000_000),
            ("5e+10", 50_000_000_000),
            ("5E10", 50_000_000_000),
            ("1.5TB", 1_500_000_000_000),
            ("1.5KiB", 1536),
            ("1500e-3KB", 1500),
            ("0", 0),
            ("0e999999999", 0),
            ("007B", 7),
            ("18446744073709551615", u64::MAX),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn other_sizes_are_refused_with_the_reason() {
        for (texts, why) in [
            (
                &["", " ", "GB", "5.GB", ".5GB", "5XB", "5GB5", "5e", "5eGB", "0x10", "1_000", "+5", "5 5"][..],
                "such as",
            ),
            (&["١GB", "5ＧB", "NaN", "inf", "5e99999999999", "5,5GB", "5\u{a0}\0"][..], "such as"),
            (&["-5", "-5GB", "-0"][..], "negative"),
            (
                &[
                    "18446744073709551616",
                    "16384PiB",
                    "1e20",
                    "9e2147483647",
                    "99999999999999999999999999999999999999999GB",
                ],
                "more than",
            ),
            (&["1.5", "0.1KiB", "5e-1", "1e-999999999", "5e-2147483647"], "whole number"),
        ] {
            for text in texts {
                let told = parse_size(text).unwrap_err();
                assert!(told.contains(why), "{text}: {told}");
            }
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, ms) in [
            ("15s", 15_000),
            ("500ms", 500),
            ("2min", 120_000),
            ("10h", 36_000_000),
            ("1d", 86_400_000),
            ("1h30min", 5_400_000),
            ("1h 30 min", 5_400_000),
            ("90min", 5_400_000),
            ("0s", 0),
            ("18446744073709551615ms", u64::MAX),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn other_durations_are_refused_with_the_reason() {
        for (texts, why) in [
            (
                &[
                    "", " ", "s", "-5s", "1.5h", "5m", "5S", "1s1s", "1s1h", "1h30xmin", "5µs", "٥s",
                    "1h,30min",
                ][..],
                "such as",
            ),
            (&["15", "0", "1h30", "99999999999999999999999"][..], "unit"),
            (&["18446744073709551616ms", "18446744073709551615s", "1d18446744073709551615ms"][..], "longer"),
        ] {
            for text in texts {
                let told = parse_duration(text).unwrap_err();
                assert!(told.contains(why), "{text}: {told}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_size_is_read_as_it_was_written(n: u64, (unit, bytes) in proptest::sample::select(SIZES.to_vec())) {
            prop_assert_eq!(parse_size(&n.to_string()), Ok(n));
            let text = format!("{n}{unit}");
            match n.checked_mul(bytes) {
                Some(whole) => prop_assert_eq!(parse_size(&text), Ok(whole)),
                None => prop_assert!(parse_size(&text).is_err()),
            }
            prop_assert_eq!(parse_size(&format!("{}{unit}", n / bytes)), Ok(n / bytes * bytes));
        }

        #[test]
        fn every_duration_is_read_as_it_was_written(ms: u64) {
            let (mut rest, mut text) = (ms, String::new());
            for (unit, size) in DURATIONS {
                if rest >= size {
                    text.push_str(&format!("{}{unit}", rest / size));
                    rest %= size;
                }
            }
            let text = if text.is_empty() { "0s".to_owned() } else { text };
            prop_assert_eq!(parse_duration(&text), Ok(Duration::from_millis(ms)), "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+.0-9eEkMGiBdhmins \\PC]{0,30}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
