//! A reliable connection of an adapter, and the attributes by which it is joined to its peer.
//!
//! The attributes are those that suit an Ethernet with losses now and then: no pause frames, no service levels. What an
//! answering end permits is only as much as its registered memory permits as well; an asking end permits nothing.

use std::ffi::{c_int, c_uint};
use std::net::Ipv4Addr;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::domain::{Completions, Domain};
use super::ffi::{self, AhAttr, GlobalRoute, QpAttr, access, mask, state};
use super::ports::Chosen;
use super::{Options, VerbsError};
use crate::{PathMtu, QpAttributes};

/// Hops that packets may make.
const HOP_LIMIT: u8 = 64;

/// How long a peer without a receive buffer is left alone: 0.64 ms. Nothing here needs one; the number has to be given.
const MIN_RNR_TIMER: u8 = 12;

/// Repetitions towards a peer that is not ready. 7 would be without end.
const RNR_RETRIES: u8 = 6;

/// The most repetitions that can be asked for: 7 are without end on rxe, whatever the specification says.
pub const RETRIES_MAX: u8 = 6;

/// How often the kernel is asked to find the peer's link address. It gives a neighbour that it does not know one
/// second, which is up when the first question or its answer is lost.
const JOIN_TRIES: usize = 3;

/// The unit in which an adapter counts its time-outs: 4.096 us, doubled so many times.
const TIMEOUT_UNIT: Duration = Duration::from_nanos(4096);

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It asks, and answers nothing.
    Asking,
    /// It answers, and asks nothing.
    Answering,
}

/// A queue pair. Destroyed when it is dropped: no operation of it touches memory after that.
#[derive(Debug)]
pub struct Pair {
    domain: Arc<Domain>,
    _completions: Arc<Completions>,
    raw: NonNull<ffi::Qp>,
    end: End,
    /// Operations that may be outstanding.
    depth: u32,
    /// Bytes that travel inside a request.
    inline_bytes: u32,
}

// SAFETY: libibverbs may be called from any thread; posting takes `&mut self`.
unsafe impl Send for Pair {}
// SAFETY: shared, it only gives out numbers.
unsafe impl Sync for Pair {}

