//! The front end: bodies to the worker, replies to the client.

use anyhow::{Result, ensure};
use contbox::channel::{ChannelEnd, Interval, Wire};

use crate::outside::{Answer, Outside};
use crate::{DEPTH, EXPORT_EVERY, body, number, padding, words};

/// The front end of one session.
#[derive(Debug)]
pub struct Front<W> {
    end: ChannelEnd<W>,
    outside: Outside,
    asked: u64,
    answered: u64,
    /// Answers of this session that the client had when it went on here.
    known: u64,
}

impl<W: Wire> Front<W> {
    /// What a front end exports before anything else; `outside` is the number of its client's slot.
    pub fn words(outside: u32) -> Vec<u8> {
        words(&[0, 0, outside.into()])
    }

    /// The slot of the client, as a snapshot says.
    pub fn outside_of(words: &[u8]) -> u32 {
        number(words, 2) as u32
    }

    /// Goes on from a snapshot; `outside` has what the client has.
    pub fn new(end: ChannelEnd<W>, snapshot: &[u8], outside: Outside) -> Self {
        let known = outside.count();
        Self { end, outside, asked: number(snapshot, 0), answered: number(snapshot, 1), known }
    }

    /// Serves until the client has `answers`.
    ///
    /// # Errors
    /// If the channel fails, or the worker says something else than it should.
    pub fn serve(&mut self, answers: u64) -> Result<()> {
        while self.outside.count() < answers {
            while self.asked < self.answered + DEPTH {
                let body = body(self.asked);
                self.end.write(&(body.len() as u32).to_le_bytes())?;
                self.end.write(&body)?;
                self.asked += 1;
            }
            let answer = reply(&mut self.end, self.answered)?;
            self.answered += 1;
            // What was answered before the machine stopped is not said again.
            if self.answered > self.known {
                self.outside.tell(answer);
            }
            if self.answered.is_multiple_of(EXPORT_EVERY) {
                let slot = self.outside.slot().index();
                self.end.export(&words(&[self.asked, self.answered, slot.into()]), Interval::Deterministic)?;
            }
        }
        Ok(())
    }
}

/// The worker's next reply, which is to be number `due`.
///
/// # Errors
/// If the channel fails, or the worker says something else than it should.
pub(crate) fn reply<W: Wire>(end: &mut ChannelEnd<W>, due: u64) -> Result<Answer> {
    let mut fixed = [0; 24];
    end.read_exact(&mut fixed)?;
    let answer = Answer { number: number(&fixed, 0), sum: number(&fixed, 1), stamp: number(&fixed, 2) };
    let mut rest = vec![0; padding(answer.sum)];
    end.read_exact(&mut rest)?;
    let is_next = answer.number == due && rest.iter().all(|byte| *byte == answer.sum as u8);
    ensure!(is_next, "reply {} where {due} was due", answer.number);
    Ok(answer)
}
