//! What every family of tests stands on: modes, trees to work in, depots, commands, waiting.

mod depot;
#[cfg(debug_assertions)]
mod driver;
#[allow(dead_code)]
mod proxy;
mod run;
#[allow(dead_code)]
mod servers;
mod shell;
#[cfg(debug_assertions)]
mod steering;

pub use depot::{Depot, EMPTY, is_mountpoint, sha1};
#[cfg(debug_assertions)]
pub use driver::{Died, Driver};
pub use proxy::Proxy;
pub use run::{Mode, Tree, as_user, guarded, guarded_for, on_depot, run, run_within, scratch_for};
pub use servers::{S3_KEYS, Server, Speaks};
pub use shell::{Fails, Ran, command, eventually, run_command, scratch, sh, sh_fails, tool};
#[cfg(debug_assertions)]
pub use steering::Steered;

/// Makes a #[test] of each named `fn(&Tree)` for each mode.
///
/// `all`: plain directory and mounts, of root and of an ordinary user; `root`: the ones that need privileges or other users;
/// `mounted`: what only a mount has; `mounted_root`: both.
macro_rules! modes {
    (all: $($test:ident),+ $(,)?) => { modes!(@ [plain plain_user passthrough cached user] $($test)+); };
    (every_chain: $($test:ident),+ $(,)?) => {
        modes!(@ [plain plain_user passthrough cached user database sharded cached_rows queued] $($test)+);
    };
    (everywhere: $($test:ident),+ $(,)?) => {
        modes!(@ [plain plain_user passthrough cached user database sharded objects] $($test)+);
    };
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
