//! Ranges and conditions of requests (RFC 9110, sections 13 and 14): which bytes are meant, as pure functions.

use std::ops::Range;

/// Which part of a representation a GET asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it: no range, or one that may be ignored (several ranges, an unknown unit).
    Whole,
    /// One stretch.
    Stretch(Range<u64>),
    /// A range that lies outside.
    Unsatisfiable,
}

/// Reads a `Range` header for a representation of `length` bytes.
pub fn part(header: Option<&str>, length: u64) -> Part {
    let Some(ranges) = header.and_then(|value| value.trim().strip_prefix("bytes=")) else { return Part::Whole };
    let Some((first, last)) = ranges.trim().split_once('-').filter(|_| !ranges.contains(',')) else {
        return Part::Whole;
    };
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let stretch = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.is_empty() => first..length,
        (None, Some(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Part::Whole,
    };
    if stretch.is_empty() { Part::Unsatisfiable } else { Part::Stretch(stretch) }
}

/// Where an upload's body belongs, as `Content-Range` says it: `bytes FIRST-LAST/TOTAL`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Offset of the body's first byte.
    pub first: u64,
    /// Length of the finished file.
    pub total: u64,
}

/// Reads a `Content-Range` header; `None` if it makes no sense for a body of `body_bytes`.
pub fn placed(header: &str, body_bytes: u64) -> Option<Placed> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    let sound = first <= last && last < total && last - first == body_bytes.checked_sub(1)?;
    sound.then_some(Placed { first, total })
}

/// Whether an `If-None-Match` or `If-Match` list names `etag`.
pub fn names_etag(list: &str, etag: &str) -> bool {
    list.trim() == "*" || list.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_mean_what_the_rfc_says() {
        let check = |header, expected| assert_eq!(part(Some(header), 100), expected, "{header}");
        check("bytes=0-9", Part::Stretch(0..10));
        check("bytes=90-", Part::Stretch(90..100));
        check("bytes=-10", Part::Stretch(90..100));
        check("bytes=-1000", Part::Stretch(0..100));
        check("bytes=50-1000", Part::Stretch(50..100));
        check("bytes=100-", Part::Unsatisfiable);
        check("bytes=-0", Part::Unsatisfiable);
        check("bytes=9-3", Part::Whole);
        check("bytes=0-1,5-6", Part::Whole);
        check("lines=1-2", Part::Whole);
        check("bytes=+1-2", Part::Whole);
        assert_eq!(part(None, 100), Part::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }

    #[test]
    fn content_ranges_have_to_fit_the_body() {
        assert_eq!(placed("bytes 10-19/100", 10), Some(Placed { first: 10, total: 100 }));
        for wrong in ["bytes 10-19/100", "bytes 10-20/15", "bytes */100", "10-20/100"] {
            assert_eq!(placed(wrong, 11), None, "{wrong}");
        }
    }

    #[test]
    fn etag_lists_are_searched() {
        assert!(names_etag("\"a\", W/\"b\"", "\"b\"") && names_etag("*", "\"x\"") && !names_etag("\"a\"", "\"b\""));
    }
}
