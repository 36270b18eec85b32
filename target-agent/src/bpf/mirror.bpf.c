// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/* Keeps the table of TCP connections: for each connection of a service's port a record of the numbers that going on
 * with it elsewhere takes, and the bytes that its application has not read. tcptable.h has the layout, decision 0022
 * the reasons.
 *
 *   established ── a slot ──► tail of the slot: identity, two records that are written in turn
 *   a segment is about to leave, or the application has closed
 *                  ──► mirror(): bytes that are new in the receive queue, then a record
 *   closed ── the slot is free
 *
 * All of these are called by whoever holds the socket, between the kernel's own updates: what is read is consistent,
 * and one slot has one writer. What leaves is mirrored before: no client has heard of what is not in the table. What
 * has not left is not in it: a client says again what was not acknowledged, and the box of the session says what its
 * application has gone by.
 *
 * A program that interrupts itself on the same processor is passed over by the kernel: a segment that leaves for a
 * packet that came in the middle of another segment's. So the end of taking a packet in looks whether what has left
 * since is in the table, and writes it if not.
 */
#include "tcptable.h"

/* What bpf_helpers.h expects from a vmlinux.h, which is not needed for anything else. */
typedef tt_u8 __u8;
typedef tt_u16 __u16;
typedef tt_u32 __u32;
typedef tt_u64 __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_SK_STORAGE = 24 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1 << 10, BPF_SK_STORAGE_GET_F_CREATE = 1 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* enum in include/net/tcp_states.h, and IPPROTO_TCP, AF_INET, AF_INET6. */
enum { TCP_ESTABLISHED = 1, TCP_CLOSE = 7 };
enum { IPPROTO_TCP = 6, AF_INET = 2, AF_INET6 = 10 };

/* Bit of SOCK_DEAD in skc_flags. */
enum { SOCK_DEAD = 1 };

/* Slots that are looked at for a free one. */
enum { PROBES = 1024 };

/* Buffers and pieces of them that one call goes through: more than a full ring has, of any size that senders use. */
enum { BUFFERS = 512, STEPS = 2048 };

/* Bytes copied at once. What the verifier knows of a place in the ring is that it lies inside: the tail behind it is
 * as long as a copy may be. */
enum { CHUNK = 4096 };

#define VOLATILE(word) (*(volatile __typeof__(word) *)&(word))
#define BARRIER() asm volatile("" ::: "memory")

/* A part of a packet buffer in a page: `struct bio_vec`, and `struct skb_frag` of newer kernels. */
struct fragment {
	__u64 page;
	__u32 length;
	__u32 offset;
};

/* Members of kernel structures that are read, placed by CO-RE when the programs are loaded. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};
struct net;
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sk_buff {
	struct sk_buff *next;
	struct sk_buff *prev;
	char cb[48];
	unsigned int len;
	unsigned int data_len;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};
struct sk_buff_head {
	struct sk_buff *next;
	struct sk_buff *prev;
};
struct tcp_skb_cb {
	__u32 seq;
};
struct skb_shared_info {
	__u8 nr_frags;
	struct sk_buff *frag_list;
	struct fragment frags[1];
};
struct page {
	unsigned long flags;
};
struct socket;
struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	struct socket *sk_socket;
};
struct socket {
	struct sock *sk;
};
struct inet_sock {
	struct sock sk;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
};
struct tcp_options_received {
	__u32 ts_recent;
	__u16 tstamp_ok : 1, wscale_ok : 1, sack_ok : 3, snd_wscale : 4, rcv_wscale : 4;
	__u16 mss_clamp;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 rcv_wup;
	__u32 rcv_wnd;
	__u32 snd_wl1;
	__u32 snd_wnd;
	__u32 max_window;
	__u32 snd_cwnd;
	__u32 mss_cache;
	__u32 tsoffset;
	__u64 tcp_mstamp;
	__u64 tcp_clock_cache;
	__u64 tcp_wstamp_ns;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u16 urg_data;
	__u8 repair : 1;
	__u8 is_mptcp : 1;
	__u8 tcp_usec_ts : 1;
	struct tcp_options_received rx_opt;
};
#pragma clang attribute pop

extern const void vmemmap_base __ksym __weak;	  /* unsigned long, arch/x86/kernel/head64.c */
extern const void page_offset_base __ksym __weak; /* the same */
extern const void init_net __ksym __weak;	  /* struct net, net/core/net_namespace.c */

