/* The bytes of the kill table, for the eBPF programs that enforce it, and what they decide by it.
 *
 * Says the same as src/layout.rs, which has the reasons. Everything that is decided about a process is decided here,
 * in functions of values: tests/decisions.rs compiles them for this machine and holds them against the Rust reference
 * in src/reference.rs, with tables of garbage too. Orders are written from outside, at any moment: every word of them
 * is read once and believed only if the slot's own check holds.
 */
#ifndef KILLTABLE_H
#define KILLTABLE_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t kt_u8;
typedef uint32_t kt_u32;
typedef uint64_t kt_u64;
#else
/* eBPF programs are compiled without a C library. */
typedef unsigned char kt_u8;
typedef unsigned int kt_u32;
typedef unsigned long long kt_u64;
#endif

#define KT_INLINE static inline __attribute__((always_inline))
#define KT_READ(word) (*(const volatile kt_u64 *)&(word))

#define KT_ORDERS_MAGIC 0x917272644f6c6cc5ULL
#define KT_ANSWERS_MAGIC 0xa5736e416c6c69cbULL
#define KT_VERSION 1u
#define KT_SLOT_BYTES 32u
#define KT_BROAD_SLOTS 32u
#define KT_PID_SLOTS 4096u
#define KT_PID_SLOTS_LOG2 12
#define KT_SLOTS (KT_BROAD_SLOTS + KT_PID_SLOTS)
#define KT_PROBES 64u
#define KT_SPARED_MAX 14u
#define KT_LEASE_MS_MAX 60000u
#define KT_NO_SLOT 0xffffffffu
#define KT_MOST_MASK 0xffffffu

enum kt_kind { KT_BY_PID = 0x2d, KT_BY_UID = 0x5b, KT_BY_CGROUP = 0x97 };

/* Why an order is not carried out. */
enum kt_refusal { KT_GOOD = 0, KT_BAD_HEADER = 1, KT_BAD_VERSION = 2, KT_OTHER_TARGET = 3, KT_NO_BOUND = 4 };

struct kt_head {
	kt_u64 number; /* 0: no order. Written last. */
	kt_u64 magic;
	kt_u32 version;
	kt_u32 slot_bytes;
	kt_u64 target;
	kt_u32 most;
	kt_u32 lease_ms;
	kt_u64 reserved[2];
	kt_u64 check;
};

struct kt_slot {
	kt_u64 number;
	kt_u64 key;
	kt_u64 start_ns;
	kt_u64 what; /* most: 24 bits, kind: 8 bits, check: 32 bits */
};

struct kt_orders {
	struct kt_head head;
	struct kt_slot broad[KT_BROAD_SLOTS];
	kt_u64 reserved[376];
	struct kt_slot by_pid[KT_PID_SLOTS];
};

struct kt_answers {
	/* The agent's, once in its life. */
	kt_u64 magic;
	kt_u32 version;
	kt_u32 slot_bytes;
	kt_u32 pid_slots;
	kt_u32 broad_slots;
	kt_u64 target;
	kt_u64 reserved[3];
	kt_u64 check;
	/* Who is never ended; the agent's too. */
	kt_u32 spared_count;
	kt_u32 agent_pid;
	kt_u32 spared[KT_SPARED_MAX];
	/* The kernel's. Counts bear the low half of the order's number in their high half. */
	kt_u64 seen;
	kt_u64 armed;
	kt_u64 refused;
	kt_u64 why;
	kt_u64 until_ns;
	kt_u64 ended;
	kt_u64 declined;
	kt_u64 beat_ns;
	/* The agent's. */
	kt_u64 swept;
	kt_u64 sweeps;
	kt_u64 ended_asleep;
	kt_u64 sweep_beat;
	kt_u64 reserved_for_agent[4];
	kt_u64 reserved_page[448];
	/* Low half of the order's number, and how many were ended by the slot. Broad slots first. */
	kt_u64 tally[KT_SLOTS];
};

/* What is known of a process when it is judged. */
struct kt_process {
	kt_u32 pid;
	kt_u32 uid;
	kt_u32 effective_uid;
	kt_u32 is_kernel;
	kt_u64 start_ns;
	kt_u64 cgroup;
};

#define KT_FNV_OFFSET 0xcbf29ce484222325ULL
#define KT_FNV_PRIME 0x00000100000001b3ULL
#define KT_FNV(sum, word) (((sum) ^ (word)) * KT_FNV_PRIME)

