/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only */
/* Enforces the lock word (locktable.h) inside the kernel. Part of sensors.bpf.c.
 *
 * The word is looked at 200 times a second on each processor, from an interrupt, and at every packet of a guarded
 * interface: so it is answered while no process gets to run. While a lock stands, packets to service addresses are
 * dropped as they come (XDP where the driver takes it, tc ingress) and those from them as they leave (tc egress), ARP
 * and neighbour discovery for them included; not RoCEv2, which has a port of its own. Processes of the service are
 * stopped by SIGSTOP in their own context, as the kill table ends them.
 *
 * While nothing stands and the word is free this costs each packet two loads, and a context switch nothing.
 */
#include "locktable.h"

enum { SIGSTOP = 19, TASK_IS_STOPPED = 4 };

/* Source: include/uapi/linux/{if_ether,in,icmpv6,bpf,pkt_cls}.h. */
enum { ETH_ARP = 0x0806, ETH_IPV4 = 0x0800, ETH_IPV6 = 0x86dd, ETH_VLAN = 0x8100, ETH_VLANS = 0x88a8 };
enum { IS_UDP = 17, IS_ICMPV6 = 58, NEIGHBOUR_SOLICITATION = 135, NEIGHBOUR_ADVERTISEMENT = 136 };
enum { XDP_DROP = 1, XDP_PASS = 2, TC_ACT_UNSPEC = -1, TC_ACT_SHOT = 2 };

enum { ROCE_PORT = 4791, VLAN_TAGS = 2 };

/* Bits of a processor's preempt_count that say that it is on the way out to the network, among other things: softirqs
 * run or are held off. Source: include/linux/preempt.h. */
enum { SOFTIRQ_MASK = 0xff00 };

/* The agent beats five times a second. */
#define AGENT_BEATS_WITHIN_NS 1000000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lk_lock);
} lock SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lk_locked);
} locked SEC(".maps");

/* An IPv6 address, or an IPv4 one mapped into those. */
struct address {
	__u32 words[4];
};

/* Addresses of the service; the agent's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct address);
	__type(value, __u32);
} service_addresses SEC(".maps");

/* Who was stopped: process, and when it started. Whoever lets them go is the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} stopped SEC(".maps");

/* What stands, once more: for hooks that must not look further if nothing does. */
static volatile __u32 standing_mode;

/* Since 6.2 (commit 64701838bf05) the count lies among other things of a processor. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct pcpu_hot {
	int preempt_count;
};
#pragma clang attribute pop
extern const int __preempt_count __ksym __weak;
extern const struct pcpu_hot pcpu_hot __ksym __weak;

static __always_inline struct lk_locked *the_locked(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&locked, &only);
}

static __always_inline struct lk_lock *the_lock(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&lock, &only);
}

/* Looks at the lock word, and changes what stands if that follows. */
static __always_inline lk_u64 look_at_lock(struct lk_locked *answers)
{
	lk_u64 standing = LK_READ(answers->standing), word, next, now;
	struct lk_lock *words = the_lock();
	lk_u32 verdict;

	if (!words)
		return standing;
	word = LK_READ(words->word);
	if (LK_MODE(standing) == LK_NONE && (!word || word == LK_READ(answers->refused)))
		return standing;
	now = bpf_ktime_get_ns();
	next = lk_next(standing, word, LK_READ(answers->target), now / NS_OF_MS, &verdict);
	if (verdict == LK_BAD_WORD || verdict == LK_TOO_LATE) {
		LK_WRITE(answers->why, verdict);
		LK_WRITE(answers->refused, word);
	}
	if (next == standing)
		return standing;
	if (__sync_val_compare_and_swap(&answers->standing, standing, next) != standing)
		return LK_READ(answers->standing); /* another processor has just changed it */
	standing_mode = LK_MODE(next);
	LK_WRITE(answers->since_ns, now);
	return next;
}

/* Whether this processor is outside of the way out to the network: what its interrupt interrupted has no packet half on
 * its way past the hooks. Asked from a hard interrupt. */
