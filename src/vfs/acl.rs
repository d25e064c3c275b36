//! POSIX access control lists as extended attributes: inheritance, and the permission bits that mirror them.
//!
//! The kernel checks permissions; what is left to a file system is that a new inode takes its directory's default list,
//! that chmod(2) changes the list, and that setting a list changes the permission bits. The value is a version (4 bytes, 2)
//! and entries of 8 bytes: tag, permissions, id, little-endian (linux/posix_acl_xattr.h).

use crate::vfs::{Error, Result};

/// The list that rules access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new entries of a directory start with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// File capabilities, which go when the file is written.
pub const CAPABILITY: &[u8] = b"security.capability";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that name nobody in particular.
const NO_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

fn parse(value: &[u8]) -> Result<Vec<Entry>> {
    let bad = || Error::Invalid("an access control list");
    let (version, rest) = value.split_first_chunk::<4>().ok_or_else(bad)?;
    if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
        return Err(bad());
    }
    let entry = |e: &[u8]| Entry {
        tag: u16::from_le_bytes([e[0], e[1]]),
        perm: u16::from_le_bytes([e[2], e[3]]) & 7,
        id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
    };
    let entries: Vec<Entry> = rest.chunks_exact(8).map(entry).collect();
    let count = |tag| entries.iter().filter(|e| e.tag == tag).count();
    let named = count(USER) + count(GROUP);
    let known = named + count(USER_OBJ) + count(GROUP_OBJ) + count(MASK) + count(OTHER);
    let whole = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1 && count(MASK) <= 1;
    if known != entries.len() || !whole || (named > 0 && count(MASK) == 0) {
        return Err(bad());
    }
    Ok(entries)
}

fn format(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for e in entries {
        value.extend_from_slice(&e.tag.to_le_bytes());
        value.extend_from_slice(&e.perm.to_le_bytes());
        value.extend_from_slice(&if matches!(e.tag, USER | GROUP) { e.id } else { NO_ID }.to_le_bytes());
    }
    value
}

/// Whether the entries say no more than permission bits can.
fn is_minimal(entries: &[Entry]) -> bool {
    entries.iter().all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
}

/// The group bits of the mode mirror the mask where there is one.
fn group_tag(entries: &[Entry]) -> u16 {
    if entries.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ }
}

fn bits(entries: &[Entry]) -> u32 {
    let group = group_tag(entries);
    let of = |tag| entries.iter().find(|e| e.tag == tag).map_or(0, |e| u32::from(e.perm));
    of(USER_OBJ) << 6 | of(group) << 3 | of(OTHER)
}

/// A list set by setxattr(2): the permission bits it means, and what to store (`None` when the bits say it all).
pub fn set_access(value: &[u8]) -> Result<(u32, Option<Vec<u8>>)> {
    let entries = parse(value)?;
    Ok((bits(&entries), (!is_minimal(&entries)).then(|| format(&entries))))
}

/// Checks a default list; what to store.
pub fn set_default(value: &[u8]) -> Result<Vec<u8>> {
    Ok(format(&parse(value)?))
}

/// The access list after chmod(2) to `mode`.
pub fn with_mode(value: &[u8], mode: u32) -> Result<Vec<u8>> {
    let mut entries = parse(value)?;
    let group = group_tag(&entries);
    for e in &mut entries {
        let shift = match e.tag {
            USER_OBJ => 6,
            OTHER => 0,
            tag if tag == group => 3,
            _ => continue,
        };
        e.perm = (mode >> shift & 7) as u16;
    }
    Ok(format(&entries))
}

