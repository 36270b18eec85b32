//! A link that remembers what was read through it: the evidence behind a decision, and the source of small test images.

use crate::image::Image;
use crate::{LinkError, PAGE_BYTES, Read, RemoteAddr, RemoteRead};

/// What one read asked for and how it went; the bytes are in the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    /// Address that was read.
    pub at: RemoteAddr,
    /// Bytes asked for.
    pub len: usize,
    /// Number of the batch it travelled in: the round trip.
    pub round: usize,
    /// Whether bytes came back.
    pub ok: bool,
}

/// Passes reads on and records them.
#[derive(Debug)]
pub struct Trace<R> {
    inner: R,
    reads: Vec<Traced>,
    rounds: usize,
}

impl<R: RemoteRead> Trace<R> {
    /// Records what goes to `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, reads: Vec::new(), rounds: 0 }
    }

    /// The reads so far.
    pub fn reads(&self) -> &[Traced] {
        &self.reads
    }

    /// Batches so far: the round trips a walk cost.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Fetches every page that was touched, whole, into an image. Pages that cannot be read are left out.
    ///
    /// # Errors
    /// [`LinkError`] from the link underneath.
    pub fn into_image(mut self) -> Result<Image, LinkError> {
        let mut image = Image::new();
        for read in self.reads.iter().filter(|read| read.ok && read.len > 0) {
            let last = read.at.addr.saturating_add(read.len as u64 - 1) / PAGE_BYTES;
            for number in read.at.addr / PAGE_BYTES..=last {
                if image.holds(number) {
                    continue;
                }
                let mut page = [0; PAGE_BYTES as usize];
                let at = RemoteAddr::new(read.at.key, number * PAGE_BYTES);
                if self.inner.read_one(at, &mut page)?.is_ok() {
                    image.insert(number, &page);
                }
            }
        }
        Ok(image)
    }
}

impl<R: RemoteRead> RemoteRead for Trace<R> {
    fn gap_bytes(&self) -> u64 {
        self.inner.gap_bytes()
    }

    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let result = self.inner.read(batch);
        let round = self.rounds;
        self.rounds += 1;
        self.reads.extend(batch.iter().map(|read| Traced {
            at: read.at,
            len: read.into.len(),
            round,
            ok: result.is_ok() && read.outcome.is_ok(),
        }));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RemoteKey;

    #[test]
    fn the_image_of_a_trace_replays_it() {
        let mut memory = Image::new();
        memory.write_at(0x3000, b"seen");
        memory.write_at(0x9000, b"not seen");
        let at = RemoteAddr::new(RemoteKey::new(1), 0x3000);
        let mut trace = Trace::new(memory);
        let mut bytes = [0; 4];
        trace.read_one(at, &mut bytes).unwrap().unwrap();
        assert_eq!((trace.rounds(), trace.reads().len()), (1, 1));
        let mut replay = trace.into_image().unwrap();
        let mut again = [0; 4];
        replay.read_one(at, &mut again).unwrap().unwrap();
        assert_eq!(&again, b"seen");
        assert_eq!(replay.page_numbers().collect::<Vec<_>>(), [3]);
    }
}