/* The agent makes the map; this only describes it. Entry 0 begins with the header. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct tt_slot);
} tcp SEC(".maps");

/* What a mirrored socket bears. */
struct own {
	__u32 slot;
	/* The sequence number up to which the bytes of its client are in the ring, or were read. */
	__u32 taken;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct own);
} tcp_socks SEC(".maps");

/* Zero, which the verifier does not know. Linux before 6.7 looks at the body of a loop once, with the values that it
 * begins with: what it then knows to be zero stays so for it, and what is done otherwise is left out. */
static volatile __u32 unknown_zero;

static __always_inline struct tt_slot *slot_at(__u32 index)
{
	return bpf_map_lookup_elem(&tcp, &index);
}

static __always_inline int is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* Reads a member of what `address` points to, which need not be there. */
#define PEEK(type, address, member, into) \
	bpf_probe_read_kernel(&(into), sizeof(into), \
			      (void *)(address) + bpf_core_field_offset(((type *)0)->member))

static __always_inline __u32 sequence_of(__u64 skb)
{
	__u32 seq = 0;

	bpf_probe_read_kernel(&seq, sizeof(seq), (void *)skb + bpf_core_field_offset(((struct sk_buff *)0)->cb) +
					bpf_core_field_offset(((struct tcp_skb_cb *)0)->seq));
	return seq;
}

/* A walk along a receive queue: at `into` bytes of a piece of `skb`, whose sequence number is `seq`. */
struct walk {
	__u64 queue;
	__u64 skb;
	__u64 pages;
	__u64 direct_map;
	__u32 piece;
	__u32 into;
	__u32 seq;
	/* Bytes from here on are wanted. */
	__u32 want;
	__u32 first;
	__u32 slot;
};

/* Goes back to the last buffer that does not begin after what is wanted. */
static long back(__u32 step, void *context)
{
	struct walk *walk = context;
	__u64 before = 0;

	if (!is_after(sequence_of(walk->skb), walk->want))
		return 1;
	PEEK(struct sk_buff, walk->skb, prev, before);
	if (!before || before == walk->queue)
		return 1;
	walk->skb = before;
	return 0;
}

/* Where a piece of the buffer lies and how long it is: its linear part, or one of its fragments. 0 if there is none. */
static __always_inline int piece_of(struct walk *walk, __u64 *address, __u32 *length)
{
	__u32 all = 0, in_fragments = 0, end = 0, number = walk->piece - 1;
	struct fragment fragment = {};
	__u64 shared = 0;
	__u8 count = 0;

	if (walk->piece == 0) {
		PEEK(struct sk_buff, walk->skb, len, all);
		PEEK(struct sk_buff, walk->skb, data_len, in_fragments);
		PEEK(struct sk_buff, walk->skb, data, *address);
		*length = all > in_fragments ? all - in_fragments : 0;
		return 1;
	}
	PEEK(struct sk_buff, walk->skb, head, shared);
	PEEK(struct sk_buff, walk->skb, end, end);
	shared += end;
	PEEK(struct skb_shared_info, shared, nr_frags, count);
	if (number >= count)
		return 0;
	bpf_probe_read_kernel(&fragment, sizeof(fragment),
			      (void *)shared + bpf_core_field_offset(((struct skb_shared_info *)0)->frags) +
				      number * sizeof(fragment));
	*length = fragment.length;
	*address = walk->direct_map + (fragment.page - walk->pages) / bpf_core_type_size(struct page) * 4096 +
		   fragment.offset;
	return 1;
}

