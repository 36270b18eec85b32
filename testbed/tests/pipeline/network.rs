//! A network in virtual time that loses, doubles, damages, delays and reorders packets, as a seed says.
//!
//! What travels are whole IPv4 packets with their ICRC, checked at arrival as the sockets of `rdma::soft` do.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::rc::Rc;

use monitor::clock::Clock;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdma::wire::{icrc, ipv4, udp};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;

/// Time on the wire without trouble.
const FLIGHT_NS: u64 = 5 * US;
const ROCE_PORT: u16 = 4791;
const ASKER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Virtual time, shared by all on the stage: sleeping makes it pass.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl Clock for VirtualClock {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }

    fn sleep_until(&self, until_ns: u64) {
        self.0.set(self.0.get().max(until_ns));
    }
}

impl VirtualClock {
    pub fn pass(&self, ns: u64) {
        self.0.set(self.0.get() + ns);
    }
}

/// What the network does to packets, each as a chance, and when it carries none at all.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub loss: f64,
    pub doubling: f64,
    pub damage: f64,
    pub lateness: f64,
    pub late_ns: u64,
    pub blackouts: Vec<Range<u64>>,
    /// From this time on nothing arrives on this side any more.
    pub mute: Option<(To, u64)>,
}

impl Weather {
    /// Nothing goes wrong.
    pub fn calm() -> Self {
        Self { late_ns: 1, ..Self::default() }
    }

    /// Everything goes wrong, all the time.
    pub fn heavy() -> Self {
        Self { loss: 0.2, doubling: 0.2, damage: 0.05, lateness: 0.3, late_ns: 6 * MS, ..Self::default() }
    }

    /// One of four kinds.
    pub fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::calm(),
            1 => Self { loss: 0.02, ..Self::calm() },
            2 => Self { loss: 0.05, doubling: 0.1, damage: 0.01, lateness: 0.1, late_ns: 300 * US, ..Self::calm() },
            _ => Self::heavy(),
        }
    }

    /// The same with stretches between `from_ns` and `to_ns` in which nothing arrives: short ones and such that a path
    /// counts as lost.
    pub fn with_blackouts(mut self, rng: &mut StdRng, from_ns: u64, to_ns: u64) -> Self {
        let mut at = from_ns;
        loop {
            at += rng.random_range(50..600) * MS;
            let end = at + if rng.random_bool(0.3) { rng.random_range(150..900) } else { rng.random_range(5..60) } * MS;
            if end >= to_ns {
                return self;
            }
            self.blackouts.push(at..end);
            at = end;
        }
    }

    /// The same, and from `from_ns` on nothing arrives any more.
    pub fn ending(mut self, from_ns: u64) -> Self {
        self.blackouts.push(from_ns..u64::MAX);
        self
    }

    /// The same, and from `from_ns` on nothing arrives at one of the sides.
    pub fn muting(self, side: To, from_ns: u64) -> Self {
        Self { mute: Some((side, from_ns)), ..self }
    }

    /// Whether a conversation, which needs both ways, is impossible.
    pub fn is_dark(&self, now_ns: u64) -> bool {
        self.swallows(now_ns, To::Asker) || self.swallows(now_ns, To::Server)
    }

    fn swallows(&self, now_ns: u64, to: To) -> bool {
        self.blackouts.iter().any(|dark| dark.contains(&now_ns))
            || self.mute.is_some_and(|(side, from_ns)| side == to && now_ns >= from_ns)
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    Asker,
    Server,
}

/// Packets that did not make it, and such as came twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incidents {
    pub lost: u64,
    pub doubled: u64,
    pub damaged: u64,
    pub late: u64,
}

/// The wire between one asker and the server.
#[derive(Debug)]
pub struct Wire {
    pub weather: Weather,
    pub incidents: Incidents,
    rng: StdRng,
    due: BTreeMap<(u64, u64), (To, Vec<u8>)>,
    sent: u64,
}

impl Wire {
    pub fn new(weather: Weather, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { weather, incidents: Incidents::default(), rng, due: BTreeMap::new(), sent: 0 }
    }

    /// A number from the wire's own dice: for what a control connection takes, and for fresh queue pairs.
    pub fn roll(&mut self, range: Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    /// Sends the InfiniBand bytes `ib` off.
    pub fn carry(&mut self, now_ns: u64, to: To, ib: &[u8]) {
        let copies = if self.rng.random_bool(self.weather.doubling) { 2 } else { 1 };
        self.incidents.doubled += copies - 1;
        for _ in 0..copies {
            if self.rng.random_bool(self.weather.loss) {
                self.incidents.lost += 1;
                continue;
            }
            let is_late = self.rng.random_bool(self.weather.lateness);
            let extra_ns = if is_late { self.rng.random_range(0..self.weather.late_ns) } else { 0 };
            let mut packet = framed(to, ib);
            if self.rng.random_bool(self.weather.damage) {
                let at = self.rng.random_range(0..packet.len());
                packet[at] ^= 1 << self.rng.random_range(0..8);
                self.incidents.damaged += 1;
            }
            self.incidents.late += u64::from(is_late);
            self.sent += 1;
            self.due.insert((now_ns + FLIGHT_NS + extra_ns, self.sent), (to, packet));
        }
    }

    /// When the next packet arrives.
    pub fn next_ns(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next packet that has arrived by `now_ns` and is whole; its InfiniBand bytes.
    pub fn arrived(&mut self, now_ns: u64) -> Option<(To, Vec<u8>)> {
        while let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now_ns) {
            let ((at, _), (to, packet)) = first.remove_entry();
            if self.weather.swallows(at, to) {
                self.incidents.lost += 1;
            } else if let Some(ib) = checked(&packet) {
                return Some((to, ib.to_vec()));
            }
        }
        None
    }
}

fn framed(to: To, ib: &[u8]) -> Vec<u8> {
    let udp_length = udp::LEN + ib.len() + icrc::LEN;
    let (source, destination) = if to == To::Server { (ASKER, SERVER) } else { (SERVER, ASKER) };
    let ip = ipv4::Repr {
        total_length: (ipv4::LEN + udp_length) as u16,
        id: 0,
        dont_fragment: true,
        protocol: ipv4::PROTOCOL_UDP,
        source,
        destination,
    };
    let udp = udp::Repr { source: ROCE_PORT, destination: ROCE_PORT, length: udp_length as u16 };
    let (ip, udp) = (ip.bytes(), udp.bytes());
    let crc = icrc::over_ipv4(&ip, &udp, ib);
    [&ip[..], &udp, ib, &crc].concat()
}

fn checked(packet: &[u8]) -> Option<&[u8]> {
    let (_, ip, datagram) = ipv4::split(packet).ok()?;
    let (_, udp, payload) = udp::split(datagram).ok()?;
    let (ib, crc) = payload.split_last_chunk()?;
    (*crc == icrc::over_ipv4(ip, udp, ib)).then_some(ib)
}
