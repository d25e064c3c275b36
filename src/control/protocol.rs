//! What is said on the control socket.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text;

/// Version of the protocol; a peer of another one is told so and not served.
pub const VERSION: u32 = 1;

/// Longest line either side accepts as a request.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// What a command asks of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Everything `depotfs status` shows.
    Status,
    /// Prometheus text.
    Metrics,
    /// Seal and force what is closed; `wait`: answer when done.
    Flush {
        /// Answer when done, not when begun.
        wait: bool,
    },
    /// Wait until the queue is empty; the answer is what is left in it.
    Drain {
        /// How long.
        how: Drain,
    },
    /// Put every blob where the shards' configuration wants it.
    Balance,
    /// Read depot.toml again.
    Reload,
    /// Names of the repositories with their settings.
    RepoList,
    /// Settings of one repository.
    RepoShow {
        /// Its name.
        repository: Bytes,
    },
    /// Change settings of one repository.
    RepoSet {
        /// Its name.
        repository: Bytes,
        /// Key and new value, `None` to go back to the default.
        settings: Vec<(String, Option<String>)>,
    },
    /// Where the bytes are and which paths show them.
    BlobLocate {
        /// Which.
        target: Target,
    },
    /// Read all bytes and compare with the checksum.
    BlobVerify {
        /// Which.
        target: Target,
    },
    /// Send the bytes.
    BlobCat {
        /// Which.
        target: Target,
    },
    /// All checksums; a file not yet sealed is sealed first.
    BlobChecksum {
        /// Which.
        target: Target,
    },
    /// Without a target: list what was set aside. With one: send its bytes.
    BlobRescue {
        /// A path, or the name of a file set aside.
        target: Option<Target>,
    },
    /// Copy the blobs to the chain that the depot is to have.
    Rechain,
    /// Fetch files into the cache.
    Warm {
        /// Files and directories.
        targets: Vec<Target>,
    },
    /// How full the cache is.
    CacheStatus,
    /// Take blobs out of the cache.
    CacheDrop {
        /// Files, directories and checksums; none: everything that nobody has open.
        targets: Vec<Target>,
    },
    /// How large the cache should be.
    CacheAdvise,
    /// From now on log at this level.
    LogLevel {
        /// A level or a filter expression.
        level: String,
    },
}

/// How long somebody waits for the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// Until it is empty.
    UntilEmpty,
    /// For as long as the end of a mount does. An unmount comes next, which then waits no more.
    BeforeUnmount,
    /// Not at all, and neither does the unmount that comes next.
    Not,
}

/// What a `blob` command is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// SHA-1, 40 hex digits.
    Checksum(String),
    /// A path from the root of the tree.
    Tree(Bytes),
    /// A path from the root of the mount, which `subdir` may have placed deeper.
    Mount(Bytes),
    /// The name of a file that was set aside.
    Aside(String),
}

/// A name or path: any bytes. A JSON string where it is UTF-8, else an array of numbers; shown with its control characters
/// escaped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl Bytes {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Bytes::Text(text) => text.as_bytes(),
            Bytes::Raw(bytes) => bytes,
        }
    }

    /// The bytes as the system takes them.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Bytes {
        Bytes::from(OsString::from_vec(bytes.into()))
    }
}

impl From<OsString> for Bytes {
    fn from(name: OsString) -> Bytes {
        name.into_string().map_or_else(|name| Bytes::Raw(name.into_vec()), Bytes::Text)
    }
}

impl From<&OsStr> for Bytes {
    fn from(name: &OsStr) -> Bytes {
        Bytes::from(name.to_owned())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::shown(self.as_bytes()))
    }
}

/// Why the daemon did not do it; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It went wrong.
    Failed,
    /// The request makes no sense.
    Usage,
    /// There is no such thing.
    NotFound,
    /// Something else is using it.
    Busy,
    /// The caller may not.
    NotAllowed,
}

/// An error as the daemon tells it: a complete text for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What kind.
    pub cause: Cause,
    /// What was attempted, on what, why it failed, what to do.
    pub text: String,
}

impl Failure {
    /// A failure with this text.
    pub fn new(cause: Cause, text: impl Into<String>) -> Failure {
        Failure { cause, text: text.into() }
    }

    /// Something that went wrong with an error behind it: `what: error: its source: ...`.
    pub fn because(what: impl fmt::Display, error: &dyn std::error::Error) -> Failure {
        Failure::new(Cause::Failed, format!("{what}: {}", text::chain(error)))
    }
}

/// What the daemon answers when it did it.
pub enum Answer {
    /// A JSON value, whose shape belongs to the request.
    Value(Value),
    /// Bytes of a blob; exactly `length` of them follow the line.
    Bytes {
        /// How many.
        length: u64,
        /// Where they come from.
        from: Box<dyn Read + Send>,
    },
}

impl Answer {
    /// An answer that says nothing but that it was done.
    pub fn done() -> Answer {
        Answer::Value(Value::Null)
    }

    /// Any serialisable thing as the answer.
    pub fn of(value: &impl Serialize) -> Result<Answer, Failure> {
        match serde_json::to_value(value) {
            Ok(value) => Ok(Answer::Value(value)),
            Err(error) => Err(Failure::because("the answer cannot be written as JSON", &error)),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Value(value) => write!(f, "Value({value})"),
            Answer::Bytes { length, .. } => write!(f, "Bytes({length})"),
        }
    }
}

/// A request as a line.
#[derive(Serialize)]
struct Envelope<'a> {
    v: u32,
    #[serde(flatten)]
    request: &'a Request,
}

/// A line of the daemon.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    /// One line of news while the client waits.
    Progress(String),
    /// The end, well.
    Ok(Value),
    /// The end, well: so many bytes follow.
    Bytes(u64),
    /// The end, not well.
    Error(Failure),
}

