//! Machines that were fenced a moment ago, by their addresses: what hangs together is evacuated together, and a spare
//! need not wait for the answers of clients that cannot give any.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after its fence a machine counts as absent. One that was fenced earlier may have been reset since and speak
/// again before it is watched; it is asked like everybody else, which costs ten milliseconds of silence.
const ABSENT: Duration = Duration::from_secs(1);

/// Shared by the spares of all targets.
#[derive(Debug, Default)]
pub struct Absent(Mutex<HashMap<String, Fenced>>);

#[derive(Debug)]
struct Fenced {
    since: Instant,
    addresses: Vec<IpAddr>,
}

impl Absent {
    /// Notes that a target was fenced at `now`.
    pub fn fenced(&self, target: &str, addresses: Vec<IpAddr>, now: Instant) {
        self.locked().insert(target.to_owned(), Fenced { since: now, addresses });
    }

    /// Notes that it may speak again.
    pub fn back(&self, target: &str) {
        self.locked().remove(target);
    }

    /// The addresses of all others that have just been fenced.
    pub fn beside(&self, target: &str, now: Instant) -> Vec<IpAddr> {
        let all = self.locked();
        let others = all.iter().filter(|(name, fenced)| *name != target && now - fenced.since < ABSENT);
        others.flat_map(|(_, fenced)| fenced.addresses.iter().copied()).collect()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Fenced>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_absent_for_the_others_while_its_fence_is_fresh() {
        let (absent, now) = (Absent::default(), Instant::now());
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        absent.fenced("a", vec![address], now);
        assert_eq!(absent.beside("b", now), [address]);
        assert!(absent.beside("a", now).is_empty(), "its own clients do not come from itself");
        assert_eq!(absent.beside("b", now + ABSENT - Duration::from_millis(1)), [address]);
        assert!(absent.beside("b", now + ABSENT).is_empty());
        absent.back("a");
        assert!(absent.beside("b", now).is_empty());
    }
}
