//! Names of requests. A front end names each request once, before anybody else sees it; with that name it may be sent
//! again, by this front end or by the one that takes its sessions over.
//!
//! Invariant: no two requests have the same name. A front end that starts draws a number of its own out of 2^64 and
//! counts from there; one that resumes a session keeps the session's name and does not count on another's number.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use rand::{TryRngCore, rngs::OsRng};

/// Name of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    /// One life of one front end.
    pub incarnation: u64,
    /// Requests of that life, from 1.
    pub counter: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:016x}-{}", self.incarnation, self.counter)
    }
}

/// Not the name of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 16 hexadecimal digits, a dash, and a number")]
pub struct Malformed;

impl FromStr for RequestId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (incarnation, counter) = text.split_once('-').ok_or(Malformed)?;
        let incarnation = incarnation_from(incarnation).ok_or(Malformed)?;
        Ok(Self { incarnation, counter: counter.parse().map_err(|_| Malformed)? })
    }
}

/// A number that no other life of a tier has.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_incarnation() -> std::io::Result<u64> {
    OsRng.try_next_u64().map_err(std::io::Error::other)
}

/// An incarnation out of its 16 digits.
pub fn incarnation_from(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

/// Where a front end's names come from.
#[derive(Debug)]
pub struct Names {
    incarnation: u64,
    given: AtomicU64,
}

impl Names {
    /// Of a new life.
    ///
    /// # Errors
    /// See [`new_incarnation`].
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { incarnation: new_incarnation()?, given: AtomicU64::new(0) })
    }

    /// The next one.
    pub fn next(&self) -> RequestId {
        let counter = self.given.fetch_add(1, Ordering::Relaxed) + 1;
        RequestId { incarnation: self.incarnation, counter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_life_differ_and_so_do_lives() {
        let (one, other) = (Names::new().unwrap(), Names::new().unwrap());
        let names = [one.next(), one.next(), other.next(), other.next()];
        let distinct: std::collections::HashSet<_> = names.into_iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn a_name_is_read_as_it_is_written_and_nothing_else_is_one() {
        let name = RequestId { incarnation: 0xab, counter: 7 };
        assert_eq!(name.to_string(), "00000000000000ab-7");
        assert_eq!(name.to_string().parse(), Ok(name));
        for wrong in ["", "-", "00000000000000ab", "ab-7", "00000000000000ab-", "00000000000000ab--7", "x-1"] {
            assert_eq!(wrong.parse::<RequestId>(), Err(Malformed), "{wrong:?}");
        }
    }
}
