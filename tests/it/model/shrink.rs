//! Leaving parts out of a list of operations for as long as it still fails.

use std::time::{Duration, Instant};

use super::operations::Op;

/// How long to go on leaving out parts.
const TIME_MAX: Duration = Duration::from_secs(100);

/// A shorter list that fails as well; `None` when the list itself does not fail. `fails` tells how many operations it took.
pub fn shrink(ops: &[Op], fails: impl Fn(&[Op]) -> Option<usize>) -> Option<Vec<Op>> {
    let begun = Instant::now();
    let mut ops = ops[..fails(ops)?].to_vec();
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
            if let Some(needed) = fails(&tried) {
                tried.truncate(needed);
                ops = tried;
                shorter = true;
            } else {
                at += part;
            }
        }
        match part {
            0 | 1 if !shorter => return Some(ops),
            0 | 1 => {}
            _ => part = part.div_ceil(2),
        }
    }
}

#[test]
fn what_matters_is_left() {
    let chmod = |mode| Op::Chmod { path: "a".into(), mode };
    let ops: Vec<Op> = (0..200).map(chmod).collect();
    let fails = |ops: &[Op]| {
        let last = ops.iter().position(|op| *op == chmod(140))?;
        ops[..last].contains(&chmod(17)).then_some(last + 1)
    };
    assert_eq!(shrink(&ops, fails), Some(vec![chmod(17), chmod(140)]));
    assert_eq!(shrink(&ops, |_| None), None);
}
