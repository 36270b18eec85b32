//! A guest's RAM file as a link, for examples that look at a machine from its host.

use std::fs;

use anyhow::Context;
use introspect::Extent;
use remote_memory::{AccessError, LinkError, Read, RemoteRead};

/// A RAM file, read into memory. Guest-physical address and file offset are taken to be the same, which on QEMU's q35
/// holds below 2 GiB.
#[derive(Debug)]
pub struct RamFile(Vec<u8>);

impl RamFile {
    pub fn open(path: &str) -> anyhow::Result<Self> {
        fs::read(path).map(Self).with_context(|| format!("cannot read {path}"))
    }

    pub fn extent(&self) -> Extent {
        Extent { start: 0, len: self.0.len() as u64 }
    }
}

impl RemoteRead for RamFile {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        for read in batch {
            let start = usize::try_from(read.at.addr).unwrap_or(usize::MAX);
            let found = start.checked_add(read.into.len()).and_then(|end| self.0.get(start..end));
            read.outcome = found.map(|found| read.into.copy_from_slice(found)).ok_or(AccessError::Refused);
        }
        Ok(())
    }
}
