//! From Artifactory's binarystore.xml to a depot.toml: what `depotfs config convert` does.
//!
//! [`table`] says what becomes of each template, provider type and parameter. Whatever has no place in a depot.toml is told,
//! with what to do about it: nothing is left out without a word.

mod table;
mod value;
mod xml;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use self::table::{As, Fate, Row};
use self::value::{Written, text};
use self::xml::Step;
use super::chain::TEMPLATES;
use super::keys::{self, Kind, brief};
use super::nearest::suggestion;
use super::{Problem, parse_duration, parse_size};
use crate::text::shown;

/// More bytes than any binarystore.xml has.
pub const BYTES_MAX: u64 = 1 << 20;

/// Where Artifactory keeps relative directories unless it is told otherwise.
const DATA_DIR: &str = "$JFROG_HOME/artifactory/var/data/artifactory";

/// Where Artifactory keeps its configuration.
const ETC_DIR: &str = "$JFROG_HOME/artifactory/var/etc/artifactory";
/// Hosts that need not be named.
const PUBLIC: &[&str] = &["amazonaws.com", "googleapis.com"];

/// A depot.toml, without the id of a depot.
#[derive(Debug)]
pub struct Converted {
    /// Its text; what was lost and noted stands in it as comments.
    pub text: String,
    /// What could not be carried over, with what to do.
    pub lost: Vec<String>,
    /// What is worth knowing and asks for nothing.
    pub notes: Vec<String>,
    /// What `config check` would tell of it.
    pub problems: Vec<Problem>,
}

/// What there is to say.
#[derive(Debug, Default)]
struct Told {
    lost: Vec<String>,
    notes: Vec<String>,
}

impl Told {
    fn lose(&mut self, what: String) {
        self.lost.push(shown(what.as_bytes()));
    }

    fn note(&mut self, what: String) {
        self.notes.push(shown(what.as_bytes()));
    }
}

/// Converts the text of a binarystore.xml; an error says why there is no chain in it.
pub fn convert(xml: &str) -> Result<Converted, String> {
    let mut told = Told::default();
    let steps = xml::read(xml, &mut told)?;
    let mut made = Made::default();
    steps.iter().for_each(|step| made.take(step, &mut told));
    let text = made.render(&told);
    let mut problems = match super::examine(Path::new("/"), &text) {
        Ok((_, problems)) => problems,
        Err(problem) => vec![problem],
    };
    // It is the depot's, which there may not be yet.
    problems.retain(|problem| problem.key != "id");
    Ok(Converted { text, lost: told.lost, notes: told.notes, problems })
}

/// A provider for people.
fn named(id: &str, kind: &str) -> String {
    match id == kind {
        true => format!("provider {}", brief(id)),
        false => format!("provider {} ({})", brief(id), brief(kind)),
    }
}

/// The depot.toml as it grows.
#[derive(Default)]
struct Made {
    providers: Vec<&'static str>,
    tables: Vec<Table>,
}

/// A heading with what stands below it.
type Table = (String, Vec<Line>);

/// A key with its value, and a remark above it.
struct Line {
    own: &'static str,
    text: String,
}