static __always_inline int is_off_the_network(void)
{
	if (&__preempt_count) {
		const int *count = bpf_this_cpu_ptr(&__preempt_count);

		return !(*count & SOFTIRQ_MASK);
	}
	if (&pcpu_hot) {
		const struct pcpu_hot *hot = bpf_this_cpu_ptr(&pcpu_hot);

		return !(hot->preempt_count & SOFTIRQ_MASK);
	}
	return 0;
}

/* Stops the current process if it is the service's. */
static __noinline int stop_the_service(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct lk_locked *answers = the_locked();
	struct kt_process process = {};
	__u64 start_ns;
	__u32 pid, mode;

	if (!answers || is_dying(task) || BPF_CORE_READ(task, __state) & TASK_IS_STOPPED)
		return 0;
	mode = LK_MODE(LK_READ(answers->standing));
	/* Who is stopped by what ends by itself must be let go by somebody. */
	if (mode == LK_NONE ||
	    (mode != LK_HOLD && bpf_ktime_get_ns() - LK_READ(answers->agent_beat_ns) > AGENT_BEATS_WITHIN_NS))
		return 0;
	describe(task, &process);
	if (process.is_kernel || !lk_is_marked(answers, process.pid, process.uid, process.cgroup))
		return 0;
	pid = process.pid;
	start_ns = process.start_ns;
	/* Noted first: who is stopped and not noted would stay so. */
	if (bpf_map_update_elem(&stopped, &pid, &start_ns, BPF_ANY))
		return 0;
	if (!bpf_send_signal(SIGSTOP))
		__sync_fetch_and_add(&answers->stopped, 1);
	return 0;
}

/* On a timer of each processor. */
static __always_inline void look_for_lock(void)
{
	struct lk_locked *answers = the_locked();
	__u32 cpu = bpf_get_smp_processor_id();
	lk_u64 standing;

	if (!answers || LK_READ(answers->magic) != LK_MAGIC)
		return;
	standing = look_at_lock(answers);
	LK_WRITE(answers->beat_ns, bpf_ktime_get_ns());
	/* Another processor may have said something else. */
	if (standing_mode != LK_MODE(standing))
		standing_mode = LK_MODE(standing);
	if (LK_MODE(standing) == LK_NONE)
		return;
	stop_the_service();
	if (cpu < LK_PROCESSORS && is_off_the_network())
		LK_WRITE(answers->settled[cpu], standing & LK_NUMBER);
}

static __always_inline int is_service(const struct address *address)
{
	return !!bpf_map_lookup_elem(&service_addresses, address);
}

static __always_inline int is_service_v4(__u32 address)
{
	struct address mapped = { { 0, 0, 0xffff0000, address } };

	return is_service(&mapped);
}

static __always_inline int load(void *context, int is_xdp, __u32 offset, void *into, __u32 len)
{
	if (is_xdp)
		return bpf_xdp_load_bytes(context, offset, into, len);
	return bpf_skb_load_bytes(context, offset, into, len);
}

static __always_inline __u16 host(__u16 big_endian)
{
	return big_endian >> 8 | big_endian << 8;
}

static __always_inline int is_roce(void *context, int is_xdp, __u32 offset)
{
	__u16 ports[2];

	return !load(context, is_xdp, offset, ports, sizeof(ports)) && host(ports[1]) == ROCE_PORT;
}

static __always_inline int concerns_v4(void *context, int is_xdp, int leaves, __u32 at)
{
	struct {
		__u8 version_and_words;
		__u8 service;
		__u16 length, id, fragment;
		__u8 hops, protocol;
		__u16 sum;
		__u32 from, to;
	} ip;

	if (load(context, is_xdp, at, &ip, sizeof(ip)) || !is_service_v4(leaves ? ip.from : ip.to))
		return 0;
	return ip.protocol != IS_UDP || !is_roce(context, is_xdp, at + (ip.version_and_words & 15) * 4);
}

