//! What a piece of work costs: processor time of the client and of the server, requests, bytes.

use std::fs;

use anyhow::{Context, Result};

use crate::depot::Depot;
use crate::lab::Lab;
use crate::results::Costs;
use crate::sys;

/// The process that does the work for a peer.
#[derive(Debug, Clone, Copy)]
pub enum Client<'a> {
    /// The daemon of a depot, which may begin within the work.
    Daemon(&'a Depot),
    /// A process that was there before.
    Process(u32),
    /// Programs that begin and end within the work.
    Programs,
    /// This process, which does nothing worth counting.
    Nobody,
}

/// Who is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Meter<'a> {
    /// The client.
    pub client: Client<'a>,
    /// The far side, if it takes part.
    pub lab: Option<&'a Lab>,
}

/// Where the counters stood.
#[derive(Debug)]
pub struct Reading {
    client: Option<(u32, f64)>,
    server: Option<f64>,
}

impl Meter<'_> {
    /// Reads the counters before the work.
    pub fn begin(&self) -> Result<Reading> {
        let reading = self.read()?;
        if let Some(lab) = self.lab {
            lab.proxy.forget();
        }
        Ok(reading)
    }

    /// What the work cost since then.
    pub fn end(&self, before: &Reading) -> Result<Costs> {
        let passed = self.lab.map(Lab::passed);
        let after = self.read()?;
        let client = after.client.map(|(pid, now)| match before.client {
            Some((same, then)) if same == pid => now - then,
            _ => now,
        });
        let server = after.server.zip(before.server).map(|(now, then)| now - then);
        let count = |pick: fn((u64, u64, u64)) -> u64| passed.map(|passed| pick(passed) as f64);
        Ok([client, server, count(|p| p.2), count(|p| p.0), count(|p| p.1)])
    }

    fn read(&self) -> Result<Reading> {
        let of = |pid: u32| Ok::<_, anyhow::Error>((pid, sys::cpu_seconds(pid)?));
        let client = match self.client {
            Client::Daemon(depot) => depot.pid()?.map(of).transpose()?,
            Client::Process(pid) => Some(of(pid)?),
            Client::Programs => Some((0, ended_seconds()?)),
            Client::Nobody => None,
        };
        let server = self.lab.map(|lab| sys::cpu_seconds(lab.server.pid())).transpose()?;
        Ok(Reading { client, server })
    }
}

/// Processor time of the children that have ended.
fn ended_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').context("/proc/self/stat")?.1;
    let ticks: u64 = after.split_whitespace().skip(13).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    Ok(ticks as f64 / per_second as f64)
}

/// How large free pieces of memory have to be for a virtual machine to give them back to its host.
const GIVEN_BACK: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// As long as it lives, such a machine keeps its memory. Whoever is the first to use again what was given back waits for seconds
/// for each GiB of it: that shall be nobody who is measured.
#[derive(Debug)]
pub struct KeptMemory(Option<Vec<u8>>);

impl KeptMemory {
    /// From now on; where that cannot be had, `touch_memory` is what there is.
    pub fn new() -> KeptMemory {
        let before = fs::read(GIVEN_BACK).ok();
        // More than the largest piece there is.
        KeptMemory(before.filter(|_| fs::write(GIVEN_BACK, "11").is_ok()))
    }
}

impl Drop for KeptMemory {
    fn drop(&mut self) {
        // What is left as it is takes memory from the host, and nothing from anybody here.
        let _ = self.0.take().map(|before| fs::write(GIVEN_BACK, before));
    }
}

/// Uses this much memory for a moment: what was given back before is fetched now.
pub fn touch_memory(bytes: u64) {
    drop(std::hint::black_box(vec![1_u8; bytes as usize]));
}
