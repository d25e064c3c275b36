//! Section `[cache-fs]`.

use std::path::PathBuf;

use super::{Known, Problem, keys, parse_size};

/// What the section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFs {
    /// Its first directory, which also has what it remembers.
    pub dir: PathBuf,
    /// Further ones.
    pub further: Vec<PathBuf>,
    /// Room in all of them together, in bytes.
    pub bytes_max: u64,
    /// The largest blob that is cached; `None`: whatever has room.
    pub file_bytes_max: Option<u64>,
    /// Bytes that stay free on the disk of each directory.
    pub free_bytes_min: u64,
    /// Whether only reads fill it.
    pub skip_during_upload: bool,
}

impl CacheFs {
    pub(super) fn read(known: &Known<'_>) -> CacheFs {
        let size = |name: &str| parse_size(known.get(name)).unwrap_or_default();
        let further = known.values.tables("cache-fs.further").into_iter();
        CacheFs {
            dir: known.path("cache-fs.cache-provider-dir"),
            further: further.map(|i| known.path(&format!("cache-fs.further[{i}].dir"))).collect(),
            bytes_max: size("cache-fs.max-cache-size"),
            file_bytes_max: Some(size("cache-fs.max-file-size-limit")).filter(|limit| *limit > 0),
            free_bytes_min: size("cache-fs.min-free-space"),
            skip_during_upload: keys::parse_flag(known.get("cache-fs.skip-during-upload")).unwrap_or(false),
        }
    }

    /// What is wrong with the keys taken together.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (i, dir) in self.further.iter().enumerate() {
            if *dir == self.dir || self.further[..i].contains(dir) {
                let key = format!("cache-fs.further[{i}].dir");
                let text = format!("{key}: another directory of the cache is the same: name each once");
                problems.push(Problem::new(key, text));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Layer, Values};

    fn config(settings: &[(&str, &str)]) -> Result<Config, String> {
        let mut values = Values::from([("id", "0".repeat(32)), ("template", "cache-fs".to_owned())]);
        settings.iter().for_each(|(key, value)| values.insert(*key, (*value).to_owned()));
        Config::build(Path::new("/d"), &values)
    }

    #[test]
    fn the_section_is_read() {
        let plain = config(&[]).unwrap();
        let Layer::CacheFs(cache) = &plain.chain[0] else { panic!("{plain:?}") };
        assert_eq!((cache.bytes_max, cache.file_bytes_max), (5_000_000_000, None));
        assert_eq!((cache.dir.to_str().unwrap(), cache.skip_during_upload), ("/d/cache", false));
        let set = config(&[
            ("cache-fs.cache-provider-dir", "/ssd/a"),
            ("cache-fs.further[0].dir", "/ssd/b"),
            ("cache-fs.max-cache-size", "2GiB"),
            ("cache-fs.max-file-size-limit", "10MB"),
            ("cache-fs.min-free-space", "1GB"),
            ("cache-fs.skip-during-upload", "true"),
        ]);
        let set = set.unwrap();
        let Layer::CacheFs(cache) = &set.chain[0] else { panic!("{set:?}") };
        assert_eq!((cache.bytes_max, cache.file_bytes_max), (2 << 30, Some(10_000_000)));
        assert_eq!((cache.free_bytes_min, cache.skip_during_upload), (1_000_000_000, true));
        let dirs: Vec<&str> = set.chain[0].dirs().iter().map(|dir| dir.to_str().unwrap()).collect();
        assert_eq!(dirs, ["/ssd/a", "/ssd/b"]);
    }

    #[test]
    fn a_directory_is_named_once() {
        for same in ["cache", "/d/./cache"] {
            let why = config(&[("cache-fs.further[0].dir", same)]).unwrap_err();
            assert!(why.contains("cache-fs.further[0].dir"), "{why}");
        }
    }
}
