//! Finds messages in a byte stream that may hold anything in between.
//!
//! ```text
//!   …garbage… | length, big-endian | { json } | length | { torso of a mess | length | { json } | …
//!              a message                        dropped once it stalls       a message
//! ```
//!
//! Pure: bytes in, messages out, and a word from outside when the stream has stalled. Whatever is no message is
//! skipped byte by byte until something is. Invariant: never holds more than one longest message and one chunk.

use control::agent::{FromAgent, REGION_PAGES_MAX};

/// The longest message, in bytes: a registration of the most pages, 20 digits and a comma each, and room for the rest.
const MESSAGE_BYTES_MAX: usize = REGION_PAGES_MAX * 21 + 1024;

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct Deframer {
    received: Vec<u8>,
}

impl Deframer {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Nothing has come for a while: a message that is not complete now never will be.
    pub fn stalled(&mut self) {
        if !self.received.is_empty() {
            self.skip();
        }
    }

    /// The next message, if one is complete.
    #[allow(clippy::should_implement_trait)] // an iterator would promise that the end is the end
    pub fn next(&mut self) -> Option<FromAgent> {
        loop {
            let body_len = self.promising()?;
            let end = LENGTH_BYTES + body_len;
            let body = self.received.get(LENGTH_BYTES..end)?;
            match serde_json::from_slice(body) {
                Ok(message) => {
                    self.received.drain(..end);
                    return Some(message);
                }
                Err(_) => self.skip(),
            }
        }
    }

    /// Moves on to where a message may begin; its length, if that is there already.
    fn promising(&mut self) -> Option<usize> {
        let could_begin = |at: usize| {
            let bytes = &self.received[at..];
            match bytes.first_chunk::<LENGTH_BYTES>() {
                None => bytes[0] == 0, // the first byte of a permitted length; the rest is still to come
                Some(len) => {
                    let len = u32::from_be_bytes(*len) as usize;
                    (2..=MESSAGE_BYTES_MAX).contains(&len) && bytes.get(LENGTH_BYTES).is_none_or(|&byte| byte == b'{')
                }
            }
        };
        let begin = (0..self.received.len()).find(|&at| could_begin(at)).unwrap_or(self.received.len());
        self.received.drain(..begin);
        self.received.first_chunk().map(|len| u32::from_be_bytes(*len) as usize)
    }

    fn skip(&mut self) {
        self.received.drain(..1);
    }
}

// A length starts with a zero byte: what `promising` takes for granted.
const _: () = assert!(MESSAGE_BYTES_MAX < 1 << 24);

#[cfg(test)]
mod tests {
    use control::Hello;
    use control::agent::Registration;
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &FromAgent) -> Vec<u8> {
        let body = serde_json::to_vec(message).unwrap();
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    fn hello() -> FromAgent {
        FromAgent::Hello(Hello::new("agent"))
    }

    #[test]
    fn a_message_after_the_torso_of_another_is_found_once_it_stalls() {
        let pages = (0..1000).collect();
        let long = framed(&FromAgent::Register(Registration { name: "cb".into(), len: 4096, pages, writable: false }));
        let mut deframer = Deframer::default();
        deframer.push(&long[..long.len() / 2]);
        assert_eq!(deframer.next(), None);
        deframer.push(&framed(&hello()));
        assert_eq!(deframer.next(), None, "it may still be the rest of the long one");
        deframer.stalled();
        assert_eq!(deframer.next(), Some(hello()));
        deframer.push(&long);
        assert!(matches!(deframer.next(), Some(FromAgent::Register(_))));
        assert_eq!(deframer.next(), None);
    }

    #[test]
    fn the_longest_registration_fits() {
        let pages = vec![u64::MAX; REGION_PAGES_MAX];
        let longest = FromAgent::Register(Registration { name: "x".repeat(32), len: u64::MAX, pages, writable: false });
        let mut deframer = Deframer::default();
        deframer.push(&framed(&longest));
        assert_eq!(deframer.next(), Some(longest));
    }

    proptest! {
        #[test]
        fn garbage_delays_a_message_and_never_eats_it(
            garbage in prop::collection::vec(prop_oneof![Just(0u8), Just(b'{'), any::<u8>()], 0..200),
            cut in 1..40usize,
        ) {
            let mut deframer = Deframer::default();
            let stream = [garbage, framed(&hello())].concat();
            let mut found = None;
            for chunk in stream.chunks(cut) {
                deframer.push(chunk);
                found = found.or(deframer.next());
            }
            for _ in 0..stream.len() {
                if found.is_none() {
                    deframer.stalled();
                    found = deframer.next();
                }
            }
            prop_assert_eq!(found, Some(hello()));
            prop_assert!(deframer.received.len() <= stream.len());
        }
    }
}
