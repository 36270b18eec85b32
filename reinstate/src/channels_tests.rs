//! Sessions with channels out of a pool: which of them go on, and what damage costs whom.

use std::cell::Cell;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use contbox::channel::{ChannelEnd, Descriptors, Identity, Interval, Loss, joint, role};
use contbox::shared::{Pool, Slot};
use contbox::{ContinuationBox, Opening, Snapshot};
use introspect::linux::channel::Kind;
use remote_memory::KernelVirt;

use super::*;

const GEOMETRY: Geometry = Geometry::with(64, 256, 8192);

/// The bytes of a channel from its front end; another front end's differ.
fn byte(session: u32, at: u64) -> u8 {
    (at * 7 + u64::from(session) * 31) as u8
}

/// A machine: sessions of three slots each (connection, near end, far end), and what its pipes hold.
struct Machine {
    pool: Arc<Pool>,
    pipes: BTreeMap<Descriptor, (u64, Vec<Vec<u8>>)>,
    walks: Cell<u32>,
    /// Open as long as the machine is there: no two ends have one descriptor.
    kept: Vec<ChannelEnd<Descriptors>>,
}

impl Between for Machine {
    fn waiting(&self, _: &mut dyn RemoteRead, wanted: &[Descriptor]) -> Result<Found, LinkError> {
        self.walks.set(self.walks.get() + 1);
        let waiting = |of: &Descriptor| {
            let (inode, chunks) = self.pipes.get(of)?.clone();
            Some(Waiting { address: KernelVirt::new(1), kind: Kind::Pipe, inode, chunks, complete: true })
        };
        Ok((wanted.iter().map(waiting).collect(), vec![]))
    }
}

/// A memory that nobody should need.
struct NoMemory;