impl Pair {
    /// One that can have `depth` operations outstanding, with up to `inline_bytes` of each inside the request, where
    /// the adapter has that.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn new(
        domain: &Arc<Domain>,
        completions: &Arc<Completions>,
        end: End,
        depth: u32,
        inline_bytes: u32,
    ) -> Result<Self, VerbsError> {
        let depth = depth.min(domain.adapter().limits().depth).max(1);
        let made = create(domain, completions, depth, inline_bytes);
        // An adapter without room for so much inside a request refuses the queue pair as a whole.
        let (raw, inline_bytes) = match made {
            None if inline_bytes > 0 => (create(domain, completions, depth, 0), 0),
            made => (made, inline_bytes),
        };
        let raw = raw.ok_or_else(|| domain.adapter().last_refusal("make a queue pair"))?;
        let (domain, _completions) = (Arc::clone(domain), Arc::clone(completions));
        Ok(Self { domain, _completions, raw, end, depth, inline_bytes })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: alive until `self` is dropped; the number does not change.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Operations that may be outstanding.
    pub fn depth(&self) -> usize {
        self.depth as usize
    }

    /// Bytes that a request can carry itself.
    pub fn inline_bytes(&self) -> u32 {
        self.inline_bytes
    }

    /// This end, as the peer has to know it; packets are numbered from `first_psn` on.
    pub fn attributes(&self, first_psn: u32) -> QpAttributes {
        let adapter = self.domain.adapter();
        let limits = adapter.limits();
        QpAttributes {
            number: self.number(),
            first_psn,
            address: adapter.chosen().local,
            port: crate::soft::PORT,
            path_mtu: limits.path_mtu.raw(),
            // 0 would be no sensible number to a peer that only answers.
            reads_in_flight: limits.reads_answered.max(1).into(),
        }
    }

    /// Joins it to `remote`, which knows it as `ours`: from then on it works. For the last time: a queue pair that has
    /// failed is replaced and not mended.
    ///
    /// # Errors
    /// See [`VerbsError`].
    pub fn join(&self, ours: &QpAttributes, remote: &QpAttributes, options: &Options) -> Result<(), VerbsError> {
        remote.check().map_err(VerbsError::Peer)?;
        let adapter = self.domain.adapter();
        let (chosen, limits) = (adapter.chosen(), adapter.limits());
        let mtu = PathMtu::at_most(limits.path_mtu.raw().min(remote.path_mtu));
        let (asked, answered) = match self.end {
            End::Asking => (limits.reads_asked.min(u8::try_from(remote.reads_in_flight).unwrap_or(u8::MAX)), 0),
            End::Answering => (0, limits.reads_answered),
        };
        self.modify(to_init(chosen, self.end), "take a queue pair into use")?;
        let to_rtr = to_rtr(chosen, remote, mtu, answered, options);
        let mut joined = Ok(());
        for _ in 0..JOIN_TRIES {
            joined = self.modify(to_rtr, "join a queue pair to its peer");
            if !joined.as_ref().is_err_and(VerbsError::is_timeout) {
                break;
            }
        }
        joined?;
        self.modify(to_rts(ours.first_psn, asked, options), "let a queue pair send")
    }

    /// Hands the chain of requests that begins at `first` to the adapter: one doorbell. Returns false, and how it said
    /// so, if it did not take all of them.
    ///
    /// # Safety
    /// The chain, its scatter lists and whatever they name stay valid: the chain until this returns, the memory until
    /// the completions have come or the queue pair is dropped.
    pub unsafe fn post(&mut self, first: *mut ffi::SendWr) -> Result<(), VerbsError> {
        let adapter = self.domain.adapter();
        // SAFETY: the context is open.
        let Some(post) = (unsafe { (*adapter.context()).ops.post_send }) else {
            return adapter.checked(libc::ENOSYS, "post requests");
        };
        let mut refused = std::ptr::null_mut();
        // SAFETY: the queue pair is alive, the chain valid by the caller's promise.
        let status = unsafe { post(self.raw.as_ptr(), first, &raw mut refused) };
        adapter.checked(status, "post requests")
    }

    fn modify(&self, (mut attributes, mask): (QpAttr, c_int), what: &'static str) -> Result<(), VerbsError> {
        let adapter = self.domain.adapter();
        // SAFETY: the queue pair is alive, the attributes named by the mask are set.
        let status = unsafe { (adapter.verbs().ibv_modify_qp)(self.raw.as_ptr(), &raw mut attributes, mask) };
        adapter.checked(status, what)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: destroyed once; its events were acknowledged when they were taken.
        unsafe { (self.domain.adapter().verbs().ibv_destroy_qp)(self.raw.as_ptr()) };
    }
}

fn create(domain: &Domain, completions: &Completions, depth: u32, inline_bytes: u32) -> Option<NonNull<ffi::Qp>> {
    let cap = ffi::QpCap {
        max_send_wr: depth,
        // Nothing is ever received; some adapters do not like to be asked for none.
        max_recv_wr: 1,
        max_send_sge: 1,
        max_recv_sge: 1,
        max_inline_data: inline_bytes,
    };
    let mut wanted = ffi::QpInitAttr {
        qp_context: std::ptr::null_mut(),
        send_cq: completions.raw(),
        recv_cq: completions.raw(),
        srq: std::ptr::null_mut(),
        cap,
        qp_type: ffi::QPT_RC,
        sq_sig_all: 0,
    };
    // SAFETY: domain and completion queue are open, of the same adapter.
    NonNull::new(unsafe { (domain.adapter().verbs().ibv_create_qp)(domain.raw(), &raw mut wanted) })
}

/// Reset to initialised: what peers may do at all.
fn to_init(chosen: &Chosen, end: End) -> (QpAttr, c_int) {
    let permitted: c_uint = match end {
        End::Asking => 0,
        End::Answering => access::REMOTE_READ | access::REMOTE_WRITE | access::REMOTE_ATOMIC,
    };
    let attributes =
        QpAttr { qp_state: state::INIT, port_num: chosen.port, qp_access_flags: permitted, ..QpAttr::default() };
    (attributes, mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS)
}

