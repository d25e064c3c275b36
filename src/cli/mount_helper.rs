//! The program under the name that mount(8) looks for: `mount.fuse.depotfs DEPOT DIR [-sfnv] [-o OPTIONS]`.
//!
//! mount.fuse(8) runs it with the same arguments under its own name. mount(8) runs /sbin/mount.TYPE for a type it does not know itself, so `make install` puts a link of this name there.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use super::exit::Exit;
use super::{complain, finish, mount};

/// The names under which the program behaves so.
pub const NAMES: [&str; 2] = ["mount.fuse.depotfs", "mount.depotfs"];

/// Exit codes that mount(8) knows.
const WRONG_INVOCATION: u8 = 1;
const NOT_MOUNTED: u8 = 32;

/// What mount(8) wants.
struct Wanted {
    args: mount::Args,
    /// Only go through the motions (`mount -f`).
    fake: bool,
}

pub fn main(arguments: &[OsString]) -> ExitCode {
    let wanted = match parse(arguments) {
        Ok(wanted) => wanted,
        Err(why) => {
            complain(&format!("{why}; usage: {} DEPOT DIR [-sfnv] [-o OPTIONS]", NAMES[0]));
            return WRONG_INVOCATION.into();
        }
    };
    let outcome = match wanted.fake {
        true => wanted.args.options().map(|_| Exit::Ok).map_err(anyhow::Error::from),
        false => mount::run(&wanted.args),
    };
    match finish(outcome) {
        Exit::Ok => ExitCode::SUCCESS,
        Exit::Usage => WRONG_INVOCATION.into(),
        _ => NOT_MOUNTED.into(),
    }
}

fn parse(arguments: &[OsString]) -> Result<Wanted, String> {
    let (mut places, mut options, mut fake) = (Vec::new(), Vec::new(), false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(letters) = argument.to_str().and_then(|text| text.strip_prefix('-')) else {
            places.push(PathBuf::from(argument));
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                's' | 'n' | 'v' => {}
                'f' => fake = true,
                'r' => options.push("ro".to_owned()),
                'w' => options.push("rw".to_owned()),
                // The value stands in the same word or in the next one. A type says nothing new, a namespace is entered
                // by mount(8) itself.
                'o' | 't' | 'N' => {
                    let value = match &letters[at + 1..] {
                        "" => rest.next().ok_or_else(|| format!("-{letter} needs a value"))?.as_os_str(),
                        value => OsStr::new(value),
                    };
                    if letter == 'o' {
                        // Options that cannot be read must not be lost: one of them may be `ro`.
                        let readable = value.to_str().ok_or_else(|| format!("-o {value:?} is not UTF-8"))?;
                        options.push(readable.to_owned());
                    }
                    break;
                }
                _ => return Err(format!("-{letter} is not known")),
            }
        }
    }
    let [depot, mountpoint] = <[PathBuf; 2]>::try_from(places)
        .map_err(|places| format!("{} places were given instead of two", places.len()))?;
    Ok(Wanted { args: mount::Args::for_helper(depot, mountpoint, options), fake })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};
    use std::os::unix::ffi::OsStringExt as _;

    fn parsed(line: &str) -> Result<Wanted, String> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_mount_8_passes_is_understood() {
        let wanted = parsed("/depot /mnt -o rw,noatime,x-systemd.automount").unwrap();
        assert!(!wanted.fake);
        assert!(wanted.args.options().unwrap().atime.is_some());
        let wanted = parsed("/depot /mnt -sfnv -o ro -t fuse.depotfs").unwrap();
        assert!(wanted.fake && wanted.args.options().unwrap().read_only);
        assert!(parsed("-oro /depot /mnt").unwrap().args.options().unwrap().read_only);
        assert!(parsed("/depot /mnt -r").unwrap().args.options().unwrap().read_only);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "/depot", "/a /b /c", "/a /b -q", "/a /b -o", "/a /b -t"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert!(parsed("/a /b -o tempalte=1").unwrap().args.options().is_err());
        let unreadable = ["/a", "/b", "-o"].map(OsString::from).into_iter();
        let unreadable: Vec<_> = unreadable.chain([OsString::from_vec(b"ro,\xff".to_vec())]).collect();
        assert!(parse(&unreadable).is_err(), "options that cannot be read are not lost");
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_parser_panic(
            arguments in collection::vec(collection::vec(prop_oneof![Just(b'-'), any::<u8>()], 0..12), 0..8),
        ) {
            let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from_vec).collect();
            if let Ok(wanted) = parse(&arguments) {
                let _ = wanted.args.options();
            }
        }
    }
}