/* Goes to the next buffer; 1 at the end, and where a buffer has a list of others, which is passed over nowhere. */
static __always_inline int next_buffer(struct walk *walk)
{
	__u64 shared = 0, list = 0, next = 0;
	__u32 end = 0;

	PEEK(struct sk_buff, walk->skb, head, shared);
	PEEK(struct sk_buff, walk->skb, end, end);
	PEEK(struct skb_shared_info, shared + end, frag_list, list);
	PEEK(struct sk_buff, walk->skb, next, next);
	if (list || !next || next == walk->queue)
		return 1;
	walk->skb = next;
	walk->piece = 0;
	walk->into = 0;
	walk->seq = sequence_of(next);
	/* A gap: nothing behind it follows what was taken. */
	return is_after(walk->seq, walk->want);
}

/* Copies the next stretch of wanted bytes into the ring, or goes on to the next piece. */
static long copy(__u32 step, void *context)
{
	struct walk *walk = context;
	struct tt_slot *slot = slot_at(walk->slot);
	__u32 length = 0, skip, chunk, place;
	__u64 address = 0;

	if (!slot)
		return 1;
	if (!piece_of(walk, &address, &length))
		return next_buffer(walk);
	if (walk->into < length && is_after(walk->want, walk->seq)) {
		skip = walk->want - walk->seq;
		if (skip > length - walk->into)
			skip = length - walk->into;
		walk->into += skip;
		walk->seq += skip;
	}
	if (walk->into >= length) {
		walk->piece++;
		walk->into = 0;
		return 0;
	}
	chunk = length - walk->into;
	place = (walk->seq - walk->first) & (TT_RING_BYTES - 1);
	if (chunk > TT_RING_BYTES - place)
		chunk = TT_RING_BYTES - place;
	if (chunk > CHUNK)
		chunk = CHUNK;
	asm volatile("%0 &= 0xffff" : "+r"(place));
	if (chunk == 0 || chunk > CHUNK || bpf_probe_read_kernel(slot->ring + place, chunk, (void *)address + walk->into))
		return 1;
	walk->into += chunk;
	walk->seq += chunk;
	walk->want = walk->seq;
	return 0;
}

/* Takes bytes that are new in the receive queue, up to `rcv_nxt`, over into the ring. */
static __always_inline void take(struct sock *sk, struct tcp_sock *tp, struct own *own, struct tt_slot *slot)
{
	__u32 rcv_nxt = tp->rcv_nxt, copied = tp->copied_seq, want = own->taken;
	__u64 received = tp->bytes_received;
	struct walk walk = {};

	if (is_after(copied, want))
		want = copied;
	if (!is_after(rcv_nxt, want)) {
		own->taken = want;
		return;
	}
	/* What a reader is told not to believe before it is overwritten. */
	VOLATILE(slot->overwritten) = received > TT_RING_BYTES ? received - TT_RING_BYTES : 0;
	BARRIER();
	walk.queue = (__u64)sk + bpf_core_field_offset(((struct sock *)0)->sk_receive_queue);
	PEEK(struct sk_buff_head, walk.queue, prev, walk.skb);
	walk.want = want;
	if (!walk.skb || walk.skb == walk.queue)
		return;
	bpf_probe_read_kernel(&walk.pages, sizeof(walk.pages), &vmemmap_base);
	bpf_probe_read_kernel(&walk.direct_map, sizeof(walk.direct_map), &page_offset_base);
	walk.piece = unknown_zero;
	walk.into = unknown_zero;
	walk.first = slot->first_received;
	walk.slot = own->slot;
	bpf_loop(BUFFERS, back, &walk, 0);
	walk.seq = sequence_of(walk.skb);
	if (!is_after(walk.seq, walk.want))
		bpf_loop(STEPS, copy, &walk, 0);
	own->taken = walk.want;
}

/* What is settled with the handshake. */
enum { SETTLED = TT_TIMESTAMPS | TT_SCALING | TT_SACK | TT_MICROSECONDS | TT_MPTCP | TT_INET6 | TT_INIT_NET };

