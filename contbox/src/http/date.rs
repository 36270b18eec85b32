//! `Date` as a header. Formatting a time costs as much as an export, and responses of one second share it.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;

use super::exchange::unix_seconds;

thread_local! {
    /// What this thread said last, and its second.
    static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// The header's value for a time, which has no fractions of a second in it.
pub(super) fn header(date: SystemTime) -> HeaderValue {
    let second = unix_seconds(date);
    LAST.with_borrow_mut(|last| match last {
        Some((known, value)) if *known == second => value.clone(),
        _ => {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            let value = HeaderValue::try_from(text).expect("a date is ASCII");
            *last = Some((second, value.clone()));
            value
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own_value_whenever_it_is_asked_for() {
        let at = |millis| header(UNIX_EPOCH + Duration::from_millis(millis));
        for _ in 0..2 {
            assert_eq!(at(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
            assert_eq!(at(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
            assert_eq!(at(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
        }
    }
}
