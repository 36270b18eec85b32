//! What belongs at which offset of which seed's content: the file server's own generator, run at the client's end.

/// Fills `buffer` with the content of `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    file_server::synthetic::fill(seed, offset, buffer);
}
