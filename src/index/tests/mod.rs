//! Tests of the room.

use std::cell::RefCell;
use std::collections::BTreeSet;

thread_local! {
    static SEEN: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

pub(super) fn note(sql: &'static str, s: &rusqlite::Statement<'_>) {
    for n in 1..=s.parameter_count() {
        assert_eq!(s.parameter_name(n), Some(format!("${n}").as_str()), "{sql}");
    }
    SEEN.with_borrow_mut(|seen| seen.insert(sql));
}
