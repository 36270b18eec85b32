//! Socket filters (classic BPF): what is not for us is dropped before it is copied.
//!
//! A raw socket's filter sees the packet from the IP header on; ours have no options (others are dropped later), so
//! the places are fixed:
//!
//! ```text
//!   22 UDP destination port | 32 BTH byte 4, 33-35 destination queue pair
//! ```

use socket2::SockFilter;

const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const UDP_DESTINATION_AT: u32 = 22;
const DEST_QP_AT: u32 = 32;
const DEST_QP_MASK: u32 = 0xff_ffff;
const WHOLE: u32 = u32::MAX;

/// Passes packets for UDP port `port`.
pub(super) fn for_port(port: u16) -> [SockFilter; 4] {
    [
        SockFilter::new(LOAD_HALF, 0, 0, UDP_DESTINATION_AT),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from(port)),
        SockFilter::new(RETURN, 0, 0, WHOLE),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Passes packets for queue pair `number` on UDP port `port`: several queues can then share an address and a port.
pub(super) fn for_queue_pair(port: u16, number: u32) -> [SockFilter; 7] {
    [
        SockFilter::new(LOAD_HALF, 0, 0, UDP_DESTINATION_AT),
        SockFilter::new(JUMP_IF_EQUAL, 0, 4, u32::from(port)),
        SockFilter::new(LOAD_WORD, 0, 0, DEST_QP_AT),
        SockFilter::new(AND, 0, 0, DEST_QP_MASK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, number),
        SockFilter::new(RETURN, 0, 0, WHOLE),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Passes nothing.
pub(super) fn nothing() -> [SockFilter; 1] {
    [SockFilter::new(RETURN, 0, 0, 0)]
}
