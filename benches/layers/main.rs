//! The layers beside what they are made for: reads and writes through a cache and a queue before a store that is far away,
//! copies on several disks, and a full cache.
//!
//! The store is `rclone serve s3` on this host, and a proxy adds 50 ms to each request. A row is set up once and then measured
//! for each peer in turn, round after round. It prints the goals and the table of docs/benchmarks.md. It needs root, rclone,
//! and a disk with 30 GB free.
//!
//! ```sh
//! cargo bench --bench layers -- --row read,tail --rounds 1 --scale 0.1
//! ```

mod course;
mod depot;
#[path = "../peers/files.rs"]
#[allow(dead_code)] // Shared: each bench uses a part.
mod files;
mod get;
mod goals;
mod lab;
mod meter;
#[path = "../peers/program.rs"]
#[allow(dead_code)] // Shared as well.
mod program;
#[path = "../../tests/it/harness/proxy.rs"]
#[allow(dead_code)] // Shared with the tests.
mod proxy;
mod rclone;
mod report;
mod results;
mod rows;
#[path = "../peers/samples.rs"]
#[allow(dead_code)] // Shared as well.
mod samples;
mod server;
mod sites;
#[path = "../peers/sys.rs"]
#[allow(dead_code)] // Shared as well.
mod sys;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use course::{Course, Run};
use meter::KeptMemory;
use results::Results;
use rows::ROWS;
use sites::Peer;

/// Measures the layers of the filestore.
#[derive(Parser)]
struct Args {
    /// Rows to run, by part of their name; may be given several times or with commas.
    #[arg(long, value_delimiter = ',')]
    row: Vec<String>,
    /// Times that everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Numbers of files and sizes of files are multiplied by this.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Directory on the disk to measure; TMPDIR otherwise.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Program to measure instead of the one just built.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_depotfs"))]
    depotfs: PathBuf,
    /// File for the tables, beside standard output.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// File for all numbers, as lines of JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Names the rows and ends.
    #[arg(long)]
    list: bool,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |name: &str| args.row.is_empty() || args.row.iter().any(|part| name.contains(part.as_str()));
    let mut rows = ROWS.iter().filter(|row| wanted(row.name)).peekable();
    if args.list || rows.peek().is_none() {
        ROWS.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    sys::raise_open_files()?;
    let _memory = KeptMemory::new();
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = tempfile::Builder::new().prefix("depotfs-layers-").tempdir_in(parent)?;
    let run = Run {
        scale: args.scale,
        rounds: args.rounds,
        scratch: scratch.path().into(),
        depotfs: args.depotfs.clone(),
        stopped,
    };
    let mut results = Results::default();
    for row in rows {
        let mut course = Course::new(&run, row.name, &mut results);
        if let Err(error) = (row.measure)(&mut course) {
            course.fail(Peer::Depotfs, &error)?;
        }
        // What a row has left on the disk is nothing to the next one.
        let _ = fs::remove_dir_all(run.scratch.join("disk"));
        args.write(&results)?;
    }
    print!("{}", report::tables(&results));
    let ours = results.figures.troubles().iter().filter(|trouble| trouble.peer == Peer::Depotfs).count();
    ensure!(ours == 0, "depotfs failed in {ours} rows");
    Ok(())
}

impl Args {
    /// Writes what there is so far: a long run may be ended early.
    fn write(&self, results: &Results) -> Result<()> {
        let write = |path: &Path, text: String| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        if let Some(path) = &self.markdown {
            write(path, report::tables(results))?;
        }
        if let Some(path) = &self.json {
            write(path, report::json_lines(results))?;
        }
        Ok(())
    }
}
