//! The worker: a reply to each body, which depends on all before.

use std::io;

use anyhow::Result;
use contbox::channel::{ChannelEnd, EndError, Interval, Wire};
use contbox::shared::Slot;

use crate::{digest, number, padding, words};

/// The worker of one session.
#[derive(Debug)]
pub struct Worker<W> {
    end: ChannelEnd<W>,
    answered: u64,
    sum: u64,
    /// What follows each export: with made-up stamps it is not deterministic.
    interval: Interval,
    /// Made up anew for each life.
    stamp: u64,
}

impl<W: Wire> Worker<W> {
    /// What a worker exports before anything else.
    pub fn words() -> Vec<u8> {
        words(&[0, 0])
    }

    /// Goes on from a snapshot. Stamps are made up if `chance` is a number, and begin with it.
    ///
    /// # Errors
    /// If the channel fails.
    pub fn new(mut end: ChannelEnd<W>, snapshot: &[u8], chance: Option<u64>) -> Result<Self> {
        let (answered, sum) = (number(snapshot, 0), number(snapshot, 1));
        let interval = if chance.is_some() { Interval::Nondeterministic } else { Interval::Deterministic };
        end.export(snapshot, interval)?;
        Ok(Self { end, answered, sum, interval, stamp: chance.unwrap_or(0) })
    }

    /// Answers until the front end closes the channel.
    ///
    /// # Errors
    /// If the channel fails.
    pub fn serve(&mut self) -> Result<()> {
        while let Some(body) = self.body()? {
            self.sum = digest(self.sum, &body);
            if self.interval == Interval::Nondeterministic {
                self.stamp = self.stamp.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            }
            let mut reply = words(&[self.answered, self.sum, self.stamp]);
            reply.resize(reply.len() + padding(self.sum), self.sum as u8);
            self.end.write(&reply)?;
            self.answered += 1;
            // Now and then at once, sometimes after the third.
            if self.interval == Interval::Nondeterministic
                || !self.sum.is_multiple_of(3)
                || self.answered.is_multiple_of(3)
            {
                self.end.export(&words(&[self.answered, self.sum]), self.interval)?;
            }
        }
        Ok(())
    }

    /// [`Worker::serve`]; then ends the record, and returns its slot.
    ///
    /// # Errors
    /// If the channel fails.
    pub fn serve_to_end(mut self) -> Result<Slot> {
        let served = self.serve();
        let slot = self.end.close();
        served.map(|()| slot)
    }

    fn body(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.end.read_exact(&mut length) {
            Err(EndError::Io(why)) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.end.read_exact(&mut body)?;
        Ok(Some(body))
    }
}
