//! Leaving parts out of a list of operations for as long as it still fails.

use std::time::{Duration, Instant};

use super::operations::Op;

/// How long to go on leaving out parts.
const TIME_MAX: Duration = Duration::from_secs(100);

/// A shorter list that fails as well; `None` when the list itself does not fail.
pub fn shrink(ops: &[Op], fails: impl Fn(&[Op]) -> bool) -> Option<Vec<Op>> {
    let begun = Instant::now();
    if !fails(ops) {
        return None;
    }
    let mut ops = ops.to_vec();
    let mut part = ops.len().div_ceil(2);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < ops.len() {
            if begun.elapsed() > TIME_MAX {
                return Some(ops);
            }
            let mut tried = ops.clone();
            tried.drain(at..(at + part).min(ops.len()));
            if fails(&tried) {
                ops = tried;
                shorter = true;
            } else {
                at += part;
            }
        }
        match part {
            1 if !shorter => return Some(ops),
            1 => {}
            _ => part = part.div_ceil(2),
        }
    }
}

#[test]
fn what_matters_is_left() {
    let chmod = |mode| Op::Chmod { path: "a".into(), mode };
    let ops: Vec<Op> = (0..200).map(chmod).collect();
    let fails = |ops: &[Op]| ops.contains(&chmod(17)) && ops.contains(&chmod(140));
    assert_eq!(shrink(&ops, fails), Some(vec![chmod(17), chmod(140)]));
    assert_eq!(shrink(&ops, |_| false), None);
}
