//! Where log lines go and which of them.
//!
//! In the foreground they go to standard error: with a priority for journald when that is what listens, with times otherwise.
//! In the background they go to `depotfs.log`, which SIGHUP opens again after a rotation, or to syslog. What the crates
//! below say through `log` comes the same way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::{MakeWriter, time::SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{self, LogTo};
use crate::sys::process;

/// Overrides the level of depot.toml.
pub const VARIABLE: &str = "DEPOTFS_LOG";

/// Name of the log file in its directory.
pub const FILE: &str = "depotfs.log";

/// What can be changed about logging while the daemon runs.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    file: Option<Arc<LogFile>>,
}

/// Starts logging for the rest of the process.
pub fn start(log: &config::Log, background: bool) -> anyhow::Result<Logging> {
    let (filter, handle) = reload::Layer::new(first_filter(log)?);
    let registry = tracing_subscriber::registry().with(filter);
    let plain = fmt::layer().with_ansi(false);
    let mut file = None;
    match (background, log.to) {
        (false, _) if is_journal() => {
            registry.with(plain.without_time().with_level(false).with_writer(Journal)).try_init()
        }
        (false, _) => registry.with(plain.with_timer(SystemTime).with_writer(io::stderr)).try_init(),
        (true, LogTo::Syslog) => {
            registry.with(plain.without_time().with_level(false).with_writer(Syslog::new())).try_init()
        }
        (true, LogTo::File) => {
            let opened = Arc::new(LogFile::open(log.dir.join(FILE))?);
            file = Some(Arc::clone(&opened));
            registry.with(plain.with_timer(SystemTime).with_writer(opened)).try_init()
        }
    }
    .context("logging cannot be started")?;
    Ok(Logging { filter: handle, file })
}

impl Logging {
    /// From now on this level or filter expression.
    pub fn set_level(&self, level: &str) -> anyhow::Result<()> {
        self.filter.reload(filter(level)?).context("the log level cannot be changed")
    }

    /// Opens the log file again under its name, for standard error as well; without a file there is nothing to do.
    pub fn reopen(&self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.reopen()?;
        process::errors_go_to(&file.file.lock()).context("standard error cannot follow the log")
    }

    /// A descriptor of the log file, for what writes to standard error behind our back (a panic, SQLite).
    pub fn standard_error(&self) -> Option<File> {
        self.file.as_ref()?.file.lock().try_clone().ok()
    }
}

/// The filter at the start: the variable's, else that of depot.toml.
fn first_filter(log: &config::Log) -> anyhow::Result<EnvFilter> {
    match std::env::var(VARIABLE) {
        Ok(level) => filter(&level).with_context(|| format!("the variable {VARIABLE} cannot be used")),
        Err(_) => filter(&log.level).context("log.level in depot.toml cannot be used"),
    }
}

/// The filter for a level; the crates below are quieter unless they are named.
fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    config::keys::Kind::LogFilter.check(level).map_err(anyhow::Error::msg)?;
    let whole = if level.contains(['=', ',']) { level.to_owned() } else { format!("error,depotfs={level}") };
    EnvFilter::try_new(&whole).with_context(|| format!("\"{level}\" is no log filter"))
}

/// The log file; every line is one write at its end, so a rotation by renaming loses none.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    fn open(path: PathBuf) -> anyhow::Result<LogFile> {
        let file = Mutex::new(append(&path)?);
        Ok(LogFile { path, file })
    }

    fn reopen(&self) -> anyhow::Result<()> {
        *self.file.lock() = append(&self.path)?;
        Ok(())
    }
}

fn append(path: &Path) -> anyhow::Result<File> {
    let open = || -> io::Result<File> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o640).open(path)
    };
    open().with_context(|| format!("the log {} cannot be opened: set log.dir in depot.toml", path.display()))
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full disk must not stop the daemon, nor make it complain to nobody.
        let _ = self.file.lock().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether standard error is the journal's stream, as systemd.exec(5) tells it.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(errors) = fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", errors.dev(), errors.ino())
}

/// Priority of a level, as syslog(3) counts.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Standard error with a priority before each line.
struct Journal;

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Prefixed<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Prefixed { prefix: "<6>".into(), to: io::stderr() }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        Prefixed { prefix: format!("<{}>", priority(about.level())), to: io::stderr() }
    }
}

/// The system's log on /dev/log; connected anew for each line, so that its restart is no obstacle.
struct Syslog {
    tag: String,
}

impl Syslog {
    fn new() -> Syslog {
        Syslog { tag: format!("depotfs[{}]: ", std::process::id()) }
    }

    fn line(&self, priority: u8) -> Prefixed<Datagram> {
        const DAEMON: u8 = 3 << 3;
        Prefixed { prefix: format!("<{}>{}", DAEMON | priority, self.tag), to: Datagram }
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Prefixed<Datagram>;

    fn make_writer(&'a self) -> Self::Writer {
        self.line(6)
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        self.line(priority(about.level()))
    }
}

/// Sends what is written as one datagram; with nobody there it is lost, as with syslog(3).
struct Datagram;

impl Write for Datagram {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.trim_ascii_end(), "/dev/log"));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a prefix and a line at once.
struct Prefixed<W> {
    prefix: String,
    to: W,
}

impl<W: Write> Write for Prefixed<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let whole = [self.prefix.as_bytes(), line].concat();
        self.to.write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_file_follows_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log").join(FILE);
        let log = LogFile::open(path.clone()).unwrap();
        (&log).write_all(b"one\n").unwrap();
        fs::rename(&path, path.with_extension("1")).unwrap();
        (&log).write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        (&log).write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(path.with_extension("1")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(path).unwrap(), "three\n");
    }

    #[test]
    fn levels_become_filters_that_keep_the_crates_below_quiet() {
        assert_eq!(filter("debug").unwrap().to_string(), "depotfs=debug,error");
        assert_eq!(filter("depotfs::index=trace").unwrap().to_string(), "depotfs::index=trace");
        assert!(filter("loud").is_err());
    }

    #[test]
    fn a_line_gets_its_priority_in_the_same_write() {
        let mut line = Prefixed { prefix: "<3>".into(), to: Vec::new() };
        line.write_all(b"text\n").unwrap();
        assert_eq!(line.to, b"<3>text\n");
        assert_eq!((priority(&Level::ERROR), priority(&Level::TRACE)), (3, 7));
    }
}
