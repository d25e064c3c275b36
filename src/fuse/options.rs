//! What may stand after `-o`: a table of options and their effect on plain data.
//!
//! The names are those of mount(8) and of libfuse where they have the thing. Later ones win, as with mount(8). What a
//! kernel feature needs for being forced on or off is one row here and one field of [`Options`].

use crate::config::{Atime, Durability, suggestion};
use crate::sys::offers;

/// Whether something is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Switch {
    /// Always; the mount fails where it is impossible.
    On,
    /// Never.
    Off,
    /// Where it is possible.
    #[default]
    Auto,
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Refuse every change.
    pub read_only: bool,
    /// Let users other than the daemon's in; `None`: root does, an ordinary user does not.
    pub allow_other: Option<bool>,
    /// Ignore setuid and setgid bits.
    pub nosuid: bool,
    /// Ignore device nodes.
    pub nodev: bool,
    /// Refuse to run programs.
    pub noexec: bool,
    /// Follow no symbolic links.
    pub nosymfollow: bool,
    /// What write(2) wrote is durable when it returns, and changes of directories as with `dirsync`.
    pub sync: bool,
    /// Changes of directories are durable when they return.
    pub dirsync: bool,
    /// Access times; `None`: as depot.toml says.
    pub atime: Option<Atime>,
    /// `REPO[/PATH]`: the directory that becomes the root of the mount.
    pub subdir: Option<String>,
    /// What close(2) waits for at least; `None`: as depot and repository say.
    pub durability: Option<Durability>,
    /// Reads and writes that the kernel does on the stored file itself.
    pub passthrough: Switch,
    /// What is not to be used even where it is there.
    pub refused: Refused,
}

/// What newer kernels and better disks offer, and depotfs can do without; passthrough is a switch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Refused {
    /// Shared blocks, and copies that the kernel makes.
    pub kernel_copies: bool,
    /// Ids of mounts that are not given again.
    pub unique_mount_ids: bool,
    /// A descriptor of the kernel's device for each thread.
    pub clone_fd: bool,
}

impl Refused {
    /// Keeps this process from using them.
    pub fn apply(self) {
        let table = [
            (self.kernel_copies, &offers::KERNEL_COPIES),
            (self.unique_mount_ids, &offers::UNIQUE_MOUNT_IDS),
            (self.clone_fd, &offers::DEVICE_PER_THREAD),
        ];
        table.into_iter().filter(|(refused, _)| *refused).for_each(|(_, offer)| offer.refuse());
    }
}

/// One option that is understood.
struct Known {
    /// `name`, `name=` with a value, or `prefix-*`.
    name: &'static str,
    /// One line for the help; empty for those of mount(8) that need no word.
    doc: &'static str,
    /// Its effect; the argument is the value, empty where there is none.
    apply: fn(&mut Options, &str) -> Result<(), String>,
}

/// Shorthand for a row.
const fn row(
    name: &'static str,
    apply: fn(&mut Options, &str) -> Result<(), String>,
    doc: &'static str,
) -> Known {
    Known { name, doc, apply }
}

