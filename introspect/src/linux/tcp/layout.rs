//! The members that the TCP walk reads. `sock`, `inet_sock`, `inet_connection_sock` and `tcp_sock` begin at the same
//! address, each inside the next.

use serde::{Deserialize, Serialize};

use crate::btf::{Btf, Field, TypeError, layout};

/// Everything the walk needs to know of the kernel's types.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct TcpLayout {
    pub head: HeadLayout,
    pub sock: SockLayout,
    pub skb: SkbLayout,
    pub shared: SharedLayout,
    pub frag: FragLayout,
    /// Absent before 5.10, where the pointer leads to something else.
    pub saved_syn: Option<SavedSynLayout>,
    /// Without it, handshakes in progress are passed over.
    pub request: Option<RequestLayout>,
}

layout! {
    /// The part that every member of the table has, TIME_WAIT and request socks included.
    pub(crate) struct HeadLayout {
        next: "sock_common.skc_nulls_node.next",
        pprev: "sock_common.skc_nulls_node.pprev",
        state: "sock_common.skc_state",
        family: "sock_common.skc_family",
        local_port: "sock_common.skc_num",
        peer_port: "sock_common.skc_dport",
        local: "sock_common.skc_rcv_saddr",
        peer: "sock_common.skc_daddr",
        net: "sock_common.skc_net.net",
        device: "sock_common.skc_bound_dev_if",
    } optional {
        local6: "sock_common.skc_v6_rcv_saddr",
        peer6: "sock_common.skc_v6_daddr",
        hash: "sock_common.skc_hash",
    }
}

layout! {
    /// A full socket.
    pub(crate) struct SockLayout {
        protocol: "sock.sk_protocol",
        socket: "sock.sk_socket",
        flags: "sock_common.skc_flags",
        shutdown: "sock.sk_shutdown",
        owned: "sock.sk_lock.owned",
        // Under PREEMPT_RT a spinlock is a sleeping lock: it is held when it has an owner.
        slock: "sock.sk_lock.slock.lock.owner" | "sock.sk_lock.slock",
        rtx_root: "sock.tcp_rtx_queue.rb_node",
        write_queue: "sock.sk_write_queue",
        receive_queue: "sock.sk_receive_queue",
        ulp_ops: "inet_connection_sock.icsk_ulp_ops",
        snd_una: "tcp_sock.snd_una",
        snd_nxt: "tcp_sock.snd_nxt",
        write_seq: "tcp_sock.write_seq",
        rcv_nxt: "tcp_sock.rcv_nxt",
        copied_seq: "tcp_sock.copied_seq",
        rcv_wup: "tcp_sock.rcv_wup",
        rcv_wnd: "tcp_sock.rcv_wnd",
        snd_wl1: "tcp_sock.snd_wl1",
        snd_wnd: "tcp_sock.snd_wnd",
        max_window: "tcp_sock.max_window",
        snd_cwnd: "tcp_sock.snd_cwnd",
        mss_cache: "tcp_sock.mss_cache",
        mss_clamp: "tcp_sock.rx_opt.mss_clamp",
        tstamp_ok: "tcp_sock.rx_opt.tstamp_ok",
        wscale_ok: "tcp_sock.rx_opt.wscale_ok",
        sack_ok: "tcp_sock.rx_opt.sack_ok",
        snd_wscale: "tcp_sock.rx_opt.snd_wscale",
        rcv_wscale: "tcp_sock.rx_opt.rcv_wscale",
        ts_recent: "tcp_sock.rx_opt.ts_recent",
        tsoffset: "tcp_sock.tsoffset",
        tcp_mstamp: "tcp_sock.tcp_mstamp",
        tcp_wstamp_ns: "tcp_sock.tcp_wstamp_ns",
        bytes_acked: "tcp_sock.bytes_acked",
        bytes_received: "tcp_sock.bytes_received",
        urg_data: "tcp_sock.urg_data",
        repair: "tcp_sock.repair",
    } optional {
        usec_ts: "tcp_sock.tcp_usec_ts",
        sent_ring: "tcp_sock.tsorted_sent_queue",
        bytes_sent: "tcp_sock.bytes_sent",
        bytes_retrans: "tcp_sock.bytes_retrans",
        is_mptcp: "tcp_sock.is_mptcp",
        saved_syn: "tcp_sock.saved_syn",
        backlog_len: "sock.sk_backlog.len",
    }
}