/* Whether an order may be taken up, and if not why. */
KT_INLINE kt_u32 kt_refusal(const struct kt_orders *orders, kt_u64 number, kt_u64 target)
{
	const kt_u64 *words = (const kt_u64 *)&orders->head;
	kt_u64 magic = KT_READ(words[1]), version = KT_READ(words[2]), whom = KT_READ(words[3]), bounds = KT_READ(words[4]);
	kt_u64 zero = KT_READ(words[5]), zero_too = KT_READ(words[6]), sum = KT_FNV(KT_FNV_OFFSET, number);

	sum = KT_FNV(KT_FNV(KT_FNV(KT_FNV(KT_FNV(KT_FNV(sum, magic), version), whom), bounds), zero), zero_too);
	if (sum != KT_READ(words[7]) || magic != KT_ORDERS_MAGIC || (zero | zero_too))
		return KT_BAD_HEADER;
	if (version != (KT_VERSION | (kt_u64)KT_SLOT_BYTES << 32))
		return KT_BAD_VERSION;
	if (whom != target)
		return KT_OTHER_TARGET;
	if ((kt_u32)bounds == 0 || bounds >> 32 == 0 || bounds >> 32 > KT_LEASE_MS_MAX)
		return KT_NO_BOUND;
	return KT_GOOD;
}

/* Whether the slot is one of this order's, whole, and means that key. */
KT_INLINE int kt_holds(const struct kt_slot *slot, kt_u64 number, kt_u32 kind, kt_u64 key, kt_u64 start_ns)
{
	kt_u64 what = KT_READ(slot->what), sum;

	if (KT_READ(slot->key) != key || KT_READ(slot->start_ns) != start_ns || (what >> 24 & 0xff) != kind)
		return 0;
	sum = KT_FNV(KT_FNV(KT_FNV(KT_FNV(KT_FNV_OFFSET, number), key), start_ns), what & 0xffffffff);
	return sum >> 32 == what >> 32;
}

/* Where the search for a pid begins: another place with each number, so that no choice of pids crowds them all. */
KT_INLINE kt_u32 kt_home(kt_u64 number, kt_u32 pid)
{
	return (kt_u32)(((number ^ pid) * 0x9e3779b97f4a7c15ULL) >> (64 - KT_PID_SLOTS_LOG2));
}

/* The slot of order `number` that means `process`, or KT_NO_SLOT. */
KT_INLINE kt_u32 kt_find(const struct kt_orders *orders, kt_u64 number, const struct kt_process *process)
{
	kt_u32 home = kt_home(number, process->pid);

	for (kt_u32 i = 0; i < KT_PROBES; i++) {
		kt_u32 at = (home + i) & (KT_PID_SLOTS - 1);
		const struct kt_slot *slot = &orders->by_pid[at];

		if (KT_READ(slot->number) != number)
			break;
		if (kt_holds(slot, number, KT_BY_PID, process->pid, process->start_ns))
			return KT_BROAD_SLOTS + at;
	}
	for (kt_u32 at = 0; at < KT_BROAD_SLOTS; at++) {
		const struct kt_slot *slot = &orders->broad[at];

		if (KT_READ(slot->number) != number)
			break;
		if (kt_holds(slot, number, KT_BY_UID, process->uid, 0) ||
		    kt_holds(slot, number, KT_BY_CGROUP, process->cgroup, 0))
			return at;
	}
	return KT_NO_SLOT;
}

/* Whether the process may be ended at all, whatever an order says. */
KT_INLINE int kt_may_end(const struct kt_answers *answers, const struct kt_process *process)
{
	kt_u32 count = answers->spared_count;

	if (process->pid <= 1 || process->is_kernel)
		return 0;
	if (process->pid == answers->agent_pid)
		return 0;
	for (kt_u32 i = 0; i < KT_SPARED_MAX; i++) {
		if (i >= count)
			break;
		if (answers->spared[i] == process->uid || answers->spared[i] == process->effective_uid)
			return 0;
	}
	return 1;
}

#define KT_AT(type, member, offset) \
	_Static_assert(__builtin_offsetof(struct type, member) == (offset), #type "." #member)

_Static_assert(sizeof(struct kt_head) == 64, "head");
_Static_assert(sizeof(struct kt_slot) == KT_SLOT_BYTES, "slot");
_Static_assert(sizeof(struct kt_orders) == 33 * 4096, "orders are whole pages");
_Static_assert(sizeof(struct kt_answers) == 9 * 4096, "answers are whole pages");
_Static_assert(KT_PID_SLOTS == 1u << KT_PID_SLOTS_LOG2, "a power of two");
KT_AT(kt_head, target, 24);
KT_AT(kt_head, check, 56);
KT_AT(kt_orders, broad, 64);
KT_AT(kt_orders, by_pid, 4096);
KT_AT(kt_answers, check, 56);
KT_AT(kt_answers, spared_count, 64);
KT_AT(kt_answers, spared, 72);
KT_AT(kt_answers, seen, 128);
KT_AT(kt_answers, swept, 192);
KT_AT(kt_answers, tally, 3840);

#undef KT_AT
#endif
