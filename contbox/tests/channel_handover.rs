//! A session of two processes is handed over by a box service: each process gets its end, and every byte between them
//! is read once; and what becomes of the others when one of them does not take it.

mod scratch;

use contbox::channel::{ChannelEnd, Descriptors, FoundChannel, Identity, Interval, Loss, Place, joint, read_end, role};
use contbox::listener::RecoverableListener;
use contbox::service::{BoxClient, BoxService, Declined, FromApp, HandedEnd, Handover, Resume};
use contbox::shared::Pool;
use contbox::{Geometry, Opening, Snapshot};
use scratch::Scratch;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

const PATIENCE: Duration = Duration::from_secs(30);
const WORKER: &str = "test-worker";
const NAME: u64 = 0x00c0_ffee_0000_0001;

fn bytes(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| (at.wrapping_mul(7) ^ at >> 8) as u8).collect()
}

/// What a pipe holds, as its kernel keeps it: packet by packet.
fn drain(pipe: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    nix::fcntl::fcntl(pipe, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let mut file = std::fs::File::from(pipe.try_clone_to_owned().unwrap());
    let mut chunks = Vec::new();
    let mut packet = [0; 4096];
    while let Ok(count) = file.read(&mut packet) {
        chunks.push(packet[..count].to_vec());
    }
    chunks
}

/// The dead machine: a front end that has sent 0..`sent` to its worker, of which that has digested 300 and read 600,
/// and has got 0..50 from it. Its connection's snapshot stands where it had sent 40 000, or `sent` if that is less.
fn found(sent: u64) -> (FoundChannel, Vec<u8>) {
    let (_fd, pool) = Pool::memfd(Geometry::standard(3), 1).unwrap();
    let slot = |index| pool.slot(index).unwrap();
    let [here, there] = Descriptors::pipes().unwrap();
    let place = Place { slot: 0, generation: 1 };
    let near = Identity { name: NAME, connection: Some(place), ..Identity::default() };
    let mut near = ChannelEnd::open_as(slot(1), 1, here, near, b"").unwrap();
    let far = Identity { name: NAME, side: 1, role: role(WORKER), ..Identity::default() };
    let mut far = ChannelEnd::open_as(slot(2), 2, there, far, b"far").unwrap();

    let mut exported = None;
    for part in [0..300, 300..600, 600..sent.min(40_000), sent.min(40_000)..sent] {
        near.write(&bytes(part.clone())).unwrap();
        if part.end == 300 {
            far.read_exact(&mut [0; 300]).unwrap();
            far.export(b"digested", Interval::Deterministic).unwrap();
            far.write(&bytes(0..50)).unwrap();
        }
        if part.end == 600 {
            far.read_exact(&mut [0; 300]).unwrap();
            near.read_exact(&mut [0; 50]).unwrap();
        }
        if part.end == sent.min(40_000) {
            exported = Some(joint::snapshot(&[near.standing()], b"front"));
        }
    }
    // The connection's box has it, the channel's own does not know yet.
    let snapshot = exported.unwrap();
    let standing = joint::split(&snapshot).unwrap().0[0];
    let waiting = [drain(near.wire().input()), drain(far.wire().input())];
    let image = |slot| read_end(&pool.image(), &pool.geometry(), slot).unwrap();
    let near = image(1).at(standing.digested, standing.released).unwrap();
    assert_eq!(near.identity.connection, Some(place));
    (FoundChannel::of(near, image(2), &waiting[0], &waiting[1]).unwrap(), snapshot)
}

/// The spare.
struct Spare {
    service: Arc<BoxService>,
    listener: RecoverableListener,
    clients: Vec<Arc<BoxClient>>,
    ends: Option<UnboundedReceiver<HandedEnd>>,
    worker: Option<Arc<BoxClient>>,
    address: SocketAddr,
    _scratch: Scratch,
}

impl Spare {
    async fn new(name: &str, takes_channels: bool, has_worker: bool) -> Self {
        let scratch = Scratch::new(name);
        let (fd, pool) = Pool::memfd(Geometry::with(200, 256, 8192), 7).unwrap();
        let service = Arc::new(BoxService::start(&scratch.socket(), pool, fd).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let join = if takes_channels { BoxClient::connect_with_channels } else { BoxClient::connect };
        let (front, handed) = join(&scratch.socket(), "front", &[address.port()]).unwrap();
        let mut clients = vec![Arc::clone(&front)];
        let listener = RecoverableListener::new(listener, front, handed);
        let (mut ends, mut worker) = (None, None);
        if has_worker {
            let (client, handed) = BoxClient::connect_as_worker(&scratch.socket(), "worker", &[role(WORKER)]).unwrap();
            clients.push(Arc::clone(&client));
            worker = Some(client);
            ends = Some(handed);
        }
        assert!(clients.iter().all(|client| client.wait_ready(PATIENCE)));
        while service.apps().len() < clients.len() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self { service, listener, clients, ends, worker, address, _scratch: scratch }
    }

    /// A session's handover and its client.
    fn handover(&self, sent: u64) -> (Handover, TcpStream) {
        let (found, snapshot) = found(sent);
        // Accepted by nobody: it stands for a socket that was rebuilt.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let snapshot = Snapshot { lsr: 0, lsw: 0, lws: snapshot };
        let opening = Opening { snapshot, ..Opening::fresh(0, self.address, peer) };
        (Handover { opening, discard: 0, socket: socket.into(), channels: vec![found] }, client)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.clients.iter().for_each(|client| client.stop());
    }
}

/// Hands `handover` over, without waiting for the outcome.
fn resumed(service: &Arc<BoxService>, handover: Handover) -> tokio::task::JoinHandle<Result<(), Declined>> {
    let service = Arc::clone(service);
    tokio::task::spawn_blocking(move || service.resume(vec![handover], PATIENCE).remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn both_processes_go_on_and_each_byte_between_them_is_read_once() {
    let mut spare = Spare::new("both", true, true).await;
    let (handover, _client) = spare.handover(45_000);
    // The worker had digested 300 of 40 000 that count: more than a log here holds.
    assert_eq!(handover.channels[0].to_far.give_reader.len(), 39_700);
    assert_eq!(handover.channels[0].to_near.discard_from_writer, 50);
    let outcome = resumed(&spare.service, handover);
    let handed = spare.ends.as_mut().unwrap().recv().await.unwrap();
    let order = handed.order.order;
    let (mut far, image) = handed.take().unwrap();
    assert_eq!(image.words, b"digested");
    let accepted = spare.listener.accept().await.unwrap();
    spare.worker.as_ref().unwrap().answer(&[(order, Ok(()))]);
    outcome.await.unwrap().unwrap();

    let snapshot = accepted.resumed.unwrap();
    let (channels, words) = joint::split(&snapshot.lws).unwrap();
    let [mut near]: [_; 1] = accepted.channels.try_into().unwrap();
    assert_eq!((channels.as_slice(), words), (&[near.standing()][..], &b"front"[..]));
    // Both records are here, and name who has them now.
    assert_eq!(near.identity().connection, accepted.stream.session().place());
    assert_eq!((near.identity().pid, far.identity().pid), (std::process::id(), std::process::id()));
    assert_eq!((near.identity().name, far.identity().role), (NAME, role(WORKER)));

    let worker = std::thread::spawn(move || {
        let mut read = vec![0; 50_000 - 300];
        let mut at = 0;
        while at < read.len() {
            let count = far.read(&mut read[at..]).unwrap();
            assert!(count > 0, "the channel ends after {at} bytes");
            at += count;
            far.export(b"", Interval::Deterministic).unwrap();
        }
        assert!(read == bytes(300..50_000), "the worker read something else");
        // What the front end has of it is not seen again.
        far.write(&bytes(0..90)).unwrap();
    });
    near.write(&bytes(40_000..50_000)).unwrap();
    let mut read = [0; 40];
    near.read_exact(&mut read).unwrap();
    assert_eq!(read.as_slice(), bytes(50..90));
    worker.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_it_costs_the_session_with_a_reason_and_no_box() {
    for (name, takes_channels, has_worker, reason) in [
        ("old", false, true, "takes no sessions with channels"),
        ("alone", true, false, "no application here has the role"),
    ] {
        let spare = Spare::new(name, takes_channels, has_worker).await;
        let before = spare.service.counts();
        let (handover, _client) = spare.handover(1000);
        let declined = resumed(&spare.service, handover).await.unwrap().unwrap_err();
        assert!(declined.why.contains(reason), "{}", declined.why);
        assert_eq!(spare.service.counts(), before, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_declines_leaves_its_front_end_at_the_end_of_the_channel() {
    let mut spare = Spare::new("declines", true, true).await;
    let (handover, _client) = spare.handover(1000);
    let outcome = resumed(&spare.service, handover);
    let handed = spare.ends.as_mut().unwrap().recv().await.unwrap();
    let mut accepted = spare.listener.accept().await.unwrap();
    // It still has the socket, as one would that is slow.
    spare.worker.as_ref().unwrap().answer(&[(handed.order.order, Err("too much to do".into()))]);
    let declined = outcome.await.unwrap().unwrap_err();
    assert_eq!(declined.why, "too much to do");
    assert_eq!(accepted.channels[0].read(&mut [0; 8]).unwrap(), 0);
    assert!(accepted.channels[0].write(b"anything").is_err());
    drop(handed);
}

#[test]
fn what_the_kernel_has_not_any_more_is_a_loss() {
    let (channel, _) = found(1000);
    let lost = FoundChannel::of(channel.near, channel.far, &[], &[]).unwrap_err();
    assert_eq!(lost, Loss::Missing { from: 600, to: 1000 });
}

#[test]
fn who_knows_nothing_of_channels_says_what_he_always_said() {
    let hello = r#"{"type":"hello","protocol":1,"name":"old","ports":[80],"held":[],"want":4}"#;
    let FromApp::Hello { channels, roles, .. } = serde_json::from_str(hello).unwrap() else { panic!("no hello") };
    assert!(!channels && roles.is_empty());
    let order = r#"{"order":1,"slot":2,"local":"10.0.0.1:80","peer":"10.0.0.2:9","received":3,"discard":4}"#;
    assert_eq!(serde_json::from_str::<Resume>(order).unwrap().channels, 0);
}