layout! {
    /// A packet buffer, its TCP control block and the head of a queue of them.
    pub(crate) struct SkbLayout {
        next: "sk_buff.next",
        prev: "sk_buff.prev",
        parent_color: "sk_buff.rbnode.__rb_parent_color",
        right: "sk_buff.rbnode.rb_right",
        left: "sk_buff.rbnode.rb_left",
        cb: "sk_buff.cb",
        len: "sk_buff.len",
        data_len: "sk_buff.data_len",
        head: "sk_buff.head",
        data: "sk_buff.data",
        end: "sk_buff.end",
        cb_seq: "tcp_skb_cb.seq",
        cb_end_seq: "tcp_skb_cb.end_seq",
        cb_flags: "tcp_skb_cb.tcp_flags",
        queue_next: "sk_buff_head.next",
        queue_prev: "sk_buff_head.prev",
        queue_len: "sk_buff_head.qlen",
    } optional {
        sent_anchor: "sk_buff.tcp_tsorted_anchor",
    }
}

layout! {
    /// What lies behind a buffer's linear part.
    pub(crate) struct SharedLayout {
        nr_frags: "skb_shared_info.nr_frags",
        frag_list: "skb_shared_info.frag_list",
        frags: "skb_shared_info.frags",
    }
}

layout! {
    /// What a listener with TCP_SAVE_SYN keeps of a connection's first packet.
    pub(crate) struct SavedSynLayout {
        mac: "saved_syn.mac_hdrlen",
        network: "saved_syn.network_hdrlen",
        tcp: "saved_syn.tcp_hdrlen",
        data: "saved_syn.data",
    }
}

layout! {
    /// A handshake in progress: `request_sock`, `inet_request_sock` and `tcp_request_sock` begin at the same address.
    pub(crate) struct RequestLayout {
        rcv_wnd: "sock_common.skc_rcv_wnd",
        mss: "request_sock.mss",
        num_timeout: "request_sock.num_timeout",
        ts_recent: "request_sock.ts_recent",
        snd_wscale: "inet_request_sock.snd_wscale",
        rcv_wscale: "inet_request_sock.rcv_wscale",
        tstamp_ok: "inet_request_sock.tstamp_ok",
        sack_ok: "inet_request_sock.sack_ok",
        wscale_ok: "inet_request_sock.wscale_ok",
        snt_synack: "tcp_request_sock.snt_synack",
        rcv_isn: "tcp_request_sock.rcv_isn",
        snt_isn: "tcp_request_sock.snt_isn",
        ts_off: "tcp_request_sock.ts_off",
        rcv_nxt: "tcp_request_sock.rcv_nxt",
    } optional {
        usec_ts: "tcp_request_sock.req_usec_ts",
        is_mptcp: "tcp_request_sock.is_mptcp",
    }
}

/// One fragment in a page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct FragLayout {
    pub page: Field,
    pub len: Field,
    pub offset: Field,
    pub bytes: usize,
    /// Whether bit 0 of `page` marks device memory (a `netmem_ref`, from 6.9) instead of a `struct page`.
    pub netmem: bool,
}

impl FragLayout {
    /// `skb_frag_t` is a struct of its own from 6.9 on and was before 5.4; between it is a `bio_vec`.
    fn resolve(btf: &Btf) -> Result<Self, TypeError> {
        let resolve = |name: &str, page: &str, len: &str, offset: &str, netmem: bool| {
            Ok(Self {
                page: btf.field(name, page)?,
                len: btf.field(name, len)?,
                offset: btf.field(name, offset)?,
                bytes: btf.size(name)?,
                netmem,
            })
        };
        resolve("skb_frag", "netmem", "len", "offset", true)
            .or_else(|_: TypeError| resolve("bio_vec", "bv_page", "bv_len", "bv_offset", false))
    }
}

impl TcpLayout {
    pub(crate) fn resolve(btf: &Btf) -> Result<Self, TypeError> {
        Ok(Self {
            head: HeadLayout::resolve(btf)?,
            sock: SockLayout::resolve(btf)?,
            skb: SkbLayout::resolve(btf)?,
            shared: SharedLayout::resolve(btf)?,
            frag: FragLayout::resolve(btf)?,
            saved_syn: SavedSynLayout::resolve(btf).ok(),
            request: RequestLayout::resolve(btf).ok(),
        })
    }
}