static __always_inline int concerns_v6(void *context, int is_xdp, int leaves, __u32 at)
{
	struct {
		__u32 version;
		__u16 length;
		__u8 protocol, hops;
		struct address from, to;
	} ip;
	struct {
		__u8 type, code;
		__u16 sum;
		__u32 flags;
		struct address about;
	} neighbour;

	if (load(context, is_xdp, at, &ip, sizeof(ip)))
		return 0;
	if (ip.protocol == IS_ICMPV6 && !load(context, is_xdp, at + sizeof(ip), &neighbour, sizeof(neighbour)) &&
	    (neighbour.type == NEIGHBOUR_SOLICITATION || neighbour.type == NEIGHBOUR_ADVERTISEMENT) &&
	    is_service(&neighbour.about))
		return 1;
	if (!is_service(leaves ? &ip.from : &ip.to))
		return 0;
	return ip.protocol != IS_UDP || !is_roce(context, is_xdp, at + sizeof(ip));
}

static __always_inline int concerns_arp(void *context, int is_xdp, __u32 at)
{
	struct {
		__u16 of[4];
		__u8 sender_link[6];
		__u8 sender[4];
		__u8 target_link[6];
		__u8 target[4];
	} arp;
	__u32 sender, target;

	if (load(context, is_xdp, at, &arp, sizeof(arp)))
		return 0;
	__builtin_memcpy(&sender, arp.sender, 4);
	__builtin_memcpy(&target, arp.target, 4);
	return is_service_v4(sender) || is_service_v4(target);
}

/* Whether the packet is of a service address: on its way to one, or if it leaves, from one. */
static __always_inline int concerns_the_service(void *context, int is_xdp, int leaves)
{
	__u32 at = 12;
	__u16 protocol;

	for (int tags = 0; tags <= VLAN_TAGS; tags++) {
		if (load(context, is_xdp, at, &protocol, sizeof(protocol)))
			return 0;
		if (host(protocol) != ETH_VLAN && host(protocol) != ETH_VLANS)
			break;
		at += 4;
	}
	at += 2;
	if (host(protocol) == ETH_IPV4)
		return concerns_v4(context, is_xdp, leaves, at);
	if (host(protocol) == ETH_IPV6)
		return concerns_v6(context, is_xdp, leaves, at);
	return host(protocol) == ETH_ARP && concerns_arp(context, is_xdp, at);
}

static __always_inline int is_to_be_dropped(void *context, int is_xdp, int leaves)
{
	struct lk_locked *answers = the_locked();

	if (!answers || LK_READ(answers->magic) != LK_MAGIC)
		return 0;
	if (LK_MODE(look_at_lock(answers)) == LK_NONE || !concerns_the_service(context, is_xdp, leaves))
		return 0;
	__sync_fetch_and_add(leaves ? &answers->dropped_out : &answers->dropped_in, 1);
	return 1;
}

struct xdp_md;
struct __sk_buff;

SEC("xdp")
int guard_xdp(struct xdp_md *context)
{
	return is_to_be_dropped(context, 1, 0) ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int guard_in(struct __sk_buff *context)
{
	return is_to_be_dropped(context, 0, 0) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int guard_out(struct __sk_buff *context)
{
	return is_to_be_dropped(context, 0, 1) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

struct one_stopped {
	__u32 pid;
	__u32 zero;
	__u64 start_ns;
};

/* Read by the agent, which lets them go when nothing stands any more: see thaw.rs. */
SEC("iter/task")
int list_stopped(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct one_stopped one = {};
	__u64 *start_ns;
	__u32 pid;

	if (!task || BPF_CORE_READ(task, pid) != BPF_CORE_READ(task, tgid))
		return 0;
	pid = BPF_CORE_READ(task, tgid);
	start_ns = bpf_map_lookup_elem(&stopped, &pid);
	if (!start_ns || *start_ns != BPF_CORE_READ(task, start_time))
		return 0;
	one.pid = pid;
	one.start_ns = *start_ns;
	bpf_seq_write(context->meta->seq, &one, sizeof(one));
	return 0;
}