/// The table. Those without an effect are for mount(8), systemd or people.
#[rustfmt::skip]
const KNOWN: &[Known] = &[
    row("ro", |o, _| set(&mut o.read_only, true), "refuse every change"),
    row("rw", |o, _| set(&mut o.read_only, false), "allow changes (default)"),
    row("allow_other", |o, _| set(&mut o.allow_other, Some(true)), "let all users in (default for root)"),
    row("noallow_other", |o, _| set(&mut o.allow_other, Some(false)), "let only the mounting user in"),
    row("default_permissions", nothing, "the kernel checks permissions (always on)"),
    row("subdir=", subdir, "REPO[/PATH] becomes the root of the mount"),
    row("durability=", durability, "fsync|close|remote: what close(2) waits for at least"),
    row("passthrough=", |o, v| switch(&mut o.passthrough, v), "on|off|auto: the kernel reads and writes stored files itself"),
    row("reflink=", |o, v| refused(&mut o.refused.kernel_copies, v), "off|auto: shared blocks, and copies that the kernel makes"),
    row("mount_ids=", |o, v| refused(&mut o.refused.unique_mount_ids, v), "off|auto: ids of mounts that are never given again (Linux 6.8)"),
    row("clone_fd=", |o, v| refused(&mut o.refused.clone_fd, v), "off|auto: a descriptor of /dev/fuse for each thread"),
    row("noatime", |o, _| set(&mut o.atime, Some(Atime::Noatime)), "reading never moves access times"),
    row("relatime", |o, _| set(&mut o.atime, Some(Atime::Relatime)), "reading moves stale access times"),
    row("nosuid", |o, _| set(&mut o.nosuid, true), "ignore setuid and setgid bits"),
    row("suid", |o, _| set(&mut o.nosuid, false), ""),
    row("nodev", |o, _| set(&mut o.nodev, true), "ignore device nodes"),
    row("dev", |o, _| set(&mut o.nodev, false), ""),
    row("noexec", |o, _| set(&mut o.noexec, true), "refuse to run programs"),
    row("exec", |o, _| set(&mut o.noexec, false), ""),
    row("nosymfollow", |o, _| set(&mut o.nosymfollow, true), "follow no symbolic links"),
    row("symfollow", |o, _| set(&mut o.nosymfollow, false), ""),
    row("sync", |o, _| set(&mut o.sync, true), "every write and change of a directory is durable at once; no passthrough"),
    row("async", |o, _| set(&mut o.sync, false), ""),
    row("dirsync", |o, _| set(&mut o.dirsync, true), "every change of a directory is durable at once"),
    row("defaults", nothing, ""),
    row("silent", nothing, ""),
    row("loud", nothing, ""),
    row("nomand", nothing, ""),
    row("noiversion", nothing, ""),
    row("atime", |o, _| set(&mut o.atime, Some(Atime::Relatime)), ""),
    row("norelatime", nothing, ""),
    row("nostrictatime", nothing, ""),
    row("diratime", nothing, ""),
    row("nodiratime", nothing, ""),
    row("nolazytime", nothing, ""),
    row("_netdev", nothing, ""),
    row("nofail", nothing, ""),
    row("auto", nothing, ""),
    row("noauto", nothing, ""),
    row("user", user, "any user may mount: implies nosuid, nodev, noexec unless said otherwise after it"),
    row("user=", user, ""),
    row("users", user, ""),
    row("owner", owner, ""),
    row("group", owner, ""),
    row("nouser", nothing, ""),
    row("nousers", nothing, ""),
    row("noowner", nothing, ""),
    row("nogroup", nothing, ""),
    row("comment=", nothing, ""),
    row("x-*", nothing, "ignored: for mount(8), systemd and people"),
    row("X-*", nothing, ""),
    row("strictatime", |_, _| refuse("access times follow relatime; use relatime or noatime"), ""),
    row("lazytime", |_, _| refuse("times are written with the change they belong to; leave it out"), ""),
    row("allow_root", |_, _| refuse("root and the mounting user alone cannot be told apart here; use allow_other, which lets all users in"), ""),
    row("remount", |_, _| refuse("a mounted depot cannot be changed; unmount it and mount it with the new options"), ""),
    row("bind", |_, _| refuse("use mount --bind on the mounted tree"), ""),
    row("auto_unmount", |_, _| refuse("not needed: the next mount clears away what a killed daemon left"), ""),
];

/// Why `-o` was refused; the text names the option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option {0}")]
pub struct Error(pub String);

impl Options {
    /// Reads comma-separated options, as often as `-o` was given.
    pub fn parse<S: AsRef<str>>(given: impl IntoIterator<Item = S>) -> Result<Options, Error> {
        let mut options = Options::default();
        for list in given {
            for word in split(list.as_ref()) {
                options.take(&word).map_err(Error)?;
            }
        }
        // What the kernel writes past the daemon it forces for descriptors with O_SYNC, and not for a mount.
        if options.sync && options.passthrough == Switch::On {
            return Err(Error("\"sync\" does not go with \"passthrough=on\": leave one of them out".into()));
        }
        Ok(options)
    }

    /// Whether the kernel may be given files to serve by itself.
    pub fn may_pass_through(&self) -> bool {
        self.passthrough != Switch::Off && !self.sync
    }

    /// One option.
    fn take(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let known = KNOWN.iter().find(|known| match known.name.strip_suffix('*') {
            Some(prefix) => name.len() > prefix.len() && name.starts_with(prefix),
            None => {
                known.name.strip_suffix('=').map_or(value.is_none() && known.name == name, |with_value| {
                    value.is_some() && with_value == name
                })
            }
        });
        match known {
            Some(known) => {
                (known.apply)(self, value.unwrap_or_default()).map_err(|why| format!("\"{word}\": {why}"))
            }
            None => Err(unknown(name, value.is_some())),
        }
    }

