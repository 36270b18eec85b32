//! The database on a machine of its own. It is taken to be fault-tolerant, so nothing ever happens to it.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow, bail};
use auction::database::Server;

use super::tier::{CONNECTIONS, DATABASE, DATABASE_PORT};
use crate::topology::{Place, service_v4};

/// Connections of everybody but the mid tiers: generator, check, an administrator.
const CONNECTIONS_OF_OTHERS: u32 = 10;
/// Both mid tiers, and once more: what a dead one had is held until somebody ends it.
const MID_TIERS: u32 = 3;

/// A server that runs in a place; dropping it ends it.
#[derive(Debug)]
pub(super) struct Database {
    /// Its Unix socket, as PostgreSQL's clients write it: the same in every place.
    pub(super) address: String,
    folder: PathBuf,
    stop: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<Result<()>>>,
}

impl Database {
    /// Starts it. The server ends with the thread that started it, so one in the place keeps it.
    pub(super) fn start(place: Place, folder: &Path) -> Result<Self> {
        let (started, when_started) = mpsc::channel();
        let (stop, when_stopped) = mpsc::channel();
        let at = folder.to_owned();
        let keeper = thread::spawn(move || {
            let listen = (service_v4(DATABASE), DATABASE_PORT).into();
            place.run(move || {
                let server = Server::start(&at, Some(listen), CONNECTIONS * MID_TIERS + CONNECTIONS_OF_OTHERS)?;
                let _ = started.send(server.address());
                // Until it is stopped, or nobody is left who could.
                let _ = when_stopped.recv();
                Ok(())
            })
        });
        match when_started.recv() {
            Ok(address) => Ok(Self { address, folder: folder.to_owned(), stop: Some(stop), keeper: Some(keeper) }),
            Err(_) => {
                keeper.join().map_err(|_| anyhow!("the thread of PostgreSQL panicked"))??;
                bail!("PostgreSQL ended at once")
            }
        }
    }

    /// Where its log is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.keeper.take().map(JoinHandle::join);
    }
}