static __always_inline __u16 settled_flags(struct sock *sk, struct tcp_sock *tp)
{
	__u16 flags = 0;

	if (BPF_CORE_READ_BITFIELD(tp, rx_opt.tstamp_ok))
		flags |= TT_TIMESTAMPS;
	if (BPF_CORE_READ_BITFIELD(tp, rx_opt.wscale_ok))
		flags |= TT_SCALING;
	if (BPF_CORE_READ_BITFIELD(tp, rx_opt.sack_ok))
		flags |= TT_SACK;
	if (bpf_core_field_exists(tp->tcp_usec_ts) && BPF_CORE_READ_BITFIELD(tp, tcp_usec_ts))
		flags |= TT_MICROSECONDS;
	if (bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD(tp, is_mptcp))
		flags |= TT_MPTCP;
	if (sk->__sk_common.skc_family == AF_INET6)
		flags |= TT_INET6;
	if (&init_net && (__u64)sk->__sk_common.skc_net.net == (__u64)&init_net)
		flags |= TT_INIT_NET;
	return flags;
}

static __always_inline __u16 passing_flags(struct sock *sk, struct tcp_sock *tp)
{
	__u16 flags = 0;

	if (tp->urg_data)
		flags |= TT_URGENT;
	if (BPF_CORE_READ_BITFIELD(tp, repair))
		flags |= TT_REPAIR;
	if (tp->inet_conn.icsk_ulp_ops)
		flags |= TT_UPPER_LAYER;
	if (sk->__sk_common.skc_flags & SOCK_DEAD)
		flags |= TT_ORPHANED;
	return flags;
}

/* What a handshake settles is read once, and then taken over from the record before: a read of a member of a kernel
 * structure costs ten instructions, one of the table's one. Under TCP_REPAIR it is settled by the application. */
static __always_inline void settle(struct sock *sk, struct tcp_sock *tp, struct tt_record *before,
				   struct tt_record *record)
{
	__u16 flags = passing_flags(sk, tp);

	if (before->number && !(before->flags & TT_REPAIR)) {
		record->tsoffset = before->tsoffset;
		record->mss_clamp = before->mss_clamp;
		record->snd_wscale = before->snd_wscale;
		record->rcv_wscale = before->rcv_wscale;
		record->flags = flags | (before->flags & SETTLED);
		return;
	}
	record->tsoffset = tp->tsoffset;
	record->mss_clamp = tp->rx_opt.mss_clamp;
	record->snd_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.snd_wscale);
	record->rcv_wscale = BPF_CORE_READ_BITFIELD(tp, rx_opt.rcv_wscale);
	record->flags = flags | settled_flags(sk, tp);
}

/* Whether a record says what reinstating goes by. Times are not compared: they count when something leaves. */
static __always_inline int is_said(struct tt_record *record, struct sock *sk, struct tcp_sock *tp, struct own *own)
{
	return record->number && record->snd_una == tp->snd_una && record->write_seq == tp->write_seq &&
	       record->rcv_nxt == tp->rcv_nxt && record->copied_seq == tp->copied_seq &&
	       record->rcv_wup == tp->rcv_wup && record->snd_wnd == tp->snd_wnd && record->taken == own->taken &&
	       record->state == sk->__sk_common.skc_state && !(sk->__sk_common.skc_flags & SOCK_DEAD);
}

static __always_inline struct tt_record *newest(struct tt_slot *slot)
{
	return &slot->records[slot->records[1].number > slot->records[0].number];
}