    /// Lets the users in who should be: all by default when root mounts.
    pub fn allows_other(&self, root: bool) -> bool {
        self.allow_other.unwrap_or(root)
    }
}

/// The options worth showing, for `mount --help`.
pub fn help() -> String {
    let rows = KNOWN.iter().filter(|known| !known.doc.is_empty());
    rows.map(|known| format!("  {:<22} {}\n", known.name, known.doc)).collect()
}

/// All options as rows of name and meaning, for the docs.
pub fn table() -> Vec<(&'static str, String)> {
    let meaning = |known: &Known| match (known.doc, (known.apply)(&mut Options::default(), "")) {
        ("", Err(why)) if !known.name.ends_with('=') => format!("refused: {why}"),
        ("", _) => "as in mount(8)".into(),
        (doc, _) => doc.into(),
    };
    KNOWN.iter().map(|known| (known.name, meaning(known))).collect()
}

/// Splits at commas outside double quotes; a backslash keeps the next character (libfuse writes `\,` in paths).
fn split(list: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = list.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' => word.extend(letters.next()),
            ',' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// What to say about an option that is not in the table.
fn unknown(name: &str, has_value: bool) -> String {
    let bare = |known: &'static Known| known.name.trim_end_matches(['=', '*']);
    match KNOWN.iter().find(|known| bare(known) == name) {
        Some(known) if known.name.ends_with('=') => format!("\"{name}\" needs a value: {name}=..."),
        Some(_) if has_value => format!("\"{name}\" takes no value"),
        _ => format!("\"{name}\" is not known{}", suggestion(name, KNOWN.iter().map(bare))),
    }
}

fn set<T>(field: &mut T, value: T) -> Result<(), String> {
    *field = value;
    Ok(())
}

fn nothing(_: &mut Options, _: &str) -> Result<(), String> {
    Ok(())
}

fn refuse(why: &str) -> Result<(), String> {
    Err(why.into())
}

fn refused(option: &mut bool, value: &str) -> Result<(), String> {
    *option = match value {
        "off" => true,
        "auto" => false,
        _ => return Err("it is off or auto".into()),
    };
    Ok(())
}

fn switch(field: &mut Switch, value: &str) -> Result<(), String> {
    *field = match value {
        "on" => Switch::On,
        "off" => Switch::Off,
        "auto" => Switch::Auto,
        _ => return Err("must be on, off or auto".into()),
    };
    Ok(())
}

/// `user` and `users`: as mount(8), no device nodes, no setuid, no programs.
fn user(options: &mut Options, _: &str) -> Result<(), String> {
    options.noexec = true;
    owner(options, "")
}

/// `owner` and `group`: as mount(8), no device nodes and no setuid.
fn owner(options: &mut Options, _: &str) -> Result<(), String> {
    (options.nosuid, options.nodev) = (true, true);
    Ok(())
}

fn durability(options: &mut Options, value: &str) -> Result<(), String> {
    options.durability = Some(match Durability::parse(value) {
        Some(durability) => durability,
        None => return Err("must be fsync, close or remote".into()),
    });
    Ok(())
}

fn subdir(options: &mut Options, value: &str) -> Result<(), String> {
    let path = value.trim_matches('/');
    if path.is_empty() || path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err(
            "must be REPO or REPO/PATH from the top of the tree, without empty names, \".\" or \"..\"".into(),
        );
    }
    options.subdir = Some(path.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(list: &str) -> Result<Options, Error> {
        Options::parse([list])
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse("").unwrap(), Options::default());
        assert_eq!(parse(",,defaults,").unwrap(), Options::default());
        let options = Options::default();
        assert!(options.allows_other(true) && !options.allows_other(false));
    }

    #[test]
    fn what_mount_8_and_systemd_pass_on_is_taken() {
        let list = "rw,suid,dev,exec,auto,nouser,async,relatime,_netdev,nofail,x-systemd.automount,X-mount.mkdir=0755,\
                    x-gvfs-name=a b,comment=hello,default_permissions,nodiratime,silent,loud,nomand,noiversion,symfollow";
        assert_eq!(parse(list).unwrap(), Options { atime: Some(Atime::Relatime), ..Options::default() });
        let user = parse("noexec,nosuid,nodev,user=alice").unwrap();
        assert!(user.noexec && user.nosuid && user.nodev);
        let user = parse("users,exec").unwrap();
        assert!(!user.noexec && user.nosuid);
    }

    #[test]
    fn later_ones_win() {
        let options = Options::parse(["ro,noatime", "rw,passthrough=off,passthrough=on"]).unwrap();
        assert!(!options.read_only);
        assert_eq!((options.atime, options.passthrough), (Some(Atime::Noatime), Switch::On));
    }

    #[test]
    fn a_synchronous_mount_has_no_passthrough() {
        assert!(parse("").unwrap().may_pass_through() && parse("dirsync").unwrap().may_pass_through());
        assert!(
            !parse("sync").unwrap().may_pass_through() && parse("sync,async").unwrap().may_pass_through()
        );
        let why = parse("sync,passthrough=on").unwrap_err().to_string();
        assert!(why.contains("\"sync\"") && why.contains("passthrough=on"), "{why}");
    }

    #[test]
    fn values_are_read() {
        let options = parse("subdir=/libs/a b/,durability=close,passthrough=auto").unwrap();
        assert_eq!(options.subdir.as_deref(), Some("libs/a b"));
        assert_eq!((options.durability, options.passthrough), (Some(Durability::Close), Switch::Auto));
        assert_eq!(parse("subdir=a\\,b,ro").unwrap().subdir.as_deref(), Some("a,b"));
        assert_eq!(parse("subdir=\"a,b\",ro").unwrap().subdir.as_deref(), Some("a,b"));
    }

    #[test]
    fn what_is_refused_is_named_with_a_way_out() {
        for (list, parts) in [
            ("noatmie", ["\"noatmie\"", "\"noatime\""]),
            ("passthru=on", ["\"passthru\"", "known"]),
            ("passthrough", ["\"passthrough\"", "needs a value"]),
            ("ro=1", ["\"ro\"", "takes no value"]),
            ("passthrough=maybe", ["passthrough=maybe", "on, off or auto"]),
            ("durability=hard", ["durability=hard", "fsync, close or remote"]),
            ("allow_root", ["allow_root", "allow_other"]),
            ("subdir=a/../b", ["subdir", "REPO/PATH"]),
            ("subdir=", ["subdir", "REPO/PATH"]),
            ("strictatime", ["strictatime", "relatime"]),
            ("x-", ["\"x-\"", "not known"]),
        ] {
            let why = parse(list).unwrap_err().to_string();
            assert!(parts.iter().all(|part| why.contains(part)), "{list}: {why}");
        }
    }

    #[test]
    fn every_option_stands_once_in_the_table_and_the_help_lines_are_short() {
        for known in KNOWN {
            assert_eq!(KNOWN.iter().filter(|other| other.name == known.name).count(), 1, "{}", known.name);
        }
        assert!(help().lines().all(|line| line.len() <= 110), "{}", help());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(list in "(?s).{0,80}") {
            let _ = parse(&list);
        }

        #[test]
        fn words_of_the_table_with_any_values_are_taken_or_named(
            words in proptest::collection::vec(
                (0..KNOWN.len(), "(=)?", "(on|off|auto|close|fsync|remote|[a-z/.=\"\\\\]{0,12})"),
                1..6,
            ),
        ) {
            let word = |(row, equals, value): &(usize, String, String)| {
                format!("{}{equals}{value}", KNOWN[*row].name.trim_end_matches(['*', '=']))
            };
            let list: Vec<String> = words.iter().map(word).collect();
            if let Err(why) = parse(&list.join(",")) {
                let text = why.to_string();
                prop_assert!(text.starts_with("mount option ") && text.contains('"'), "{text}");
            }
        }

        #[test]
        fn a_directory_survives_quotes_and_commas(path in "[a-z,\" \\\\]{1,20}") {
            let quoted: String = path.chars().flat_map(|letter| ['\\', letter]).collect();
            let options = parse(&format!("ro,subdir={quoted},noatime")).unwrap();
            prop_assert_eq!(options.subdir, Some(path));
            prop_assert!(options.read_only && options.atime == Some(Atime::Noatime));
        }
    }
}
