//! Test programs of others: pjdfstest and fsx.

use std::fs;

use crate::harness::{Tree, command, run_command, scratch_for, tool};

modes!(root: pjdfstest);
modes!(every_chain: fsx, fsx_with_syncs);

fn pjdfstest(t: &Tree) {
    let own = scratch_for(t);
    let config = own.path().join("pjdfstest.toml");
    let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\
                [settings]\nnaptime = 0.02\nallow_remount = false\n\
                [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&config, text).unwrap();
    let args = ["-c", config.to_str().unwrap(), "-p", t.dir().to_str().unwrap()];
    let ran = run_command(&mut command(tool("pjdfstest"), &args));
    let failed: Vec<&str> =
        ran.out.lines().filter(|l| l.contains("FAILED") || l.contains("failed")).collect();
    assert!(
        ran.code == Some(0) && ran.out.contains("Summary: 0 failed"),
        "{}\n{failed:#?}\n{}",
        ran.out,
        ran.err
    );
}

fn run_fsx(t: &Tree, seed: u32, operations: u32, more: &str) {
    let own = scratch_for(t);
    let (config, program) = (own.path().join("fsx.toml"), own.path().join("fsx"));
    let text = format!(
        "{more}\nclose_open = 2\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ntruncate = 5\n\
         posix_fallocate = 2\npunch_hole = 3\nsendfile = 5\nposix_fadvise = 1\ncopy_file_range = 5\n"
    );
    fs::write(&config, text).unwrap();
    // Where the tool lies, an ordinary user may not come. Written by a process of its own: what another test starts meanwhile
    // would have it open, and a file that is open for writing cannot be run.
    let (tool, copy) = (tool("fsx"), program.to_str().unwrap());
    run_command(&mut command("install", &["-m", "755", tool.to_str().unwrap(), copy])).ok();
    let (seed, operations, file) = (seed.to_string(), operations.to_string(), t.path("file"));
    let args = ["-q", "-f", config.to_str().unwrap(), "-S", &seed, "-N", &operations, "-P"];
    let ran = run_command(command(&program, &args).arg(own.path()).arg(&file));
    assert!(ran.code == Some(0), "fsx: exit code {:?}\n{}\n{}", ran.code, ran.out, ran.err);
}

fn fsx(t: &Tree) {
    // A plain directory only shows that the demands are right.
    let operations = if t.mode.is_plain() { 5_000 } else { 100_000 };
    run_fsx(t, 1, operations, "nomsyncafterwrite = true\n[weights]");
}

/// The operations that force bytes to the disk make a run slow: fewer of them.
fn fsx_with_syncs(t: &Tree) {
    run_fsx(t, 2, 4_000, "[weights]\ninvalidate = 1\nfsync = 1\nfdatasync = 1");
}
