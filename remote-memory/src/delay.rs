//! A link that is as slow as you say, in virtual time: pure tests see round trips without waiting for them.

use std::time::Duration;

use crate::{LinkError, Read, RemoteRead};

/// Adds a cost per batch and per byte to a virtual clock.
#[derive(Debug)]
pub struct Delay<R> {
    inner: R,
    per_round: Duration,
    per_kib: Duration,
    elapsed: Duration,
}

impl<R: RemoteRead> Delay<R> {
    /// Charges `per_round` for each batch and `per_kib` for each 1024 bytes of it.
    pub fn new(inner: R, per_round: Duration, per_kib: Duration) -> Self {
        Self { inner, per_round, per_kib, elapsed: Duration::ZERO }
    }

    /// Virtual time spent so far.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl<R: RemoteRead> RemoteRead for Delay<R> {
    fn gap_bytes(&self) -> u64 {
        self.inner.gap_bytes()
    }

    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let bytes: usize = batch.iter().map(|read| read.into.len()).sum();
        self.elapsed += self.per_round + self.per_kib.mul_f64(bytes as f64 / 1024.0);
        self.inner.read(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;
    use crate::{RemoteAddr, RemoteKey};

    #[test]
    fn a_batch_costs_one_round() {
        let mut memory = Image::new();
        memory.write_at(0, &[0; 4096]);
        let mut link = Delay::new(memory, Duration::from_micros(10), Duration::from_micros(1));
        let (mut a, mut b) = ([0; 512], [0; 512]);
        let at = |addr| RemoteAddr::new(RemoteKey::new(1), addr);
        link.read(&mut [Read::new(at(0), &mut a), Read::new(at(512), &mut b)]).unwrap();
        assert_eq!(link.elapsed(), Duration::from_micros(11));
    }
}
