//! Memory for the pieces of downloads, used again and again.
//!
//! A piece lives from the read of its content until the socket has taken it, so thousands a second come and go. Given
//! back to the allocator each time, they were what a server with boxes lost a third of its rate to: glibc returns the
//! end of a heap to the kernel as soon as 128 KiB of it are free, and whether a piece lies there is a matter of the
//! heap's layout. 200 000 page faults a second was the price, and each piece was filled with zeros besides.
//!
//! Only whole pieces are kept. What a piece still holds of another download is overwritten before anybody sees it:
//! [`filled`] hands out none that was not filled.

use bytes::Bytes;
use std::io;
use std::sync::{Mutex, MutexGuard};

/// Bytes per piece: enough to amortise a read, little enough to share one processor with other sessions.
pub const PIECE_BYTES: usize = 64 << 10;
/// Pieces kept for later: the number in use may change by so many before the allocator hears of it. 4 MiB, which a
/// small guest has to spare.
const KEPT_MAX: usize = 64;

static KEPT: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A piece on its way to a client.
struct Lent(Box<[u8]>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.0);
        let mut kept = kept();
        if kept.len() < KEPT_MAX {
            kept.push(piece);
        }
    }
}

fn kept() -> MutexGuard<'static, Vec<Box<[u8]>>> {
    KEPT.lock().expect("nobody panics with the pieces in hand")
}

/// `length` bytes, at most [`PIECE_BYTES`], as `fill` makes them: it has to fill all of them or fail.
///
/// # Errors
/// Those of `fill`.
pub fn filled(length: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
    if length != PIECE_BYTES {
        let mut piece = vec![0; length];
        fill(&mut piece)?;
        return Ok(piece.into());
    }
    let again = kept().pop();
    let mut piece = Lent(again.unwrap_or_else(|| vec![0; PIECE_BYTES].into_boxed_slice()));
    fill(&mut piece.0)?;
    Ok(Bytes::from_owner(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(byte: u8, length: usize) -> Bytes {
        let fill = |piece: &mut [u8]| {
            piece.fill(byte);
            Ok(())
        };
        filled(length, fill).unwrap()
    }

    #[test]
    fn no_piece_is_used_again_while_somebody_has_it() {
        let (one, two) = (of(1, PIECE_BYTES), of(2, PIECE_BYTES));
        let part = one.slice(7..9);
        drop(one);
        let three = of(3, PIECE_BYTES);
        assert_eq!(part, [1, 1].as_slice());
        assert!(two.iter().all(|byte| *byte == 2) && three.iter().all(|byte| *byte == 3));
    }

    #[test]
    fn pieces_are_kept_up_to_a_limit_and_failed_ones_too() {
        assert_eq!(of(1, 10).len(), 10);
        let many: Vec<_> = (0..2 * KEPT_MAX).map(|_| of(0, PIECE_BYTES)).collect();
        drop(many);
        assert!(!kept().is_empty() && kept().len() <= KEPT_MAX);
        assert!(filled(PIECE_BYTES, |_| Err(io::ErrorKind::UnexpectedEof.into())).is_err());
        assert_eq!(of(9, PIECE_BYTES), vec![9; PIECE_BYTES]);
    }
}
