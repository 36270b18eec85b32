//! The agent's part of the table: what it is, and whose connections are kept. The kernel's programs keep nothing while
//! there is no header.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::layout::{MAGIC, PORTS_MAX, RING_BYTES, SLOT_BYTES, SLOTS_MAX, VERSION, checksum, header};

/// Why a header cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The memory is no table's.
    #[error("a table of {bytes} bytes: not 2 to {SLOTS_MAX} slots of {SLOT_BYTES} bytes")]
    Memory {
        /// Its length.
        bytes: usize,
    },
    /// More ports than there is room for.
    #[error("{count} ports; the table has room for {PORTS_MAX}")]
    TooManyPorts {
        /// How many.
        count: usize,
    },
}

/// Writes the header over the first words of a region. Connections that are kept go on being kept.
///
/// # Errors
/// See [`HeaderError`].
pub fn write(region: &[AtomicU64], ports: &[u16]) -> Result<(), HeaderError> {
    let bytes = size_of_val(region);
    let slots = bytes / SLOT_BYTES as usize;
    if bytes != slots * SLOT_BYTES as usize || !(2..=SLOTS_MAX as usize).contains(&slots) {
        return Err(HeaderError::Memory { bytes });
    }
    if ports.len() > PORTS_MAX {
        return Err(HeaderError::TooManyPorts { count: ports.len() });
    }
    let [version, slots] = [(VERSION, SLOT_BYTES), (slots as u32, RING_BYTES)].map(|(low, high)| halves(low, high));
    let place = [MAGIC, version, slots];
    let store = |index: usize, value: u64| region[index].store(value, Ordering::Relaxed);
    // Nobody is let in while the ports change.
    store(header::PORTS_COUNT, 0);
    fence(Ordering::SeqCst);
    for (word, ports) in (header::PORTS..header::WORDS).zip(ports.chunks(4).chain(std::iter::repeat(&[][..]))) {
        store(word, ports.iter().rev().fold(0, |word, port| word << 16 | u64::from(*port)));
    }
    store(header::VERSION, version);
    store(header::SLOTS, slots);
    store(header::CHECK, checksum(MAGIC, &place));
    fence(Ordering::SeqCst);
    store(header::PORTS_COUNT, ports.len() as u64);
    store(header::MAGIC, MAGIC);
    Ok(())
}

/// Connections for which there was no free slot since the table was made.
pub fn refused(region: &[AtomicU64]) -> u64 {
    region.get(header::REFUSED).map_or(0, |word| word.load(Ordering::Relaxed))
}

pub(crate) fn halves(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
