//! The golden text of a recorded machine: which connections it held, and what that implies for each of them.
//!
//! Everything here comes from the text alone, by rules of its own: nothing of the code that is judged is asked. A FIN
//! has a place in sequence space and in the kernel's counters, but is no byte of the stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;

pub type Ends = (SocketAddr, SocketAddr);

/// One connection in the golden text.
#[derive(Clone, Debug)]
pub struct Golden {
    pub state: String,
    pub accepted: bool,
    pub orphaned: bool,
    pub fin_queued: bool,
    pub fin_received: bool,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub rcv_wup: u32,
    pub rcv_wnd: u32,
    bytes_acked: u64,
    bytes_received: u64,
    /// Length and checksum of each segment of the send queue.
    pub sending: Vec<(usize, u64)>,
    /// Whether a segment of the send queue ends with our FIN.
    fin_in_queue: bool,
    /// Length and checksum of the receive queue.
    pub receiving: (usize, u64),
}

/// Where an evacuation has to put a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Goes on from its box.
    FromBox,
    /// Goes on from its beginning.
    Anew,
    /// Needs no application any more.
    ToItsEnd,
    /// Lost: its application knew what nobody wrote down.
    NoBox,
}

impl Golden {
    pub fn place(&self, has_box: bool) -> Place {
        match self.state.as_str() {
            _ if !self.accepted => Place::Anew,
            _ if self.orphaned => Place::ToItsEnd,
            _ if has_box => Place::FromBox,
            "FinWait1" | "FinWait2" | "Closing" | "LastAck" => Place::ToItsEnd,
            _ if self.read() == 0 && self.written() == 0 && !self.saw_end() => Place::Anew,
            _ => Place::NoBox,
        }
    }

    /// Bytes that the client sent, read or not.
    pub fn received(&self) -> u64 {
        self.bytes_received - u64::from(self.fin_received)
    }

    /// Bytes that the application has read.
    pub fn read(&self) -> u64 {
        self.received() - self.receiving.0 as u64
    }

    /// Bytes that the client has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.bytes_acked - u64::from(self.is_fin_acknowledged())
    }

    /// Bytes that the application has written.
    pub fn written(&self) -> u64 {
        self.acknowledged() + self.sending.iter().map(|(len, _)| *len as u64).sum::<u64>()
    }

    fn is_fin_acknowledged(&self) -> bool {
        self.fin_queued && !self.fin_in_queue
    }

    /// Whether the application has read to the client's FIN.
    fn saw_end(&self) -> bool {
        self.fin_received && self.copied_seq == self.rcv_nxt
    }

    /// Sequence numbers of the first byte that is not acknowledged, and after the last that was written.
    pub fn unacknowledged(&self) -> (u32, u32) {
        let begin = self.snd_una.wrapping_sub(self.is_fin_acknowledged().into());
        (begin, self.write_seq.wrapping_sub(self.fin_queued.into()))
    }

    /// The sequence number after the last byte received.
    pub fn input_end(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.fin_received.into())
    }
}

/// The connections of the text that end on one of our `ports`.
pub fn parse(text: &str, ports: &[u16]) -> BTreeMap<Ends, Golden> {
    let mut found: BTreeMap<Ends, Golden> = BTreeMap::new();
    let mut open = None;
    for line in text.lines() {
        if line.starts_with("TcpSocket {") {
            let ends: Ends = (field(line, "local"), field(line, "peer"));
            open = ports.contains(&ends.0.port()).then_some(ends);
            if open.is_some() {
                assert!(found.insert(ends, connection(line)).is_none(), "{ends:?} twice");
            }
        } else if let Some(here) = open.and_then(|ends| found.get_mut(&ends)) {
            queue(here, line);
        }
    }
    found
}

fn connection(line: &str) -> Golden {
    Golden {
        state: field(line, "state"),
        accepted: field(line, "accepted"),
        orphaned: field(line, "orphaned"),
        fin_queued: field(line, "fin_queued"),
        fin_received: field(line, "fin_received"),
        snd_una: field(line, "snd_una"),
        snd_nxt: field(line, "snd_nxt"),
        write_seq: field(line, "write_seq"),
        rcv_nxt: field(line, "rcv_nxt"),
        copied_seq: field(line, "copied_seq"),
        rcv_wup: field(line, "rcv_wup"),
        rcv_wnd: field(line, "rcv_wnd"),
        bytes_acked: field(line, "bytes_acked"),
        bytes_received: field(line, "bytes_received"),
        sending: Vec::new(),
        fin_in_queue: false,
        receiving: (0, 0),
    }
}

fn queue(here: &mut Golden, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    match words[..] {
        ["received", len, "bytes", sum] => here.receiving = (len.parse().unwrap(), hex(sum)),
        [_, len, "bytes", sum, "sent", _, "fin", fin] => {
            here.sending.push((len.parse().unwrap(), hex(sum)));
            here.fin_in_queue |= fin.parse::<bool>().unwrap();
        }
        _ => {}
    }
}

fn field<T: FromStr>(line: &str, name: &str) -> T {
    let (_, rest) = line.split_once(&format!(" {name}: ")).unwrap();
    let (value, _) = rest.split_once([',', ' ']).unwrap();
    value.parse().unwrap_or_else(|_| panic!("{name} in {line}"))
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}

/// FNV-1a, as the golden text has it; `sum` is what came before.
pub fn fnv(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub const FNV_EMPTY: u64 = 0xcbf2_9ce4_8422_2325;