static __always_inline void say(struct sock *sk, struct tcp_sock *tp, struct own *own, struct tt_slot *slot, int always)
{
	struct tt_record *before = newest(slot), *record;
	__u64 number, clock;

	if (!always && is_said(before, sk, tp, own))
		return;
	number = before->number + 1;
	record = &slot->records[number & 1];
	VOLATILE(record->check) = 0;
	BARRIER();
	record->number = number;
	record->snd_una = tp->snd_una;
	record->snd_nxt = tp->snd_nxt;
	record->write_seq = tp->write_seq;
	record->rcv_nxt = tp->rcv_nxt;
	record->copied_seq = tp->copied_seq;
	record->rcv_wup = tp->rcv_wup;
	record->rcv_wnd = tp->rcv_wnd;
	record->snd_wl1 = tp->snd_wl1;
	record->snd_wnd = tp->snd_wnd;
	record->max_window = tp->max_window;
	record->snd_cwnd = tp->snd_cwnd;
	record->mss_cache = tp->mss_cache;
	record->ts_recent = tp->rx_opt.ts_recent;
	record->tcp_mstamp_us = tp->tcp_mstamp;
	/* What is about to leave bears the later of both. */
	clock = tp->tcp_clock_cache;
	record->tcp_wstamp_ns = tp->tcp_wstamp_ns;
	if (clock > record->tcp_wstamp_ns)
		record->tcp_wstamp_ns = clock;
	record->bytes_acked = tp->bytes_acked;
	record->bytes_received = tp->bytes_received;
	record->taken = own->taken;
	record->state = sk->__sk_common.skc_state;
	record->shutdown = BPF_CORE_READ_BITFIELD(sk, sk_shutdown);
	settle(sk, tp, before, record);
	record->bound_device = sk->__sk_common.skc_bound_dev_if;
	record->reserved = 0;
	BARRIER();
	VOLATILE(record->check) = tt_record_check(slot->generation, record);
}

static __always_inline void mirror(struct sock *sk, int always)
{
	struct own *own = bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
	struct tcp_sock *tp;
	struct tt_slot *slot;

	if (!own)
		return;
	slot = slot_at(own->slot);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!slot || !tp)
		return;
	take(sk, tp, own, slot);
	say(sk, tp, own, slot, always);
}

/* Before anything leaves: segments, acknowledgements, what is sent again. */
SEC("fentry/__tcp_transmit_skb")
int on_transmit(__u64 *arguments)
{
	mirror((struct sock *)arguments[0], 1);
	return 0;
}

/* Whether a record covers what has left: what was acknowledged, and what was sent. */
static __always_inline int is_covered(struct tt_record *record, struct tcp_sock *tp)
{
	return !is_after(tp->rcv_wup, record->rcv_nxt) && !is_after(tp->snd_nxt, record->write_seq);
}

/* A packet has been taken in: all that left for it is in the table, unless a program was passed over. */
SEC("fexit/tcp_rcv_established")
int on_received(__u64 *arguments)
{
	struct sock *sk = (struct sock *)arguments[0];
	struct own *own = bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
	struct tcp_sock *tp;
	struct tt_slot *slot;

	if (!own)
		return 0;
	slot = slot_at(own->slot);
	tp = bpf_skc_to_tcp_sock(sk);
	if (slot && tp && !is_covered(newest(slot), tp))
		mirror(sk, 1);
	return 0;
}

/* In the other states. */
SEC("fexit/tcp_rcv_state_process")
int on_received_closing(__u64 *arguments)
{
	mirror((struct sock *)arguments[0], 0);
	return 0;
}

/* The application has closed; the kernel goes on with it, and the box says nothing any more. */
SEC("fexit/__tcp_close")
int on_close(__u64 *arguments)
{
	mirror((struct sock *)arguments[0], 0);
	return 0;
}

/* Finds a free slot, beginning at another place each time. */
struct search {
	__u32 at;
	__u32 slots;
	__u32 found;
};

static long probe(__u32 step, void *context)
{
	struct search *search = context;
	struct tt_slot *slot;

	/* Entry 0 is the header. */
	search->at = search->at + 1 < search->slots ? search->at + 1 : 1;
	slot = slot_at(search->at);
	if (!slot)
		return 1;
	if (slot->state == TT_FREE && __sync_val_compare_and_swap(&slot->state, TT_FREE, TT_TAKEN) == TT_FREE) {
		search->found = search->at;
		return 1;
	}
	return 0;
}

static __always_inline int is_served(struct tt_header *header, __u16 port)
{
	__u64 count = header->ports_count;

	for (__u32 i = 0; i < TT_PORTS; i++)
		if (i < count && header->ports[i] == port)
			return 1;
	return 0;
}

/* The second word of an IPv4 address as IPv6 has it, but for the address. */
#define V4_MAPPED 0xffff0000ULL

