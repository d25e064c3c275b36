//! Section `[faulty]`.

use std::path::PathBuf;

use super::{Known, Problem, keys};
use crate::failpoint;

/// Section `[faulty]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faulty {
    /// The file that says what goes wrong.
    pub control: PathBuf,
    /// What chance begins with.
    pub seed: u64,
    /// Whether no blob is a local file.
    pub remote: bool,
}

impl Faulty {
    pub(super) fn read(known: &Known<'_>) -> Faulty {
        Faulty {
            control: known.path("faulty.control"),
            seed: keys::parse_count(known.get("faulty.seed")).unwrap_or_default(),
            remote: keys::parse_flag(known.get("faulty.remote")).unwrap_or_default(),
        }
    }

    /// What is wrong with having it at all.
    pub(super) fn problems(&self) -> Vec<Problem> {
        problems(failpoint::COMPILED_IN)
    }
}

fn problems(compiled_in: bool) -> Vec<Problem> {
    let text = "chain: \"faulty\" breaks what stands below it, for tests, and this build of depotfs has no faults: take it \
                out of the chain";
    if compiled_in { Vec::new() } else { vec![Problem::new("chain", text)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_users_refuses_it() {
        assert_eq!(problems(true), []);
        let refused = problems(false);
        assert!(refused[0].key == "chain" && refused[0].text.contains("take it out"), "{refused:?}");
    }
}
