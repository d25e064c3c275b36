//! What every family of tests stands on: modes, trees to work in, depots, commands, waiting.

mod depot;
mod run;
mod shell;

pub use depot::{Depot, EMPTY, is_mountpoint, sha1};
pub use run::{Mode, Tree, as_user, guarded, guarded_for, on_depot, run, scratch_for};
pub use shell::{Fails, Ran, command, eventually, run_command, scratch, sh, sh_fails, tool};

/// Makes a #[test] of each named `fn(&Tree)` for each mode.
///
/// `all`: plain directory and mounts, of root and of an ordinary user; `root`: the ones that need privileges or other users;
/// `mounted`: what only a mount has; `mounted_root`: both.
macro_rules! modes {
    (all: $($test:ident),+ $(,)?) => { modes!(@ [plain plain_user passthrough cached user] $($test)+); };
    (root: $($test:ident),+ $(,)?) => { modes!(@ [plain passthrough cached] $($test)+); };
    (mounted: $($test:ident),+ $(,)?) => { modes!(@ [passthrough cached user] $($test)+); };
    (mounted_root: $($test:ident),+ $(,)?) => { modes!(@ [passthrough cached] $($test)+); };
    (@ $modes:tt $($test:ident)+) => { $( mod $test { modes!(@@ $modes $test); } )+ };
    (@@ [$($mode:ident)+] $test:ident) => { $(
        #[test]
        fn $mode() {
            $crate::harness::run($crate::harness::Mode::of(stringify!($mode)), super::$test)
        }
    )+ };
}