#define put_address(into, address) \
	do { \
		(into)[0] = (address).in6_u.u6_addr32[0] | (__u64)(address).in6_u.u6_addr32[1] << 32; \
		(into)[1] = (address).in6_u.u6_addr32[2] | (__u64)(address).in6_u.u6_addr32[3] << 32; \
	} while (0)

static __always_inline void identify(struct sock *sk, struct tcp_sock *tp, struct tt_slot *slot)
{
	struct sock_common *common = &sk->__sk_common;

	if (common->skc_family == AF_INET6) {
		put_address(slot->local_address, common->skc_v6_rcv_saddr);
		put_address(slot->peer_address, common->skc_v6_daddr);
	} else {
		slot->local_address[0] = 0;
		slot->local_address[1] = V4_MAPPED | (__u64)common->skc_rcv_saddr << 32;
		slot->peer_address[0] = 0;
		slot->peer_address[1] = V4_MAPPED | (__u64)common->skc_daddr << 32;
	}
	slot->local_port = sk->__sk_common.skc_num;
	slot->peer_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	slot->reserved = 0;
	/* Sequence numbers of the streams' first bytes. */
	slot->first_received = tp->rcv_nxt - (__u32)tp->bytes_received;
	slot->first_sent = tp->snd_una - (__u32)tp->bytes_acked;
}

static __always_inline void open(struct sock *sk)
{
	struct tt_header *header = (void *)slot_at(0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct search search = {};
	struct own *own, new = {};
	struct tt_slot *slot;

	if (!header || !tp || header->magic != TT_MAGIC || !is_served(header, sk->__sk_common.skc_num))
		return;
	if (bpf_sk_storage_get(&tcp_socks, sk, 0, 0))
		return;
	search.found = unknown_zero;
	search.slots = header->slots;
	search.at = (__u32)__sync_fetch_and_add(&header->hand, 1) % (search.slots ?: 1);
	bpf_loop(PROBES, probe, &search, 0);
	slot = slot_at(search.found);
	if (!slot || !search.found) {
		__sync_fetch_and_add(&header->refused, 1);
		return;
	}
	new.slot = search.found;
	new.taken = tp->rcv_nxt - (__u32)tp->bytes_received;
	own = bpf_sk_storage_get(&tcp_socks, sk, &new, BPF_SK_STORAGE_GET_F_CREATE);
	if (!own) {
		VOLATILE(slot->state) = TT_FREE;
		__sync_fetch_and_add(&header->refused, 1);
		return;
	}
	slot->generation++;
	slot->accepted = 0;
	slot->overwritten = 0;
	slot->records[0].number = 0;
	slot->records[1].number = 0;
	identify(sk, tp, slot);
	slot->identity_check = tt_identity_check(slot);
	take(sk, tp, own, slot);
	say(sk, tp, own, slot, 1);
	BARRIER();
	VOLATILE(slot->state) = TT_OPEN;
}

static __always_inline void close(struct sock *sk)
{
	struct own *own = bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
	struct tt_slot *slot;

	if (!own)
		return;
	slot = slot_at(own->slot);
	if (slot)
		VOLATILE(slot->state) = TT_FREE;
	bpf_sk_storage_delete(&tcp_socks, sk);
}

SEC("tp_btf/inet_sock_set_state")
int on_state(__u64 *arguments)
{
	struct sock *sk = (struct sock *)arguments[0];
	int state = (int)arguments[2];

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (state == TCP_ESTABLISHED)
		open(sk);
	else if (state == TCP_CLOSE)
		close(sk);
	return 0;
}

/* Without the socket's lock: one word. */
SEC("fexit/inet_accept")
int on_accept(__u64 *arguments)
{
	struct socket *socket = (struct socket *)arguments[1];
	struct sock *sk = socket->sk;
	struct tt_slot *slot;
	struct own *own;

	if (!sk)
		return 0;
	own = bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
	slot = own ? slot_at(own->slot) : 0;
	if (slot)
		VOLATILE(slot->accepted) = 1;
	return 0;
}