/// The line for a request, with its newline.
pub(super) fn encode(request: &Request) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, request })?;
    line.push(b'\n');
    Ok(line)
}

/// The request in a line; the failure says what is wrong with it.
pub(super) fn decode(line: &[u8]) -> Result<Request, Failure> {
    let wrong = |why: String| Failure::new(Cause::Usage, why);
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| wrong(format!("the request is not a line of JSON: {error}")))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(wrong(format!(
                "the request is of protocol version {version}, this daemon speaks {VERSION}: use the depotfs program it \
                 was started with"
            )));
        }
        None => return Err(wrong(format!("the request has no version: add \"v\": {VERSION}"))),
    }
    serde_json::from_value(value)
        .map_err(|error| wrong(format!("the request is not known or not complete: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_request_survives_the_wire() {
        let target = || Target::Tree(Bytes::from(&b"a/\xff"[..]));
        let repository = || Bytes::Text("libs".into());
        for request in [
            Request::Status,
            Request::Metrics,
            Request::Flush { wait: true },
            Request::Drain { how: Drain::UntilEmpty },
            Request::Drain { how: Drain::BeforeUnmount },
            Request::Balance,
            Request::Reload,
            Request::RepoList,
            Request::RepoShow { repository: repository() },
            Request::RepoSet {
                repository: repository(),
                settings: vec![("a".into(), None), ("b".into(), Some("c".into()))],
            },
            Request::BlobLocate { target: Target::Checksum("da39".into()) },
            Request::BlobVerify { target: Target::Mount(Bytes::Text("x".into())) },
            Request::BlobCat { target: target() },
            Request::BlobChecksum { target: target() },
            Request::BlobRescue { target: None },
            Request::BlobRescue { target: Some(Target::Aside("12".into())) },
            Request::Rechain,
            Request::Warm { targets: vec![target()] },
            Request::CacheStatus,
            Request::CacheDrop { targets: vec![target(), Target::Checksum("da39".into())] },
            Request::CacheAdvise,
            Request::LogLevel { level: "debug".into() },
        ] {
            let line = encode(&request).unwrap();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(decode(&line).unwrap(), request);
        }
    }

    #[test]
    fn the_wire_format_is_fixed() {
        let line = String::from_utf8(encode(&Request::Flush { wait: false }).unwrap()).unwrap();
        assert_eq!(line, "{\"v\":1,\"request\":\"flush\",\"wait\":false}\n");
        let line = serde_json::to_string(&Line::Error(Failure::new(Cause::NotFound, "x"))).unwrap();
        assert_eq!(line, "{\"error\":{\"cause\":\"not-found\",\"text\":\"x\"}}");
        assert_eq!(serde_json::to_string(&Line::Ok(Value::Null)).unwrap(), "{\"ok\":null}");
    }

    #[test]
    fn bad_requests_are_explained() {
        for (line, part) in [
            (&b"hello"[..], "not a line of JSON"),
            (b"{}", "no version"),
            (b"[1]", "no version"),
            (b"{\"v\":2,\"request\":\"status\"}", "version 2"),
            (b"{\"v\":1,\"request\":\"explode\"}", "explode"),
            (b"{\"v\":1,\"request\":\"flush\"}", "wait"),
            (b"{\"v\":1}", "request"),
        ] {
            let failure = decode(line).unwrap_err();
            assert_eq!(failure.cause, Cause::Usage);
            assert!(failure.text.contains(part), "{}", failure.text);
        }
    }

    /// Objects that are nearly requests.
    fn nearly() -> impl Strategy<Value = String> {
        let words = vec![
            "\"status\"",
            "\"repo-set\"",
            "\"blob-cat\"",
            "\"blob-rescue\"",
            "\"flush\"",
            "\"log-level\"",
            "null",
            "true",
            "1",
            "-1",
            "1e999",
            "18446744073709551616",
            "\"\"",
            "\"\\ud800\"",
            "[]",
            "[1,255,256]",
            "{\"tree\":\"a\"}",
            "{\"checksum\":\"zz\"}",
            "{\"mount\":[1,2]}",
            "{\"aside\":[]}",
            "[[\"a\",null]]",
            "{}",
            "[[[[[[[[[[]]]]]]]]]]",
        ];
        let keys = vec!["v", "request", "target", "wait", "repository", "settings", "level", "request"];
        let pair = (proptest::sample::select(keys), proptest::sample::select(words));
        proptest::collection::vec(pair, 1..6).prop_map(|pairs| {
            let pairs: Vec<String> = pairs.iter().map(|(key, word)| format!("\"{key}\":{word}")).collect();
            format!("{{\"v\":1,{}}}", pairs.join(","))
        })
    }

    proptest! {
        #[test]
        fn what_is_nearly_a_request_is_one_or_explained(text in nearly()) {
            match decode(text.as_bytes()) {
                Ok(request) => prop_assert_eq!(decode(&encode(&request).unwrap()).unwrap(), request),
                Err(failure) => prop_assert!(failure.cause == Cause::Usage && failure.text.contains("request")),
            }
        }

        #[test]
        fn no_line_of_the_daemon_makes_the_client_panic(text in "[a-z{}\":\\[\\]0-9,]{0,40}") {
            let _ = serde_json::from_str::<Line>(&text);
        }

        #[test]
        fn no_line_makes_the_decoder_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&line);
        }

        #[test]
        fn any_name_survives(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let request = Request::RepoShow { repository: Bytes::from(&name[..]) };
            let Request::RepoShow { repository } = decode(&encode(&request).unwrap()).unwrap() else { panic!() };
            prop_assert_eq!(repository.as_bytes(), &name[..]);
        }
    }
}
