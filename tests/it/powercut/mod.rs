//! Power cuts: a depot on a recorded device, rebuilt as of any moment, and compared with what was promised by then.

mod compare;
mod device;
mod diary;
mod random;
mod recording;
mod state;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use device::{Device, FileSystem};
use diary::Clock;
use random::Random;
use recording::now;

use crate::harness::{Depot, Mode, guarded_for};

/// Which cuts are tried.
#[derive(Clone, Copy)]
struct Plan {
    file_system: FileSystem,
    mode: Mode,
    /// States rebuilt of one recording.
    states: usize,
    recordings: usize,
    work: Duration,
    /// Nobody asks for anything durable.
    calm: bool,
}

/// A number given by whoever runs the tests.
fn given(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

fn run(plan: Plan) {
    let states = given("DEPOTFS_TEST_STATES").map_or(plan.states, |states| states as usize);
    for round in 0..plan.recordings as u64 {
        let seed = given("DEPOTFS_TEST_SEED").unwrap_or_else(now).wrapping_add(round);
        eprintln!("power cuts on {}: DEPOTFS_TEST_SEED={seed}", plan.file_system.name());
        // Of several recordings, each third is calm.
        let calm = plan.calm || round % 3 == 2;
        record_and_judge(Plan { states, calm, ..plan }, seed);
    }
}

/// One recording, and all its states.
fn record_and_judge(plan: Plan, seed: u64) {
    let device = Arc::new(Device::new(plan.file_system));
    let watched = device.clone();
    let limit = plan.work + Duration::from_secs(150);
    let record = move || {
        let depot = Depot::new_in_mode(plan.mode, &device.disk());
        depot.mount();
        workload::prepare(&depot);
        let from = device.position();
        let done = workload::run(&depot, &Clock::new(&device), plan.work, plan.calm, seed);
        let to = device.position();
        depot.umount();
        depot.verify_blobs();
        depot.check();
        (done, from, to)
    };
    let (done, from, to) = guarded_for(limit, record, || watched.break_down());
    let device = Arc::into_inner(watched).expect("the only one who has the device");
    let mut recording = device.stop();
    let mut random = Random::new(seed);
    let cuts = recording.cuts(from, to, plan.states, &mut random);
    let calls: usize = done.diaries.iter().map(|diary| diary.events.len()).sum();
    eprintln!("{calls} calls, {} records, {} states", recording.records.len(), cuts.len());
    if given("DEPOTFS_TEST_KEEP").is_some() {
        eprintln!("the recording is kept in {}", recording.keep().display());
    }
    let mut failed = Vec::new();
    let mut replay = recording.replay();
    for cut in &cuts {
        let faults = state::try_cut(plan, &mut replay, cut, &done, &mut random);
        if !faults.is_empty() {
            eprintln!("{}", faults.join("\n  "));
            failed.extend(faults);
        }
    }
    assert!(failed.is_empty(), "seed {seed}: {} broken promises, the first: {}", failed.len(), failed[0]);
}

/// A short recording in the default mode.
#[test]
fn ten_states_on_ext4() {
    let work = Duration::from_secs(22);
    let (file_system, mode) = (FileSystem::Ext4, Mode::Passthrough);
    run(Plan { file_system, mode, states: 10, recordings: 1, work, calm: false });
}

/// What nobody forces becomes durable by itself, in time.
#[test]
fn five_states_without_an_fsync_on_ext4() {
    let work = Duration::from_secs(32);
    let (file_system, mode) = (FileSystem::Ext4, Mode::Passthrough);
    run(Plan { file_system, mode, states: 5, recordings: 1, work, calm: true });
}

/// A thousand states of ten recordings.
fn thousand(file_system: FileSystem, mode: Mode) {
    run(Plan { file_system, mode, states: 100, recordings: 10, work: Duration::from_secs(45), calm: false });
}

#[test]
#[ignore = "slow: make test-slow"]
fn a_thousand_states_on_ext4() {
    thousand(FileSystem::Ext4, Mode::Passthrough);
}

#[test]
#[ignore = "slow: make test-slow"]
fn a_thousand_states_on_ext4_through_the_daemon() {
    thousand(FileSystem::Ext4, Mode::Cached);
}

#[test]
#[ignore = "slow: make test-slow"]
fn a_thousand_states_on_xfs() {
    thousand(FileSystem::Xfs, Mode::Passthrough);
}

#[test]
#[ignore = "slow: make test-slow"]
fn a_thousand_states_on_btrfs() {
    thousand(FileSystem::Btrfs, Mode::Passthrough);
}
