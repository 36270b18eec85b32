//! A send log holds all output that the client has not acknowledged, at any moment, whatever the kernel takes at a
//! time; and only what went through it is promised.

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use contbox::reader::BoxHead;
use contbox::stream::Position;
use contbox::{ContinuationBox, Geometry, Opening, Pool, RecoverableStream, Snapshot};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const GEOMETRY: Geometry = Geometry::with(1, 64, 256).keeping_output(64 << 10);
const BYTES: usize = 4 << 20;

fn byte(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

fn cut(image: &[u8], range: Range<u64>) -> &[u8] {
    &image[range.start as usize..range.end as usize]
}

/// As the kernel says of the connection from `port`, in the words of /proc.
fn unacknowledged(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = format!("0100007F:{port:04X}");
    let established = |line: &&str| line.split_whitespace().nth(3) == Some("01");
    let line = table.lines().filter(established).find(|line| line.split_whitespace().nth(1) == Some(&ours)).unwrap();
    let queues = line.split_whitespace().nth(4).unwrap();
    u64::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_client_has_not_acknowledged_is_in_the_log() {
    let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    // Or this machine's buffer for the client would grow, and take all of it.
    setsockopt(&client, sockopt::RcvBuf, &(16 << 10)).unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let opening = Opening::fresh(1, socket.local_addr().unwrap(), peer);
    let continuation = ContinuationBox::create(pool.slot(0).unwrap(), &opening).unwrap();
    let mut stream = RecoverableStream::protected(socket, continuation, Position::default(), None);
    let port = stream.socket().local_addr().unwrap().port();
    // A client that reads in pieces, with pauses in which everything is full.
    let reading = std::thread::spawn(move || {
        let (mut buffer, mut at) = (vec![0; 96 << 10], 0);
        loop {
            let count = client.read(&mut buffer).unwrap();
            if count == 0 {
                break at;
            }
            assert!(buffer[..count].iter().enumerate().all(|(index, found)| *found == byte(at + index)));
            at += count;
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let output: Vec<u8> = (0..BYTES).map(byte).collect();
    let mut written = 0;
    let mut waited = 0;
    while written < BYTES {
        let piece = (1 + written % 200_000).min(BYTES - written);
        written += stream.write(&output[written..written + piece]).await.unwrap();
        assert_eq!(stream.session().position().written, written as u64);
        let waiting = unacknowledged(port);
        waited = waited.max(waiting);
        let image = pool.image();
        let head = BoxHead::parse(0, cut(&image, GEOMETRY.front(0))).unwrap();
        let ranges = head.sent(&GEOMETRY, written as u64 - waiting, written as u64).expect("it is kept");
        let found: Vec<u8> = ranges.into_iter().flat_map(|range| cut(&image, range).to_vec()).collect();
        assert_eq!(found.len() as u64, waiting);
        assert!(found == output[written - waiting as usize..written], "at {written}, {waiting} waiting");
    }
    assert!(waited > u64::from(GEOMETRY.send_bytes) / 2, "the log was never filled: {waited}");
    stream.shutdown().await.unwrap();
    assert_eq!(reading.join().unwrap(), BYTES);
}

#[test]
fn output_that_came_another_way_is_not_promised() {
    let local = "127.0.0.1:1".parse().unwrap();
    let promised = |geometry: Geometry, opening: Opening| {
        let (_fd, pool) = Pool::memfd(geometry, 1).unwrap();
        let _box = ContinuationBox::create(pool.slot(0).unwrap(), &opening).unwrap();
        let image = pool.image();
        let head = BoxHead::parse(0, cut(&image, geometry.front(0))).unwrap();
        assert!(head.sent(&geometry, 7, 7).is_some() && head.sent(&geometry, 8, 7).is_none());
        assert!(head.sent(&geometry, 0, u64::from(geometry.send_bytes) + 1).is_none());
        head.sent(&geometry, 0, 8).is_some()
    };
    let fresh = || Opening::fresh(1, local, local);
    assert!(promised(GEOMETRY, fresh()));
    assert!(!promised(Geometry::with(1, 64, 256), fresh()));
    assert!(!promised(GEOMETRY, Opening { base_written: 9, ..fresh() }));
    assert!(!promised(GEOMETRY, Opening { snapshot: Snapshot { lsw: 1, ..Snapshot::default() }, ..fresh() }));
    let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
    drop(ContinuationBox::create(pool.slot(0).unwrap(), &fresh()).unwrap());
    let (adopted, _) = ContinuationBox::import_state(pool.slot(0).unwrap(), 0).unwrap();
    assert!(!adopted.keeps_output());
}
