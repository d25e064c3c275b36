//! Bytes: read and written, in large and small pieces.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use crate::files::{self, MIB, Noise};
use crate::measure::{Measure, Run};
use crate::sys;

/// Size of a large file before scaling.
pub const LARGE: u64 = 1024 * MIB;

/// One large file.
pub fn prepare_large(run: &Run, dir: &Path) -> Result<()> {
    files::write_noise(&dir.join("large"), 1, run.scaled(LARGE), MIB as usize)
}

/// Reads the large file in order, at random and through a mapping.
pub fn read(m: &mut Measure<'_>) -> Result<()> {
    let path = m.site.shared().join("large");
    let mut buffer = vec![0; MIB as usize];
    m.first("read 1 GiB, cold", || files::read_whole(&path, &mut buffer))?;
    m.warm("read 1 GiB, warm", || files::read_whole(&path, &mut buffer))?;
    let file = File::open(&path)?;
    m.again("mmap of 1 GiB, warm", || Ok(sys::read_mapped(&file, &mut buffer[..4096])?))?;
    let (large, small) = (m.scaled(16_384), m.scaled(200_000));
    m.again("random 64 KiB reads, warm", || at_random(&file, &mut buffer[..65_536], large))?;
    m.again("random 4 KiB preads, warm", || at_random(&file, &mut buffer[..4096], small))
}

fn at_random(file: &File, buffer: &mut [u8], times: u64) -> Result<()> {
    let mut noise = Noise::new(times);
    let pieces = file.metadata()?.len() / buffer.len() as u64;
    for _ in 0..times {
        file.read_exact_at(buffer, noise.below(pieces) * buffer.len() as u64)?;
    }
    Ok(())
}

/// 10,000 files of 4 KiB.
pub fn prepare_small(run: &Run, dir: &Path) -> Result<()> {
    files::make_files(dir, run.scaled(10_000), 4096, 11).map(drop)
}

/// Opens, reads and closes each.
pub fn open(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.site.shared(), m.scaled(10_000));
    let paths: Vec<_> = (0..count).map(|n| dir.join(files::name(n))).collect();
    let mut buffer = vec![0; 4096];
    m.warm("open + read + close, warm", || {
        for path in &paths {
            File::open(path)?.read_exact_at(&mut buffer, 0)?;
        }
        Ok(())
    })
}

/// Writes a large file, and one in small pieces.
pub fn write(m: &mut Measure<'_>) -> Result<()> {
    let dir = m.fresh("write")?;
    let (large, small) = (m.scaled(LARGE), m.scaled(100_000_000));
    m.time("write 1 GiB + close", || {
        files::write_noise(&dir.join("large"), files::unique(), large, MIB as usize)
    })?;
    m.time("write 100 MB in 4 KiB calls + close", || {
        files::write_noise(&dir.join("small"), files::unique(), small, 4096)
    })?;
    Ok(fs::remove_dir_all(dir)?)
}

/// Files that live for less than a second, a hundred at a time.
pub fn short_lives(m: &mut Measure<'_>) -> Result<()> {
    let (dir, count) = (m.fresh("short")?, m.scaled(10_000));
    let mut bytes = Noise::new(files::unique()).bytes(100 * 1024);
    let mut buffer = vec![0; 128 * 1024];
    let hashed = |m: &Measure<'_>| m.depot().map(|depot| depot.metric("depotfs_hashed_bytes_total"));
    m.site.settle()?;
    let before = hashed(m).transpose()?.flatten();
    m.time("write, read, delete 100 KiB", || {
        for batch in 0..count.div_ceil(100) {
            let batch: Vec<u64> = (batch * 100..count.min(batch * 100 + 100)).collect();
            for n in &batch {
                bytes[..8].copy_from_slice(&n.to_le_bytes());
                fs::write(dir.join(files::name(*n)), &bytes)?;
            }
            for n in &batch {
                files::read_whole(&dir.join(files::name(*n)), &mut buffer)?;
            }
            for n in &batch {
                fs::remove_file(dir.join(files::name(*n)))?;
            }
        }
        Ok(())
    })?;
    m.site.settle()?;
    if let (Some(before), Some(after)) = (before, hashed(m).transpose()?.flatten()) {
        m.bytes("bytes hashed of short-lived files", after - before);
    }
    Ok(())
}
