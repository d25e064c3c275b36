//! What the value of a key may be: the check of one, and what it says.

use nix::unistd::{Group, User};

use super::keys::brief;
use super::{chain, environment, quantity};

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32 hex digits.
    Id,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path; a relative one starts at the depot.
    Path,
    /// Permission bits of a file nobody may write, in octal.
    ReadOnlyMode,
    /// `user`, `user:group`, `:group`, by name or number; empty: whoever runs the daemon.
    Owner,
    /// A level, or a filter expression such as `info,depotfs=debug`.
    LogFilter,
    /// Providers, outermost first, with commas between them; an array in TOML.
    Chain,
    /// Bytes, such as `5GB`: [`quantity::parse_size`](super::parse_size).
    Size,
    /// A time, such as `1h30min`: [`quantity::parse_duration`](super::parse_duration).
    Duration,
    /// A whole number.
    Count {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// Yes or no.
    Flag,
    /// Any text; `${NAME}` is an environment variable.
    Text,
    /// The same, and never shown.
    Secret,
}

impl Kind {
    /// Says what is wrong with `value`, if anything is.
    pub fn check(self, value: &str) -> Result<(), String> {
        let because = |why: String| format!("\"{}\" {why}", brief(value));
        let good = match self {
            Kind::Id => crate::checksum::unhex::<16>(value).is_some(),
            Kind::Choice(words) => words.contains(&value),
            Kind::Path => !value.is_empty() && !value.contains('\0'),
            Kind::ReadOnlyMode => parse_mode(value).is_some(),
            Kind::Owner => return parse_owner(value).map(|_| ()),
            Kind::LogFilter => return check_filter(value),
            Kind::Chain => return chain::parse(chain::PROVIDERS, value).map(|_| ()),
            Kind::Size => return quantity::parse_size(value).map(|_| ()).map_err(because),
            Kind::Duration => return quantity::parse_duration(value).map(|_| ()).map_err(because),
            Kind::Count { min, max } => parse_count(value).is_some_and(|n| (min..=max).contains(&n)),
            Kind::Flag => parse_flag(value).is_some(),
            Kind::Text | Kind::Secret => return environment::check(value),
        };
        if good { Ok(()) } else { Err(because(format!("is not {}", self.wanted()))) }
    }

    /// `value` as it is kept, which is one text for one meaning where depot.toml shows it as something else than a text.
    pub fn normal(self, value: &str) -> Result<String, String> {
        self.check(value)?;
        Ok(match self {
            Kind::Count { .. } => parse_count(value).unwrap_or_default().to_string(),
            Kind::Chain => chain::names(value).collect::<Vec<_>>().join(","),
            _ => value.into(),
        })
    }

    /// What a value must be, as the end of "is not ...".
    pub fn wanted(self) -> String {
        match self {
            Kind::Id => "a depot id (32 hex digits)".into(),
            Kind::Choice([only]) => format!("\"{only}\", the only choice"),
            Kind::Choice(words) => format!("one of \"{}\"", words.join("\", \"")),
            Kind::Path => "a path".into(),
            Kind::ReadOnlyMode => {
                "octal permission bits that let the owner read and nobody write or execute, such as 0400 or 0444".into()
            }
            Kind::Owner => "a \"user:group\"".into(),
            Kind::LogFilter => "a log level".into(),
            Kind::Chain => format!("an array of providers, of {}", chain::known(chain::PROVIDERS)),
            Kind::Size => quantity::SIZE.into(),
            Kind::Duration => quantity::DURATION.into(),
            Kind::Count { min, max: u64::MAX } => format!("a number from {min} on"),
            Kind::Count { min, max } => format!("a number from {min} to {max}"),
            Kind::Flag => "true or false".into(),
            Kind::Text => "a text".into(),
            Kind::Secret => "a text that is kept secret".into(),
        }
    }
}

/// A whole number.
pub fn parse_count(value: &str) -> Option<u64> {
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
}

/// `true` or `false`.
pub fn parse_flag(value: &str) -> Option<bool> {
    value.parse().ok()
}

/// Permission bits from octal digits (`0440`, `440`, `0o440`); `None` unless the owner may read and nobody may write.
pub(super) fn parse_mode(value: &str) -> Option<u32> {
    let digits = value.strip_prefix("0o").unwrap_or(value);
    let mode = u32::from_str_radix(digits, 8).ok()?;
    (mode & !0o444 == 0 && mode & 0o400 != 0).then_some(mode)
}

/// User and group from `user:group`, each by name or number, each absent when empty.
pub(super) fn parse_owner(value: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = value.split_once(':').unwrap_or((value, ""));
    let uid = match (user, user.parse::<u32>()) {
        ("", _) => None,
        (_, Ok(number)) => Some(number),
        (name, Err(_)) => {
            Some(known("user", name, User::from_name(name).map(|u| u.map(|u| u.uid)))?.as_raw())
        }
    };
    let gid = match (group, group.parse::<u32>()) {
        ("", _) => None,
        (_, Ok(number)) => Some(number),
        (name, Err(_)) => {
            Some(known("group", name, Group::from_name(name).map(|g| g.map(|g| g.gid)))?.as_raw())
        }
    };
    Ok((uid, gid))
}

/// The number behind a name in the user or group database.
fn known<T>(what: &str, name: &str, found: nix::Result<Option<T>>) -> Result<T, String> {
    match found {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(format!("there is no {what} \"{}\"", brief(name))),
        Err(error) => Err(format!("{what} \"{}\" could not be looked up: {error}", brief(name))),
    }
}

/// The part of the filter language that is used here; the crate's own parser fails hard on some texts beyond it.
fn check_filter(value: &str) -> Result<(), String> {
    let is_level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
    let is_target = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte))
    };
    let is_directive = |part: &str| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_target(part),
    };
    let filter = value.contains(['=', ',']) && value.split(',').all(is_directive);
    if is_level(value) || filter {
        return Ok(());
    }
    Err(format!(
        "\"{}\" is not one of error, warn, info, debug, trace, nor a filter such as \"info,depotfs=debug\"",
        brief(value)
    ))
}

#[cfg(test)]
mod tests;
