//! `Date` as a header. Formatting a time costs as much as an export, and responses of one second share it.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use nix::time::{ClockId, clock_gettime};

/// The first second that a `Date` cannot say.
const YEAR_10000: u64 = 253_402_300_800;

thread_local! {
    /// What this thread said last, and its second.
    static LAST: RefCell<Option<(Second, HeaderValue)>> = const { RefCell::new(None) };
}

/// Seconds since 1970: all that a `Date` has of a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Second(u64);

impl Second {
    /// This one. By the clock of the kernel's last tick: others cost many times as much, and are no better here.
    pub(super) fn now() -> Self {
        let since = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(0, |time| time.tv_sec());
        Self(u64::try_from(since).unwrap_or(0).min(YEAR_10000 - 1))
    }

    pub(super) fn to_le_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// `None` if no `Date` could say it.
    pub(super) fn from_le_bytes(bytes: [u8; 8]) -> Option<Self> {
        Some(Self(u64::from_le_bytes(bytes))).filter(|second| second.0 < YEAR_10000)
    }

    /// When it began.
    pub(super) fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }

    /// The header's value.
    pub(super) fn header(self) -> HeaderValue {
        LAST.with_borrow_mut(|last| match last {
            Some((known, value)) if *known == self => value.clone(),
            _ => {
                let text = httpdate::fmt_http_date(self.time());
                let value = HeaderValue::try_from(text).expect("a date is ASCII");
                *last = Some((self, value.clone()));
                value
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own_value_whenever_it_is_asked_for() {
        for _ in 0..2 {
            assert_eq!(Second(784_111_777).header(), "Sun, 06 Nov 1994 08:49:37 GMT");
            assert_eq!(Second(784_111_778).header(), "Sun, 06 Nov 1994 08:49:38 GMT");
        }
    }

    #[test]
    fn a_second_lags_behind_the_time_by_a_tick_at_most() {
        let (second, now) = (Second::now().time(), SystemTime::now());
        let behind = now.duration_since(second).unwrap();
        assert!(behind < Duration::from_secs(60), "{behind:?}");
    }

    #[test]
    fn garbage_is_no_second() {
        assert_eq!(Second::from_le_bytes(YEAR_10000.to_le_bytes()), None);
        let last = Second::from_le_bytes((YEAR_10000 - 1).to_le_bytes()).unwrap();
        assert_eq!(last.header(), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(Second::from_le_bytes(7u64.to_le_bytes()), Some(Second(7)));
    }
}