/// What a new inode takes from its directory's default list: its permission bits, and its access list where the bits do
/// not say it all.
pub fn inherit(default: &[u8], mode: u32) -> Result<(u32, Option<Vec<u8>>)> {
    let mut entries = parse(default)?;
    let group = group_tag(&entries);
    for e in &mut entries {
        let shift = match e.tag {
            USER_OBJ => 6,
            OTHER => 0,
            tag if tag == group => 3,
            _ => continue,
        };
        e.perm &= (mode >> shift & 7) as u16;
    }
    let mode = mode & !0o777 | bits(&entries);
    Ok((mode, (!is_minimal(&entries)).then(|| format(&entries))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*, sample::select};

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        format(&entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect::<Vec<_>>())
    }

    #[test]
    fn a_list_that_says_no_more_than_bits_is_not_stored() {
        let value = list(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(set_access(&value).unwrap(), (0o640, None));
    }

    #[test]
    fn the_mask_is_the_group_bits() {
        let value =
            list(&[(USER_OBJ, 7, 0), (USER, 6, 1000), (GROUP_OBJ, 5, 0), (MASK, 4, 0), (OTHER, 1, 0)]);
        let (mode, stored) = set_access(&value).unwrap();
        assert_eq!(mode, 0o741);
        let changed = with_mode(&stored.unwrap(), 0o570).unwrap();
        let entries = parse(&changed).unwrap();
        assert_eq!(entries.iter().find(|e| e.tag == MASK).unwrap().perm, 7);
        assert_eq!(
            entries.iter().find(|e| e.tag == GROUP_OBJ).unwrap().perm,
            5,
            "the mask stands for the group"
        );
        assert_eq!(bits(&entries), 0o570);
    }

    #[test]
    fn inheritance_takes_away_what_the_mode_did_not_ask_for() {
        let value =
            list(&[(USER_OBJ, 7, 0), (USER, 7, 1000), (GROUP_OBJ, 7, 0), (MASK, 7, 0), (OTHER, 7, 0)]);
        let (mode, stored) = inherit(&value, 0o2640).unwrap();
        assert_eq!(mode, 0o2640);
        let entries = parse(&stored.unwrap()).unwrap();
        assert_eq!(entries.iter().find(|e| e.tag == USER).unwrap().perm, 7);
        assert_eq!(entries.iter().find(|e| e.tag == MASK).unwrap().perm, 4);
    }

    #[test]
    fn bad_lists_are_refused() {
        let no_other = list(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0)]);
        let no_mask = list(&[(USER_OBJ, 6, 0), (USER, 6, 5), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        for bad in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0abc", &no_other, &no_mask] {
            assert!(set_access(bad).is_err(), "{bad:?}");
        }
    }

    /// Lists that are nearly right, or any bytes.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let tags = vec![USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER, 0, 3, 0x40];
        let entry = (select(tags), any::<u16>(), any::<u32>());
        let whole = [(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 1, 0), (MASK, 7, 0)];
        prop_oneof![
            1 => collection::vec(any::<u8>(), 0..40),
            2 => collection::vec(entry.clone(), 0..8).prop_map(|entries| list(&entries)),
            4 => collection::vec(entry, 0..2).prop_map(move |more| list(&[&whole[..], &more].concat())),
        ]
    }

    proptest! {
        #[test]
        fn any_value_is_refused_or_kept_in_step_with_the_mode(value in value(), mode in any::<u32>()) {
            let (made, default, changed) = (inherit(&value, mode), set_default(&value), with_mode(&value, mode));
            let Ok((bits, stored)) = set_access(&value) else {
                prop_assert!(made.is_err() && default.is_err() && changed.is_err());
                return Ok(());
            };
            prop_assert!(bits <= 0o777);
            if let Some(stored) = stored {
                prop_assert_eq!(set_access(&stored).unwrap(), (bits, Some(stored)));
            }
            prop_assert_eq!(set_access(&changed.unwrap()).unwrap().0, mode & 0o777);
            let (inherited, list) = made.unwrap();
            prop_assert_eq!(inherited & !mode, 0, "no bit that the mode did not ask for");
            if let Some(list) = list {
                prop_assert_eq!(set_access(&list).unwrap().0, inherited & 0o777);
            }
            let default = default.unwrap();
            prop_assert_eq!(set_default(&default).unwrap(), default);
        }
    }
}