impl Made {
    /// Adds a provider of the chain.
    fn take(&mut self, step: &Step, told: &mut Told) {
        let name = named(&step.id, &step.kind);
        let Some(kind) = table::KINDS.iter().find(|kind| kind.name == step.kind) else {
            let kinds = table::KINDS.iter().map(|kind| kind.name);
            told.lose(format!("{name}: the type is not known{}", suggestion(&step.kind, kinds)));
            return;
        };
        if let Some(lost) = kind.lost {
            told.lose(format!("{name}: {lost}"));
        }
        let Some(provider) = kind.provider else { return };
        if self.providers.contains(&provider) {
            told.lose(format!(
                "{name}: the chain has a {provider} already, and none stands in a chain twice"
            ));
            return;
        }
        self.providers.push(provider);
        let mut lines: Vec<Line> = Vec::new();
        match provider {
            "file-system" => lines.extend(directory(step, "file-system.dir", told)),
            "cache-fs" => lines.extend(cache_directory(step, told)),
            "s3-storage-v3" | "google-storage" | "azure-blob-storage" => {
                lines.extend(endpoint(provider, step, told));
            }
            "sharding" => lines.extend(check_period(step, told)),
            _ => {}
        }
        lines.extend(step.names().into_iter().filter_map(|of| parameter(provider, step, of, told)));
        lines.extend(table::ROWS.iter().filter_map(|row| default(provider, step, row)));
        let mut keys = HashSet::new();
        // Two names for one thing: the first holds.
        lines.retain(|line| keys.insert(line.own));
        if !lines.is_empty() {
            self.tables.push((format!("[{provider}]"), lines));
        }
        for shard in &step.shards {
            self.tables.extend(shard_table(shard, told));
        }
    }

    fn render(&self, told: &Told) -> String {
        let mut text = String::from("# Made of a binarystore.xml by: depotfs config convert\n");
        for (heading, lines) in [("Not carried over:", &told.lost), ("Notes:", &told.notes)] {
            if !lines.is_empty() {
                // Writing to a String cannot fail, here and below.
                let _ = write!(text, "#\n# {heading}\n");
            }
            for line in lines {
                let _ = writeln!(text, "# - {line}");
            }
        }
        let template = TEMPLATES.iter().find(|template| template.chain == self.providers);
        let _ = match template {
            Some(template) => write!(text, "\ntemplate = \"{}\"\n", template.name),
            None => write!(text, "\nchain = {:?}\n", self.providers),
        };
        for (heading, lines) in &self.tables {
            let _ = writeln!(text, "\n{heading}");
            for line in lines {
                let _ = writeln!(text, "{}", line.text);
            }
        }
        text
    }
}

/// The line of a key, with a remark above it.
fn line(own: &'static str, value: &Written, remark: Option<String>) -> Line {
    let remark = remark.map(|remark| format!("# {remark}\n")).unwrap_or_default();
    Line { own, text: format!("{remark}{own} = {}", value.toml) }
}

/// What becomes of one parameter.
fn parameter(provider: &str, step: &Step, name: &str, told: &mut Told) -> Option<Line> {
    let whose = format!("{} of {}", brief(name), named(&step.id, &step.kind));
    let value = step.get(name)?;
    let Some(row) = table::row(provider, name) else {
        let begins =
            |family: &str| name.get(..family.len()).is_some_and(|start| start.eq_ignore_ascii_case(family));
        match table::FAMILIES.iter().find(|(family, _)| begins(family)) {
            Some((_, why)) => told.note(format!("{whose}: {why}")),
            None => {
                let known = table::ROWS.iter().filter(|row| row.provider == provider).map(|row| row.name);
                told.lose(format!("{whose}: the parameter is not known{}", suggestion(name, known)));
            }
        }
        return None;
    };
    match row.fate {
        Fate::Part => None,
        Fate::Needless(why) => {
            told.note(format!("{whose}: {why}"));
            None
        }
        Fate::Lost(what) => {
            told.lose(format!("{whose}: {what}"));
            None
        }
        Fate::Key(own, read) => {
            let key = format!("{provider}.{own}");
            let checked = read.read(value).and_then(|written| check(&key, &written).map(|()| written));
            match checked {
                Ok(written) => Some(line(own, &written, secret(&key, read, value, told))),
                Err(why) => {
                    told.lose(format!("{whose}: {why}: set {key}"));
                    None
                }
            }
        }
    }
}

/// Whether the table of keys takes the value. A key that is not in it is told by the check of the whole.
fn check(key: &str, written: &Written) -> Result<(), String> {
    keys::find(keys::DEPOT, key).map_or(Ok(()), |key| key.kind.check(&written.plain))
}

