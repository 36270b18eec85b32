//! The machines recorded for introspect's tests: their pages, what was discovered in them while they lived, and the
//! golden text that says which connections they held.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

use introspect::Kernel;
use introspect::linux::tcp::{TcpFilter, TcpSocket, walk};
use remote_memory::RemoteKey;
use remote_memory::image::Image;

/// Ports of the recorded server; 7002 never accepts, so it has no application.
pub const PORTS: [u16; 5] = [7000, 7001, 7002, 7003, 7004];

pub type Ends = (SocketAddr, SocketAddr);

/// One machine.
pub struct Machine {
    pub kernel: Kernel,
    pub ram: Image,
    /// The server's connections as a look at the image itself shows them: what its application knew anyway.
    pub sockets: Vec<TcpSocket>,
    /// The same as the golden text has them: what is held against the outcome.
    pub golden: BTreeMap<Ends, Golden>,
}

/// One connection in the golden text.
#[derive(Clone, Debug)]
pub struct Golden {
    pub can_go_on: bool,
    pub accepted: bool,
    pub snd_una: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Length and checksum of each segment of the send queue.
    pub sending: Vec<(usize, u64)>,
    /// Length and checksum of the receive queue.
    pub receiving: (usize, u64),
}

static MACHINES: LazyLock<[Machine; 2]> =
    LazyLock::new(|| ["linux-6.1-5level", "linux-6.12-4level"].map(Machine::load));

/// Machine `number`, modulo how many there are.
pub fn machine(number: u64) -> &'static Machine {
    &MACHINES[(number % 2) as usize]
}

pub fn filter() -> TcpFilter {
    TcpFilter { addresses: Vec::new(), ports: PORTS.to_vec() }
}

impl Machine {
    fn load(name: &str) -> Self {
        let images = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../introspect/tests/images");
        let path = |suffix| images.join(format!("{name}.{suffix}"));
        let kernel: Kernel = serde_json::from_slice(&fs::read(path("kernel.json")).unwrap()).unwrap();
        let mut bytes = Vec::new();
        let packed = fs::File::open(path("image.xz")).unwrap();
        xz2::read::XzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        let mut ram = Image::load(&bytes[..]).unwrap();
        let (sockets, _) = walk(&kernel, &mut ram, RemoteKey::new(0), &filter()).unwrap();
        let golden = golden(&fs::read_to_string(path("golden.txt")).unwrap());
        Self { kernel, ram, sockets, golden }
    }
}

fn golden(text: &str) -> BTreeMap<Ends, Golden> {
    let mut found: BTreeMap<Ends, Golden> = BTreeMap::new();
    let mut open = None;
    for line in text.lines() {
        if line.starts_with("TcpSocket {") {
            let ends: Ends = (field(line, "local"), field(line, "peer"));
            open = PORTS.contains(&ends.0.port()).then_some(ends);
            if open.is_some() {
                found.insert(ends, connection(line));
            }
        } else if let Some(here) = open.and_then(|ends| found.get_mut(&ends)) {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["received", len, "bytes", sum] => here.receiving = (len.parse().unwrap(), hex(sum)),
                [_, len, "bytes", sum, ..] => here.sending.push((len.parse().unwrap(), hex(sum))),
                _ => {}
            }
        }
    }
    found
}

fn connection(line: &str) -> Golden {
    let accepted = field(line, "accepted");
    let is_open = line.contains("state: Established") && !field::<bool>(line, "fin_received");
    Golden {
        can_go_on: accepted && is_open,
        accepted,
        snd_una: field(line, "snd_una"),
        bytes_acked: field(line, "bytes_acked"),
        bytes_received: field(line, "bytes_received"),
        sending: Vec::new(),
        receiving: (0, 0),
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
