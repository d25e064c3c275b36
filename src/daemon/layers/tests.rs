//! Every template keeps the laws of the trait, as it is and with faults below.
//!
//! In the place of a bucket stands a directory that plays one, with its caches, queues and retries before it; real servers
//! have the laws in `filestore::object_store`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::rooms::make_directories;
use crate::config::chain::{NAMES, TEMPLATES, Template};
use crate::config::{Config, Values};
use crate::filestore::laws::{hold_for, hold_under_faults};
use crate::filestore::{Filestore, Provider, open_chain};

const ID: &str = "07070707070707070707070707070707";

/// A mounted chain; its workers end with it.
struct Chain {
    store: Filestore,
    dir: tempfile::TempDir,
}

impl Chain {
    /// The template's, with `faulty` over what keeps the blobs.
    fn of(template: &Template) -> Chain {
        let dir = tempfile::tempdir().unwrap();
        let (leaf, over) = template.chain.split_last().unwrap();
        let is_far = over.contains(&"retry");
        let leaf = if is_far { "file-system" } else { *leaf };
        let names: Vec<&str> = over.iter().copied().chain(["faulty", leaf]).collect();
        let mut values = Values::from([("id", ID.to_owned()), ("chain", names.join(","))]);
        template.defaults.iter().for_each(|(key, value)| values.insert(*key, (*value).into()));
        if is_far {
            values.insert("faulty.remote", "true".into());
            values.insert("retry.interval", "1ms".into());
        }
        let config = Config::build(dir.path(), &values).unwrap();
        make_directories(&config, &mut Vec::new()).unwrap();
        let layers = super::of(&config).unwrap();
        layers.iter().for_each(|layer| layer.create([7; 16]).unwrap());
        let store = open_chain(&layers, [7; 16]).unwrap();
        store.start(true).unwrap();
        Chain { store, dir }
    }

    fn provider(&self) -> Arc<dyn Provider> {
        self.store.provider()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.store.stop(Instant::now() + Duration::from_secs(20));
    }
}

fn set_faults(dir: &Path, rules: &str) {
    let part = dir.join("faulty.part");
    std::fs::write(&part, rules).unwrap();
    std::fs::rename(&part, dir.join("faulty.control")).unwrap();
}

#[test]
fn the_laws_hold() {
    assert!(TEMPLATES.iter().map(|template| template.name).eq(NAMES.iter().copied()));
    for template in TEMPLATES {
        hold_for(|| {
            let chain = Chain::of(template);
            let provider = chain.provider();
            (chain, provider)
        });
    }
}

#[test]
fn with_faults_below_what_was_answered_holds() {
    let faults =
        "put=fail%20\nput=disconnect%20\nremove=fail%10\nremove=disconnect%20\nlist=fail%20\n*=delay:1%5";
    for template in TEMPLATES {
        for seed in 0..3 {
            let chain = Chain::of(template);
            let set = |on: bool| set_faults(chain.dir.path(), if on { faults } else { "" });
            hold_under_faults(&*chain.provider(), &set, seed);
        }
    }
}
