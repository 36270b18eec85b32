//! A queue in virtual time: rdma's requester and responder, both pure, with the network between them.
//!
//! Implements what `rdma::soft::SoftQueue` implements, so that everything above it runs unchanged. A reconnection goes
//! over a control connection that the same darkness silences.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use monitor::clock::Clock;
use rdma::QpAttributes;
use rdma::requester::{Ended, Limits, Rejected, Requester};
use rdma::responder::Responder;
use rdma::wire::packet;
use remote_memory::{Completion, LinkError, Queue, Request};

use crate::network::{MS, To, US, VirtualClock, Wire};
use crate::target::Target;

const LANDING_BYTES: usize = 1 << 20;
const DEPTH: usize = 1024;
/// What a control connection waits before it counts as silent.
pub const CONTROL_PATIENCE_NS: u64 = 20 * MS;

/// One asker's connection to the target's memory.
pub struct VirtualQueue {
    pub wire: Wire,
    clock: VirtualClock,
    target: Rc<Target>,
    requester: Requester,
    responder: Responder,
    landing: Vec<u8>,
    mtu: u16,
    reads_in_flight: u16,
}

impl VirtualQueue {
    pub fn new(clock: VirtualClock, target: Rc<Target>, mut wire: Wire) -> Self {
        let mtu = [256, 1024, 4096][wire.roll(0..3) as usize];
        let reads_in_flight = [2, 16, 128][wire.roll(0..3) as usize];
        let (requester, responder) = connection(&mut wire, mtu, reads_in_flight);
        let landing = vec![0; LANDING_BYTES];
        Self { wire, clock, target, requester, responder, landing, mtu, reads_in_flight }
    }

    /// Sends all that may be sent and takes in all that has arrived.
    fn exchange(&mut self) {
        let now_ns = self.clock.now_ns();
        let now = Duration::from_nanos(now_ns);
        let mut out = [0xee; packet::LEN_MAX];
        while let Some((to, ib)) = self.wire.arrived(now_ns) {
            match to {
                To::Asker => self.requester.receive(now, &ib, &mut self.landing),
                To::Server => self.responder.receive(&*self.target, &ib),
            }
        }
        self.requester.expire(now);
        while let Some(len) = self.requester.transmit(now, &self.landing, &mut out) {
            self.wire.carry(now_ns, To::Server, &out[..len]);
        }
        while let Some(len) = self.responder.transmit(&*self.target, &mut out) {
            self.wire.carry(now_ns, To::Asker, &out[..len]);
        }
    }

    /// When something happens next.
    fn next_ns(&self) -> Option<u64> {
        let deadline = self.requester.deadline().map(|at| at.as_nanos() as u64);
        self.wire.next_ns().into_iter().chain(deadline).min()
    }
}

fn connection(wire: &mut Wire, path_mtu: u16, reads_in_flight: u16) -> (Requester, Responder) {
    let mut end = || QpAttributes {
        number: wire.roll(2..1 << 24) as u32,
        first_psn: wire.roll(0..1 << 24) as u32,
        address: Ipv4Addr::LOCALHOST,
        port: 4791,
        path_mtu,
        reads_in_flight,
    };
    let (asker, server) = (end(), end());
    // As `rdma::soft::Options` has them by default.
    let (timeout, tries) = (Duration::from_millis(2), 9);
    let limits = Limits { depth: DEPTH, landing_bytes: LANDING_BYTES, window_packets: 256, timeout, tries };
    (Requester::new(&asker, &server, limits), Responder::new(&server, &asker))
}

impl Queue for VirtualQueue {
    fn landing(&self) -> &[u8] {
        &self.landing
    }

    fn landing_mut(&mut self) -> &mut [u8] {
        &mut self.landing
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn post(&mut self, requests: &[Request]) -> Result<usize, LinkError> {
        if let Some(Ended::Lost { tries }) = self.requester.ended() {
            return Err(LinkError::Lost { tries });
        }
        let mut posted = 0;
        for request in requests {
            match self.requester.post(*request) {
                Ok(()) => posted += 1,
                Err(Rejected::Full | Rejected::Broken) => break,
                Err(Rejected::Misused(why)) => return Err(LinkError::Misused(why)),
            }
        }
        self.exchange();
        Ok(posted)
    }

    fn poll(&mut self, completions: &mut [Completion], wait: Duration) -> Result<usize, LinkError> {
        let until_ns = self.clock.now_ns() + wait.as_nanos() as u64;
        loop {
            self.exchange();
            let mut taken = 0;
            for place in completions.iter_mut() {
                let Some(completion) = self.requester.completion() else { break };
                *place = completion;
                taken += 1;
            }
            match self.requester.ended() {
                Some(Ended::Lost { tries }) if taken == 0 => return Err(LinkError::Lost { tries }),
                _ if taken > 0 || self.requester.outstanding() == 0 => return Ok(taken),
                _ => {}
            }
            let next_ns = self.next_ns().expect("operations are outstanding, and nothing is going to happen");
            self.clock.sleep_until(next_ns.min(until_ns));
            if next_ns > until_ns {
                return Ok(0);
            }
        }
    }

    fn reconnect(&mut self) -> Result<(), LinkError> {
        if self.wire.weather.is_dark(self.clock.now_ns()) {
            self.clock.pass(CONTROL_PATIENCE_NS);
            return Err(LinkError::Lost { tries: 1 });
        }
        self.clock.pass(self.wire.roll(200 * US..3 * MS));
        (self.requester, self.responder) = connection(&mut self.wire, self.mtu, self.reads_in_flight);
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.requester.ended().is_some()
    }
}
