//! Files and trees that the rows work with: the same bytes in every run.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;

/// Bytes that neither repeat nor compress.
#[derive(Debug)]
pub struct Noise(u64);

impl Noise {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// Writes so many bytes of noise in calls of `call` bytes, and closes the file.
pub fn write_noise(path: &Path, seed: u64, len: u64, call: usize) -> Result<()> {
    let mut file = File::create(path)?;
    write_to(&mut file, seed, len, call)
}

/// The same into an open file.
pub fn write_to(file: &mut File, seed: u64, len: u64, call: usize) -> Result<()> {
    // One block, changed a little for each call: making noise must not be what is measured.
    let mut block = Noise::new(seed).bytes(call);
    let mut written = 0;
    while written < len {
        let n = call.min((len - written) as usize);
        block[..8].copy_from_slice(&written.to_le_bytes());
        file.write_all(&block[..n])?;
        written += n as u64;
    }
    Ok(())
}

/// Reads a whole file in calls of the buffer's size.
pub fn read_whole(path: &Path, buffer: &mut [u8]) -> Result<u64> {
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        match file.read_at(buffer, at)? {
            0 => return Ok(at),
            n => at += n as u64,
        }
    }
}

/// The name of the n-th file; 20 bytes.
pub fn name(n: u64) -> String {
    format!("file-{n:015}")
}

/// Makes `count` files of `len` bytes, each with content of its own; 16 bytes or more to differ from other seeds.
pub fn make_files(dir: &Path, count: u64, len: usize, seed: u64) -> Result<Vec<PathBuf>> {
    let mut bytes = Noise::new(seed).bytes(len);
    let mut paths = Vec::new();
    for n in 0..count {
        let path = dir.join(name(n));
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        let mut file = File::create_new(&path)?;
        file.write_all(&bytes)?;
        paths.push(path);
    }
    Ok(paths)
}

/// A number that no other run had: content made from it is no blob yet.
pub fn unique() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_nanos() as u64)
}

/// A file of C: some functions that call each other, and every header.
fn c_source(module: u64, functions: u64) -> String {
    let mut noise = Noise::new(module + 1);
    let mut text = String::from("#include \"common.h\"\n\n");
    for f in 0..functions {
        let (a, b) = (noise.below(1000), noise.below(1000));
        text += &format!(
            "/* Part {f} of module {module}. */\nint module_{module}_part_{f}(int x)\n{{\n\
             \tint sum = {a};\n\tfor (int i = 0; i < x; i++)\n\t\tsum += (i * {b}) ^ (sum >> 3);\n\
             \tif (sum % 7 == 0)\n\t\tprintf(\"%d\\n\", sum);\n\treturn sum;\n}}\n\n"
        );
    }
    text
}

/// A tree of sources: `count` files in directories of about twenty, from 1 to 12 KiB each.
pub fn make_sources(root: &Path, count: u64) -> Result<()> {
    for n in 0..count {
        let dir = root.join(format!("part-{:02}/module-{:03}", n / 400, n / 20 % 20));
        if n % 20 == 0 {
            fs::create_dir_all(&dir)?;
        }
        fs::write(dir.join(format!("source_{n:05}.c")), c_source(n, 4 + n % 40))?;
    }
    Ok(())
}

/// A C project of `count` sources with a Makefile, and a program at its end.
pub fn make_project(root: &Path, count: u64) -> Result<()> {
    fs::create_dir_all(root)?;
    let mut header = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    let mut main = String::from("#include \"common.h\"\nint main(void)\n{\n\tint sum = 0;\n");
    for n in 0..count {
        fs::write(root.join(format!("module_{n}.c")), c_source(n, 12))?;
        header += &format!("int module_{n}_part_0(int x);\n");
        main += &format!("\tsum += module_{n}_part_0(sum);\n");
    }
    fs::write(root.join("common.h"), header)?;
    fs::write(root.join("main.c"), main + "\treturn sum == 42;\n}\n")?;
    let makefile = "objects := $(patsubst %.c,%.o,$(wildcard *.c))\n\
                    program: $(objects)\n\tcc -o $@ $^\n\
                    %.o: %.c common.h\n\tcc -O1 -c -o $@ $<\n";
    Ok(fs::write(root.join("Makefile"), makefile)?)
}
