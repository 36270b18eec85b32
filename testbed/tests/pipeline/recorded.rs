//! The machines recorded for introspect's tests: their pages, what was discovered in them while they lived, and the
//! golden text that says which connections they held.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::LazyLock;

use introspect::Kernel;
use introspect::linux::tcp::{TcpFilter, TcpSocket, walk};
use remote_memory::RemoteKey;
use remote_memory::image::Image;

use crate::golden::{self, Ends, Golden};

/// Ports of the recorded server; 7002 never accepts, so it has no application.
pub const PORTS: [u16; 5] = [7000, 7001, 7002, 7003, 7004];

/// One machine.
pub struct Machine {
    pub kernel: Kernel,
    pub ram: Image,
    /// The server's connections as a look at the image itself shows them: what its application knew anyway.
    pub sockets: Vec<TcpSocket>,
    /// The same as the golden text has them: what is held against the outcome.
    pub golden: BTreeMap<Ends, Golden>,
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
        let golden = golden::parse(&fs::read_to_string(path("golden.txt")).unwrap(), &PORTS);
        Self { kernel, ram, sockets, golden }
    }
}
