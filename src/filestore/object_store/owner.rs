//! Whose a bucket's prefix is: its object `.depotfs` carries the depot's id, as the file of that name in a directory does.
//!
//! It is made with the empty blob when the prefix is first reached, and a file of the provider's directory remembers that:
//! from then on a bucket without it is another bucket, or one that was emptied, and nothing is put there.

use std::io::Write as _;
use std::sync::Arc;

use ::object_store::path::Path as Key;
use ::object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use super::super::error::{Doing, Error, Result};
use super::super::volume::{HERE, MARKER, Volume};
use super::calls::{Kind, Server};
use crate::checksum::{hex, unhex};

/// The file that says that the prefix was made.
const MADE: &str = "made";

/// See above.
#[derive(Debug)]
pub(super) struct Owner {
    depot_id: [u8; 16],
    key: Key,
    empty: Key,
    volume: Arc<Volume>,
    /// The prefix was seen to be this depot's.
    known: Mutex<bool>,
}

impl Owner {
    /// `key`: of the object that says so; `empty`: of the empty blob.
    pub(super) fn new(depot_id: [u8; 16], key: Key, empty: Key, volume: Arc<Volume>) -> Owner {
        Owner { depot_id, key, empty, volume, known: Mutex::new(false) }
    }

    /// The key of the object that says whose the prefix is.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Refuses a prefix that is another depot's, or that is not the one that was made; once it is known, nothing is asked.
    pub(super) fn must_be_ours(&self, server: &Server) -> Result<()> {
        let mut known = self.known.lock();
        if *known {
            return Ok(());
        }
        match self.found(server)? {
            Some(id) if id == self.depot_id => {}
            Some(id) => {
                let (found, expected) = (hex(&id), hex(&self.depot_id));
                return Err(Error::Foreign { dir: self.place(server).into(), found, expected });
            }
            None if self.volume.stat(MADE)?.is_some() => {
                return Err(self.not_ours(
                    server,
                    format!(
                        "it has no object {MARKER}, which it had before: is it the bucket and the path that it was?"
                    ),
                ));
            }
            None => return self.make(server).map(|()| *known = true),
        }
        self.remember()?;
        *known = true;
        Ok(())
    }

    /// The id that the prefix carries.
    fn found(&self, server: &Server) -> Result<Option<[u8; 16]>> {
        let request = server.request("read", &self.key);
        let read = async { server.store.get(&self.key).await?.bytes().await };
        match server.wait(server.ask(&request, 0, read)) {
            Ok(text) => {
                let no_id = || self.not_ours(server, format!("its object {MARKER} holds no id"));
                unhex::<16>(String::from_utf8_lossy(&text).trim_end()).map(Some).ok_or_else(no_id)
            }
            Err(failure) if failure.kind == Kind::Absent => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Claims the prefix for the depot, with the empty blob in it.
    fn make(&self, server: &Server) -> Result<()> {
        let id = format!("{}\n", hex(&self.depot_id));
        for (key, bytes) in [(&self.key, id.into_bytes()), (&self.empty, Vec::new())] {
            let request = server.request("make", key);
            let payload = PutPayload::from(bytes);
            let put = |mode| {
                let options = PutOptions { mode, ..PutOptions::default() };
                server.wait(server.ask(&request, 0, server.store.put_opts(key, payload.clone(), options)))
            };
            match put(PutMode::Create) {
                Ok(_) => {}
                // Another host has just claimed it; whose it is is looked at below.
                Err(failure) if matches!(failure.kind, Kind::Stands | Kind::Replaced) => {}
                Err(failure) if failure.kind == Kind::Unknown => drop(put(PutMode::Overwrite)?),
                Err(failure) => return Err(failure.into()),
            }
        }
        match self.found(server)? {
            Some(id) if id == self.depot_id => self.remember(),
            _ => Err(self.not_ours(server, "another depot has claimed it at the same time".into())),
        }
    }

    /// Notes durably that the prefix was made.
    fn remember(&self) -> Result<()> {
        if self.volume.stat(MADE)?.is_some() {
            return Ok(());
        }
        let mut made = self.volume.create_file(MADE, 0o444)?;
        made.write_all(b"The bucket has the object that says whose it is.\n")
            .and_then(|()| made.sync_all())
            .doing("write", self.volume.at(MADE))?;
        self.volume.force_folder(HERE)
    }

    /// The prefix as it is told to people.
    pub(super) fn place(&self, server: &Server) -> String {
        let whole = format!("{}/{}", server.address, self.key);
        whole.strip_suffix(MARKER).map_or(whole.as_str(), |place| place.trim_end_matches('/')).to_owned()
    }

    fn not_ours(&self, server: &Server, why: String) -> Error {
        Error::NotADepotDirectory { dir: self.place(server).into(), why }
    }
}