impl RemoteRead for NoMemory {
    fn read(&mut self, _: &mut [remote_memory::Read<'_>]) -> Result<(), LinkError> {
        panic!("this machine's pipes are a test's")
    }
}

fn drain(pipe: BorrowedFd<'_>) -> Vec<Vec<u8>> {
    let mut file = File::from(pipe.try_clone_to_owned().unwrap());
    nix::fcntl::fcntl(pipe, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let (mut chunks, mut packet) = (Vec::new(), [0; 4096]);
    while let Ok(count) = file.read(&mut packet) {
        chunks.push(packet[..count].to_vec());
    }
    chunks
}

impl Machine {
    fn with(sessions: u32) -> Self {
        let (_fd, pool) = Pool::memfd(GEOMETRY, 1).unwrap();
        let mut machine = Self { pool, pipes: BTreeMap::new(), walks: Cell::new(0), kept: Vec::new() };
        (0..sessions).for_each(|session| machine.begin(session));
        machine
    }

    fn slot(&self, session: u32, part: u32) -> Slot {
        self.pool.slot(3 * session + part).unwrap()
    }

    /// A front end has sent 100 bytes at its last export and 20 since; its worker has digested 30 and read 60.
    fn begin(&mut self, session: u32) {
        let place = Place { slot: 3 * session, generation: 1 };
        let identity = Identity { name: 1000 + u64::from(session), ..Identity::default() };
        let [here, there] = Descriptors::pipes().unwrap();
        let near = Identity { connection: Some(place), ..identity };
        let mut near = ChannelEnd::open_as(self.slot(session, 1), 1, here, near, b"").unwrap();
        let far = Identity { side: 1, role: role("worker"), ..identity };
        let mut far = ChannelEnd::open_as(self.slot(session, 2), 2, there, far, b"far").unwrap();
        let bytes: Vec<u8> = (0..120).map(|at| byte(session, at)).collect();
        near.write(&bytes[..30]).unwrap();
        far.read_exact(&mut [0; 30]).unwrap();
        far.export(b"digested", Interval::Deterministic).unwrap();
        near.write(&bytes[30..60]).unwrap();
        far.read_exact(&mut [0; 30]).unwrap();
        near.write(&bytes[60..100]).unwrap();
        let lws = joint::snapshot(&[near.standing()], b"front");
        near.write(&bytes[100..]).unwrap();
        self.open(session, lws);
        for end in [&near, &far] {
            let identity = end.identity();
            let chunks = drain(end.wire().input());
            let descriptor = Descriptor { pid: identity.pid, fd: identity.input.fd };
            self.pipes.insert(descriptor, (identity.input.inode, chunks));
        }
        self.kept.extend([near, far]);
    }

    fn open(&mut self, session: u32, lws: Vec<u8>) {
        let snapshot = Snapshot { lsr: 0, lsw: 0, lws };
        let ends = ("10.0.0.1:80".parse().unwrap(), format!("10.0.0.2:{}", 1000 + session).parse().unwrap());
        let opening = Opening { snapshot, ..Opening::fresh(1, ends.0, ends.1) };
        ContinuationBox::create(self.slot(session, 0), &opening).unwrap();
    }

    /// What becomes of each session, of the pool as `change` leaves it.
    fn found(&self, change: impl Fn(&mut Vec<u8>)) -> Vec<Option<Result<Vec<FoundChannel>, ChannelLoss>>> {
        let mut pool = self.pool.image();
        change(&mut pool);
        let cut = |range: Range<u64>| pool[range.start as usize..range.end as usize].to_vec();
        let (mut ends, mut boxes) = (Ends::default(), Vec::new());
        for slot in 0..GEOMETRY.slots {
            let front = cut(GEOMETRY.front(slot));
            ends.add(slot, &GEOMETRY, &front);
            if slot % 3 == 0 {
                boxes.push(BoxHead::parse(slot, &front).ok().and_then(|head| {
                    let plan = head.plan(&GEOMETRY, 0).ok()?;
                    let image = plan.finish(&head, &plan.ranges().map(cut).collect::<Vec<_>>()).ok()?;
                    Some((head, image))
                }));
            }
        }
        let wanted = ends.wanted(boxes.iter().flatten().map(|(head, _)| head));
        let parts: Vec<_> =
            wanted.iter().map(|number| Some(ends.ranges(*number).into_iter().map(cut).collect())).collect();
        let records = Records::of(&ends, &wanted, &parts);
        let boxes = boxes.iter().map(|it| it.as_ref().map(|(head, image)| (head, image)));
        let paired = records.pair(boxes.clone());
        let found = paired.find(&mut NoMemory, self, &mut Vec::new()).unwrap();
        boxes.zip(found).map(|(it, found)| it.map(|_| found)).collect()
    }

    fn front(&self, session: u32, part: u32) -> Range<usize> {
        let range = GEOMETRY.front(3 * session + part);
        range.start as usize..range.end as usize
    }
}

fn is_whole(session: u32, found: &Option<Result<Vec<FoundChannel>, ChannelLoss>>) -> bool {
    let Some(Ok(channels)) = found else { return false };
    let expected: Vec<u8> = (30..100).map(|at| byte(session, at)).collect();
    channels.len() == 1 && channels[0].to_far.give_reader == expected && channels[0].far.words == b"digested"
}

#[test]
fn each_session_gets_its_own_channel_out_of_one_walk() {
    for sessions in [1, 20] {
        let machine = Machine::with(sessions);
        let found = machine.found(|_| ());
        assert!((0..sessions).all(|session| is_whole(session, &found[session as usize])), "{found:?}");
        assert_eq!(machine.walks.get(), 1);
    }
    let machine = Machine::with(0);
    machine.found(|_| ());
    assert_eq!(machine.walks.get(), 0, "nobody has a channel");
}

#[test]
fn no_damage_to_one_session_reaches_another_or_gives_it_other_bytes() {
    let machine = Machine::with(3);
    let mut lost = 0;
    for part in 0..3 {
        for at in machine.front(1, part) {
            for flip in [0x01, 0x80] {
                let found = machine.found(|pool| pool[at] ^= flip);
                assert!(is_whole(0, &found[0]) && is_whole(2, &found[2]), "byte {at} of part {part}");
                match &found[1] {
                    Some(Ok(channels)) if !channels.is_empty() => assert!(is_whole(1, &found[1])),
                    _ => lost += 1,
                }
            }
        }
    }
    assert!(lost > 100, "{lost} sessions were lost by damage");
}

#[test]
fn a_snapshot_alone_claims_no_channel() {
    let mut machine = Machine::with(2);
    // What a client might have its server keep: the name of a channel that is another's.
    let stolen = joint::Standing { name: 1000, digested: 0, released: 100 };
    machine.open(1, joint::snapshot(&[stolen], b""));
    let found = machine.found(|_| ());
    assert!(is_whole(0, &found[0]));
    assert_eq!(found[1], Some(Err(ChannelLoss::Near { name: 1000, found: 0 })));
}

#[test]
fn each_loss_has_its_reason() {
    let check = |change: &dyn Fn(&mut Machine) -> ChannelLoss| {
        let mut machine = Machine::with(2);
        let expected = change(&mut machine);
        let found = machine.found(|_| ());
        assert_eq!(found[1].as_ref().unwrap().as_ref().unwrap_err(), &expected);
        assert!(is_whole(0, &found[0]));
    };
    let name = 1001;
    let far = |machine: &Machine| channel::read_end(&machine.pool.image(), &GEOMETRY, 5).unwrap().identity;
    let descriptor = |end: Identity| Descriptor { pid: end.pid, fd: end.input.fd };
    let free = |slot: Slot| slot.set_state(contbox::layout::SlotState::Free, 0);
    check(&|machine| {
        free(machine.slot(1, 1));
        ChannelLoss::Near { name, found: 0 }
    });
    check(&|machine| {
        free(machine.slot(1, 2));
        ChannelLoss::Far { name, found: 0 }
    });
    check(&|machine| {
        let [wire, _] = Descriptors::pipes().unwrap();
        ChannelEnd::open_as(machine.pool.slot(63).unwrap(), 2, wire, far(machine), b"").unwrap();
        ChannelLoss::Far { name, found: 2 }
    });
    check(&|machine| {
        // Which of two connections it belongs to cannot be known.
        let [wire, _] = Descriptors::pipes().unwrap();
        let connection = Some(Place { slot: 60, generation: 1 });
        let claims = Identity { name, connection, ..Identity::default() };
        ChannelEnd::open_as(machine.pool.slot(62).unwrap(), 9, wire, claims, b"").unwrap();
        ChannelLoss::Near { name, found: 2 }
    });
    check(&|machine| {
        let twice = [joint::Standing { name, digested: 0, released: 100 }; 2];
        machine.open(1, joint::snapshot(&twice, b""));
        ChannelLoss::Unclear(joint::Unclear)
    });
    check(&|machine| {
        // The channel's record names the connection that the slot had before.
        machine.open(1, joint::snapshot(&[joint::Standing { name, digested: 0, released: 100 }], b""));
        ChannelLoss::Near { name, found: 0 }
    });
    check(&|machine| {
        let mut lws = joint::snapshot(&[joint::Standing { name, digested: 0, released: 100 }], b"");
        lws.pop();
        machine.open(1, lws);
        ChannelLoss::Unclear(joint::Unclear)
    });
    check(&|machine| {
        // A process with a connection has no intervals of chance, or what it held back would be nowhere.
        machine.kept[2].export(b"", Interval::Nondeterministic).unwrap();
        ChannelLoss::Standing { name }
    });
    check(&|machine| {
        let at = descriptor(far(machine));
        machine.pipes.get_mut(&at).unwrap().0 ^= 1;
        ChannelLoss::NotThere { name, pid: at.pid, fd: at.fd }
    });
    check(&|machine| {
        machine.pipes.get_mut(&descriptor(far(machine))).unwrap().1.clear();
        ChannelLoss::Stream { name, why: Loss::Missing { from: 60, to: 100 } }
    });
}