/// The warning above a secret that stands there for everybody to read.
fn secret(key: &str, read: As, value: &str, told: &mut Told) -> Option<String> {
    if !matches!(read, As::Secret) || value.contains("${") {
        return None;
    }
    told.note(format!(
        "{key} is a secret in plain text: keep the file to yourself, or take it from the environment"
    ));
    let variable = key.to_uppercase().replace(['-', '.'], "_");
    Some(format!(
        "A secret in plain text; better \"${{{variable}}}\", a variable of whoever starts the daemon."
    ))
}

/// The line that keeps what Artifactory does where nobody said anything, if here something else is done.
fn default(provider: &str, step: &Step, row: &Row) -> Option<Line> {
    let (Fate::Key(own, read), Some(theirs)) = (row.fate, row.default) else { return None };
    if row.provider != provider || step.get(row.name).is_some() {
        return None;
    }
    let theirs = read.read(theirs).ok()?;
    let key = keys::find(keys::DEPOT, &format!("{provider}.{own}")).ok()?;
    let differs = !key.default.is_some_and(|ours| is_equal(key.kind, ours, &theirs.plain));
    differs.then(|| line(own, &theirs, Some("Artifactory's default.".into())))
}

fn is_equal(kind: Kind, a: &str, b: &str) -> bool {
    match kind {
        Kind::Size => parse_size(a) == parse_size(b),
        Kind::Duration => parse_duration(a) == parse_duration(b),
        _ => a == b,
    }
}

/// The line for the directory of a file-system or of a shard, where one is named.
fn directory(step: &Step, key: &str, told: &mut Told) -> Option<Line> {
    let whose = named(&step.id, &step.kind);
    let (base, dir) = (step.get("baseDataDir"), step.get("fileStoreDir"));
    let whole = match (base, dir) {
        (_, Some(dir)) if dir.starts_with('/') => dir.to_owned(),
        (Some(base), _) if base.starts_with('/') => {
            format!("{}/{}", base.trim_end_matches('/'), dir.unwrap_or("filestore"))
        }
        (None, None) => {
            told.note(format!("{whose} names no directory, so {key} is one of the depot; Artifactory's is {DATA_DIR}/filestore"));
            return None;
        }
        (_, dir) => {
            let dir = dir.unwrap_or("filestore");
            told.lose(format!(
                "the directory of {whose}: {} is below Artifactory's data directory ({DATA_DIR}), and would be below the \
                 depot here: write the whole path as {key}",
                brief(dir)
            ));
            return key.contains("[]").then(|| line("dir", &text(dir), None));
        }
    };
    if whole.contains("${") || whole.contains('\0') {
        told.lose(format!("the directory of {whose}: write the path out as {key}, without variables"));
        return None;
    }
    told.note(format!("{key} is Artifactory's own directory: let only one of both remove blobs there"));
    Some(line("dir", &text(&whole), None))
}

/// The line for the directory of a cache. A relative one is Artifactory's way of saying nothing.
fn cache_directory(step: &Step, told: &mut Told) -> Option<Line> {
    let dir = step.get("cacheProviderDir")?;
    if dir.starts_with('/') && !dir.contains("${") {
        told.note(
            "cache-fs.cache-provider-dir is Artifactory's own cache: name another while it runs".into(),
        );
        return Some(line("cache-provider-dir", &text(dir), None));
    }
    told.note(format!(
        "cacheProviderDir {} is below Artifactory's data directory ({DATA_DIR}): the depot's own cache is used",
        brief(dir)
    ));
    None
}

