//! The target as its backdoor shows it: recorded RAM, sensors that tick until it dies, a pool of boxes, and keys that
//! open them as the guard would.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use monitor::clock::Clock;
use rdma::responder::{Memory, Refusal};
use remote_memory::image::Image;
use remote_memory::{Region, RemoteKey, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

use crate::network::{MS, VirtualClock};

/// How often each processor moves its sensor.
pub const TICK_NS: u64 = 5 * MS;
pub const RAM_LIVE: RemoteKey = RemoteKey::new(0x10);
pub const RAM_FENCED: RemoteKey = RemoteKey::new(0x11);
const SB: RemoteKey = RemoteKey::new(0x12);
const CB: RemoteKey = RemoteKey::new(0x13);
const SENSORS: usize = 7;
/// Word of a record that holds the value.
const VALUE: usize = 2;

pub struct Target {
    /// When each of its two processors stops.
    pub stops_ns: [Cell<u64>; 2],
    is_fenced: Cell<bool>,
    clock: VirtualClock,
    ram: &'static Image,
    sensors: Vec<AtomicU64>,
    pool: Vec<u8>,
}

impl Target {
    pub fn new(clock: VirtualClock, ram: &'static Image, pool: Vec<u8>, stops_ns: [u64; 2]) -> Self {
        let sensors: Vec<_> = (0..(SENSORS + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let producer = Producer::create(&sensors, [1; 16]).unwrap();
        for cpu in 0..2 {
            let (name, class) = (Name::new("tick").unwrap(), Class::Progress);
            let tick = Description { name, class, cpu: Some(cpu), limit: 1, period_ns: 0, floor: false };
            producer.new_sensor_at(1 + cpu, &tick).unwrap();
        }
        Self { stops_ns: stops_ns.map(Cell::new), is_fenced: Cell::new(false), clock, ram, sensors, pool }
    }

    /// The region of its sensors.
    pub fn sb(&self) -> Region {
        let len = (self.sensors.len() * 8) as u64;
        Region { name: "sb".into(), key: SB, base: 0, len, rights: Rights::READ }
    }

    /// The region of its boxes.
    pub fn cb(&self) -> Region {
        Region { name: "cb".into(), key: CB, base: 0, len: self.pool.len() as u64, rights: Rights::READ }
    }

    /// Stops it; from now on [`RAM_FENCED`] opens its memory.
    pub fn fence(&self) {
        let now_ns = self.clock.now_ns();
        self.stops_ns.iter().for_each(|stop| stop.set(stop.get().min(now_ns)));
        self.is_fenced.set(true);
    }

    pub fn is_fenced(&self) -> bool {
        self.is_fenced.get()
    }

    /// The sensors as they stand now.
    fn sensor_bytes(&self) -> Vec<u8> {
        for (cpu, stop) in self.stops_ns.iter().enumerate() {
            let ticks = 1 + self.clock.now_ns().min(stop.get()) / TICK_NS;
            self.sensors[(1 + cpu) * RECORD_WORDS + VALUE].store(ticks, Ordering::Relaxed);
        }
        self.sensors.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    fn rights(&self, key: RemoteKey) -> Rights {
        match key {
            RAM_FENCED if self.is_fenced.get() => Rights::ALL,
            RAM_LIVE | SB | CB => Rights::READ,
            _ => Rights::NONE,
        }
    }
}

fn cut(bytes: &[u8], addr: u64, len: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(addr).ok()?..usize::try_from(addr.checked_add(len)?).ok()?)
}

impl Memory for Target {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let is_inside = match key {
            SB => addr.checked_add(len).is_some_and(|end| end <= self.sensors.len() as u64 * 8),
            CB => cut(&self.pool, addr, len).is_some(),
            _ => true, // which pages exist is found out by reading them
        };
        (is_inside && self.rights(key).covers(rights)).then_some(()).ok_or(Refusal::Access)
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        let len = into.len() as u64;
        match key {
            SB => into.copy_from_slice(cut(&self.sensor_bytes(), addr, len).ok_or(Refusal::Access)?),
            CB => into.copy_from_slice(cut(&self.pool, addr, len).ok_or(Refusal::Access)?),
            _ => self.ram.copy_out(addr, into).ok_or(Refusal::Access)?,
        }
        Ok(())
    }

    /// Nobody on this stage writes: an attempt is a defect of the asker.
    fn write(&self, _: RemoteKey, addr: u64, bytes: &[u8]) -> Result<(), Refusal> {
        panic!("{} bytes written at {addr:#x}", bytes.len());
    }

    fn compare_swap(&self, _: RemoteKey, addr: u64, _: u64, _: u64) -> Result<u64, Refusal> {
        panic!("compare and swap at {addr:#x}");
    }

    fn fetch_add(&self, _: RemoteKey, addr: u64, _: u64) -> Result<u64, Refusal> {
        panic!("fetch and add at {addr:#x}");
    }
}
