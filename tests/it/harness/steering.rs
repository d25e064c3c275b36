//! A depot whose failpoints a test steers: what is set holds at once, and what was hit is counted.

use std::fs::{self, OpenOptions};
use std::process::Command;
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::depot::Depot;
use super::run::Mode;
use super::shell::{Ran, eventually, run_command};

/// A boot id that is not this boot's: with it, everything unforced may have been torn by a power cut.
const ANOTHER_BOOT: &str = "0b00710b-0071-0b00-710b-00710b00710b";

/// A depot of root's, every process of which passes the failpoints.
pub struct Steered {
    pub depot: Depot,
    /// Further mount options.
    pub options: &'static str,
    steering: tempfile::TempDir,
    another_boot: Mutex<bool>,
}

impl Steered {
    /// A depot with a repository `repo`, not mounted.
    pub fn new(mode: Mode, options: &'static str) -> Steered {
        Steered::over(Depot::new(mode), options)
    }

    /// The same of a depot that is there.
    pub fn over(depot: Depot, options: &'static str) -> Steered {
        let steering = super::scratch();
        let steered = Steered { depot, options, steering, another_boot: Mutex::new(false) };
        steered.mount();
        fs::create_dir(steered.depot.path("repo")).unwrap();
        steered.umount();
        steered
    }

    /// What happens where, from now on; see `src/failpoint.rs`. Counts begin anew.
    pub fn set(&self, rules: &str) {
        let _ = OpenOptions::new().write(true).truncate(true).open(self.steering.path().join("hits"));
        let part = self.steering.path().join("part");
        fs::write(&part, rules).unwrap();
        fs::rename(&part, self.steering.path().join("set")).unwrap();
    }

    /// From now on nothing happens anywhere.
    pub fn clear(&self) {
        self.set("");
    }

    /// How often something happened at a point since the last `set`.
    pub fn fired(&self, name: &str) -> usize {
        let hits = fs::read_to_string(self.steering.path().join("hits")).unwrap_or_default();
        hits.lines().filter(|line| line.split_once(' ').is_some_and(|(point, _)| point == name)).count()
    }

    /// The points that were passed since the last `set`, for the text of a failure.
    pub fn hits(&self) -> String {
        let hits = fs::read_to_string(self.steering.path().join("hits")).unwrap_or_default();
        let mut once: Vec<&str> = hits.lines().collect();
        once.dedup();
        once.join(" ")
    }

    /// Whether the next processes believe that the host has been switched off since.
    pub fn pretend_another_boot(&self, on: bool) {
        *self.another_boot.lock().unwrap() = on;
    }

    /// Runs the program; a point may kill it.
    pub fn run(&self, args: &[&str]) -> Ran {
        run_command(&mut self.command(args))
    }

    /// The program with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.depot.command(args);
        command.env(depotfs::failpoint::VARIABLE, self.steering.path());
        if *self.another_boot.lock().unwrap() {
            command.env(depotfs::sys::boot::VARIABLE, ANOTHER_BOOT);
        }
        command
    }

    /// Mounts, which may fail.
    pub fn try_mount(&self) -> Ran {
        let options: Vec<&str> =
            [self.depot.mode.options(), self.options].into_iter().filter(|o| !o.is_empty()).collect();
        let options = options.join(",");
        let mut args = vec!["mount", self.depot.dir_str(), self.depot.mountpoint_str()];
        if !options.is_empty() {
            args.extend(["-o", &options]);
        }
        self.run(&args)
    }

    #[track_caller]
    pub fn mount(&self) {
        self.try_mount().ok();
    }

    #[track_caller]
    pub fn umount(&self) {
        self.depot.umount();
        eventually("the daemon to end", || self.depot.daemons().is_empty());
    }

    /// Seals and forces everything closed, unless a point is in the way.
    pub fn flush(&self) {
        self.run(&["flush", self.depot.dir_str(), "--wait"]);
    }

    /// Whether the daemon is there.
    pub fn serves(&self) -> bool {
        !self.depot.daemons().is_empty()
    }

    /// Ends a mount, or what is left of it, without any ado.
    pub fn kill(&self) {
        for pid in self.depot.daemons() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("the killed daemon to be gone", || !self.serves());
    }
}