/// Initialised to ready to receive: who the peer is, and how it is reached.
fn to_rtr(chosen: &Chosen, remote: &QpAttributes, mtu: PathMtu, answered: u8, options: &Options) -> (QpAttr, c_int) {
    let grh = GlobalRoute {
        dgid: gid_of(remote.address),
        flow_label: 0,
        sgid_index: chosen.gid_index,
        hop_limit: HOP_LIMIT,
        traffic_class: options.traffic_class,
    };
    let attributes = QpAttr {
        qp_state: state::RTR,
        path_mtu: number_of(mtu),
        dest_qp_num: remote.number,
        rq_psn: remote.first_psn,
        max_dest_rd_atomic: answered,
        min_rnr_timer: MIN_RNR_TIMER,
        ah_attr: AhAttr { grh, is_global: 1, port_num: chosen.port, ..AhAttr::default() },
        ..QpAttr::default()
    };
    let all = mask::STATE | mask::AV | mask::PATH_MTU | mask::DEST_QPN | mask::RQ_PSN;
    (attributes, all | mask::MAX_DEST_RD_ATOMIC | mask::MIN_RNR_TIMER)
}

/// Ready to receive to ready to send: how it repeats itself.
fn to_rts(first_psn: u32, asked: u8, options: &Options) -> (QpAttr, c_int) {
    let attributes = QpAttr {
        qp_state: state::RTS,
        sq_psn: first_psn,
        max_rd_atomic: asked,
        timeout: timeout_code(options.timeout),
        retry_cnt: options.retries.min(RETRIES_MAX),
        rnr_retry: RNR_RETRIES,
        ..QpAttr::default()
    };
    let all = mask::STATE | mask::SQ_PSN | mask::TIMEOUT | mask::RETRY_CNT | mask::RNR_RETRY;
    (attributes, all | mask::MAX_QP_RD_ATOMIC)
}

/// The IPv4-mapped address, which is the GID of RoCEv2 over IPv4.
fn gid_of(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}

/// `enum ibv_mtu`.
fn number_of(mtu: PathMtu) -> c_uint {
    u32::from(mtu.raw()).trailing_zeros() - 7
}

/// The shortest time-out that an adapter has and that is not shorter than `timeout`; never none at all.
fn timeout_code(timeout: Duration) -> u8 {
    const CODE_MAX: u8 = 31;
    (1..CODE_MAX).find(|code| TIMEOUT_UNIT.saturating_mul(1 << code) >= timeout).unwrap_or(CODE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: QpAttributes = QpAttributes {
        number: 0x11,
        first_psn: 0x00ab_cdef,
        address: Ipv4Addr::new(10, 0, 0, 2),
        port: 4791,
        path_mtu: 4096,
        reads_in_flight: 16,
    };

    fn chosen() -> Chosen {
        Chosen { device: "rxe0".into(), port: 1, gid_index: 3, local: Ipv4Addr::new(10, 0, 0, 1) }
    }

    #[test]
    fn an_asking_end_permits_nothing_and_an_answering_one_what_memory_may_permit() {
        assert_eq!(to_init(&chosen(), End::Asking).0.qp_access_flags, 0);
        assert_eq!(to_init(&chosen(), End::Answering).0.qp_access_flags, 0b1110);
        assert_eq!(to_init(&chosen(), End::Asking).1, 0b11_1001);
    }

    #[test]
    fn the_peer_is_addressed_by_its_mapped_address_from_the_entry_that_was_chosen() {
        let (attributes, mask) = to_rtr(&chosen(), &PEER, PathMtu::at_most(1024), 16, &Options::default());
        let route = attributes.ah_attr.grh;
        assert_eq!(route.dgid, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
        assert_eq!((route.sgid_index, route.hop_limit), (3, 64));
        assert_eq!((attributes.ah_attr.is_global, attributes.ah_attr.port_num), (1, 1));
        assert_eq!((attributes.dest_qp_num, attributes.rq_psn), (0x11, 0x00ab_cdef));
        assert_eq!((attributes.path_mtu, attributes.max_dest_rd_atomic), (3, 16));
        assert_eq!(mask, 0x0012_9181);
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let eager = Options { retries: 7, timeout: Duration::ZERO, ..Options::default() };
        let (attributes, mask) = to_rts(1, 4, &eager);
        assert_eq!((attributes.retry_cnt, attributes.rnr_retry, attributes.timeout), (6, 6, 1));
        assert_eq!(mask, 0x0001_2e01);
    }

    #[test]
    fn a_timeout_is_rounded_up_to_what_adapters_have() {
        let check = |us, expected| assert_eq!(timeout_code(Duration::from_micros(us)), expected, "{us} us");
        check(0, 1);
        check(4194, 10);
        check(4195, 11);
        check(16_000, 12);
        check(u64::MAX, 31);
    }
}
