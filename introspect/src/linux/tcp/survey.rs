//! Connections whose send queues are measured and located, and fetching those bytes later, for whom they are wanted.
//!
//! What a client is to be asked, and most of a socket, can be made without the bytes that wait to be sent to it. Of
//! some hundred connections they may be as much as everything else a hundred times over.

use remote_memory::{LinkError, RemoteKey, RemoteRead};

use super::TcpSocket;
use super::payload::{self, Runs, Slice};
use crate::memory::Memory;
use crate::{Damage, Kernel};

/// The connections of a machine, with the places of what they had still to send.
#[derive(Debug, Default)]
pub struct Survey {
    /// The connections. Segments of send queues have their numbers and no bytes.
    pub sockets: Vec<TcpSocket>,
    /// What was wrong with the table; each socket carries its own.
    pub damage: Vec<Damage>,
    /// By number of the socket.
    pub(super) queued: Vec<Vec<Stretch>>,
}

/// The bytes of one segment: a part of one buffer.
#[derive(Debug)]
pub(super) struct Stretch {
    pub runs: Runs,
    pub skip: u32,
    pub take: usize,
}

impl Survey {
    /// Bytes in the send queue of socket `number`.
    pub fn queued_bytes(&self, number: usize) -> usize {
        self.queued.get(number).map_or(0, |stretches| stretches.iter().map(|stretch| stretch.take).sum())
    }

    /// Reads the send queues of the sockets `numbers`, in one round; `None` for one that cannot be read whole.
    ///
    /// # Errors
    /// [`LinkError`] if the path to the memory failed.
    pub fn read_queued(
        &self,
        kernel: &Kernel,
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        numbers: &[usize],
    ) -> Result<Vec<Option<Vec<u8>>>, LinkError> {
        let fetched = self.fetch(kernel, mem, ram, numbers)?;
        Ok(fetched.into_iter().map(|(bytes, whole)| whole.then_some(bytes)).collect())
    }

    /// As [`Survey::read_queued`]; what could not be read is zero, and the flag says so.
    pub(super) fn fetch(
        &self,
        kernel: &Kernel,
        mem: &mut dyn RemoteRead,
        ram: RemoteKey,
        numbers: &[usize],
    ) -> Result<Vec<(Vec<u8>, bool)>, LinkError> {
        let mut memory = Memory::new(mem, ram, &kernel.space.extents);
        let mut fetched: Vec<_> = numbers.iter().map(|number| (vec![0; self.queued_bytes(*number)], true)).collect();
        let (mut slices, mut owners) = (Vec::new(), Vec::new());
        for (owner, (number, (bytes, whole))) in numbers.iter().zip(&mut fetched).enumerate() {
            let Some(stretches) = self.queued.get(*number) else {
                *whole = false;
                continue;
            };
            let mut rest = bytes.as_mut_slice();
            for Stretch { runs, skip, take } in stretches {
                let (into, later) = rest.split_at_mut(*take);
                slices.push(Slice { runs, skip: *skip, into });
                owners.push(owner);
                rest = later;
            }
        }
        for slice in payload::fetch(kernel, &mut memory, slices)? {
            fetched[owners[slice]].1 = false;
        }
        Ok(fetched)
    }
}