/// The lines for the endpoint of an object store: it has a scheme and a port here, and a region may be in its name.
fn endpoint(provider: &str, step: &Step, told: &mut Told) -> Vec<Line> {
    if step.get("rootFoldersNameLength").is_some_and(|length| length != "2") {
        told.lose(
            "rootFoldersNameLength: objects are always in folders of two hex digits: rename them".into(),
        );
    }
    let says = |name: &str, word: &str| step.get(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
    if provider == "google-storage" && !says("useInstanceCredentials", "true") {
        told.lose(format!(
            "the file of the service account ({ETC_DIR}/gcp.credentials.json): set google-storage.service-account"
        ));
    }
    let Some(host) = step.get("endpoint") else { return Vec::new() };
    let bare = host.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    if PUBLIC.iter().any(|public| bare.ends_with(public)) {
        let region = bare.strip_prefix("s3.").or_else(|| bare.strip_prefix("s3-"));
        let region =
            region.and_then(|rest| rest.strip_suffix(".amazonaws.com")).filter(|rest| !rest.contains('.'));
        return match region {
            Some(region) if step.get("region").is_none() => vec![line("region", &text(region), None)],
            _ => Vec::new(),
        };
    }
    let plain = host.starts_with("http://") || says("useHttp", "true") || says("httpsOnly", "false");
    let scheme = if plain { "http" } else { "https" };
    let wrong = |why: &str| format!("endpoint: {why}: set {provider}.endpoint");
    let port = match step.get("port").or_else(|| step.get("httpsPort")) {
        Some(port) if port.parse::<u16>().is_err() => {
            told.lose(wrong(&format!("{} is no number of a port", brief(port))));
            String::new()
        }
        Some(port) if !bare.contains(':') => format!(":{port}"),
        _ => String::new(),
    };
    match As::Text.read(&format!("{scheme}://{bare}{port}")) {
        Ok(written) => vec![line("endpoint", &written, None)],
        Err(why) => {
            told.lose(wrong(&why));
            Vec::new()
        }
    }
}

/// The line for the check period of the shards, which is one for all of them here.
fn check_period(step: &Step, told: &mut Told) -> Option<Line> {
    let given = step.shards.iter().filter_map(|shard| shard.get("checkPeriod"));
    let read: Vec<Result<Written, String>> = given.map(|period| As::Milliseconds.read(period)).collect();
    let first = read.first()?;
    if read.iter().any(|other| other != first) {
        told.lose("the checkPeriod of all shards but the first: there is one for all of them".into());
    }
    match first {
        Ok(written) => Some(line("check-period", written, None)),
        Err(why) => {
            told.lose(format!("checkPeriod: {why}: set sharding.check-period"));
            None
        }
    }
}

/// The table of a shard, if it is a directory.
fn shard_table(shard: &Step, told: &mut Told) -> Option<Table> {
    let whose = named(&shard.id, &shard.kind);
    if !matches!(shard.kind.as_str(), "state-aware" | "file-system") {
        let lost = table::KINDS.iter().find(|kind| kind.name == shard.kind).and_then(|kind| kind.lost);
        told.lose(format!("shard {whose}: {}", lost.unwrap_or("a shard is a directory")));
        return None;
    }
    let mut lines = Vec::new();
    lines.extend(directory(shard, "sharding.shard[].dir", told));
    for name in shard.names() {
        match name {
            "baseDataDir" | "fileStoreDir" | "checkPeriod" => {}
            "tempDir" => told.note(format!("tempDir of {whose}: staging files are always in _pre")),
            "zone" | "writeEnabled" => lines.extend(shard_key(shard, name, told)),
            _ => told.lose(format!("{} of {whose}: the parameter is not known", brief(name))),
        }
    }
    Some(("[[sharding.shard]]".into(), lines))
}

fn shard_key(shard: &Step, name: &str, told: &mut Told) -> Option<Line> {
    let (own, read) = if name == "zone" { ("zone", As::Text) } else { ("write-enabled", As::Flag) };
    match read.read(shard.get(name)?) {
        Ok(written) => Some(line(own, &written, None)),
        Err(why) => {
            told.lose(format!("{name} of {}: {why}", named(&shard.id, &shard.kind)));
            None
        }
    }
}

#[cfg(test)]
mod tests;
