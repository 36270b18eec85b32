/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only */
/* Enforces the kill table inside the kernel. Part of sensors.bpf.c, whose programs are where processes are met: at a
 * context switch, on a timer of each processor, at a fork.
 *
 * Who is to be ended is ended in its own context: bpf_send_signal reaches the current process and no other, so there is
 * nothing to be looked up and nothing to be freed meanwhile. It refuses the first process and threads of the kernel by
 * itself; killtable.h does so before. With interrupts off the kernel delivers it by an irq_work that holds a reference
 * to the task: after the switch, to the process that was switched away from. One such work of a processor may be on its
 * way; who comes second is met again at its next tick or switch.
 *
 * While no order is in force this costs each hook one load and one branch.
 */
#include "killtable.h"

enum { SIGKILL = 9 };

/* Times a count is tried again because another processor counted in between. */
enum { COUNT_TRIES = 16 };

/* Children of condemned processes that are kept apart at the same time. */
enum { HEIRS = 4096 };

/* Made by the agent; these only describe them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kt_orders);
} kill_orders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kt_answers);
} kill_answers SEC(".maps");

/* A process born of a condemned one, and the slot that condemned that. */
struct heir {
	__u64 number;
	__u64 start_ns;
	__u64 slot;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, HEIRS);
	__type(key, __u32);
	__type(value, struct heir);
} heirs SEC(".maps");

/* Number of the order in force; the same is said in the answers. */
static volatile __u64 armed;

static __always_inline struct kt_orders *the_orders(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&kill_orders, &only);
}

static __always_inline struct kt_answers *the_answers(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&kill_answers, &only);
}

/* Threads are judged by their process: the leader's start, also of one that has ended before the others. */
static __always_inline void describe(struct task_struct *task, struct kt_process *process)
{
	process->pid = BPF_CORE_READ(task, tgid);
	process->uid = BPF_CORE_READ(task, real_cred, uid.val);
	process->effective_uid = BPF_CORE_READ(task, real_cred, euid.val);
	process->is_kernel = !!(BPF_CORE_READ(task, flags) & PF_KTHREAD);
	process->start_ns = BPF_CORE_READ(task, group_leader, start_time);
	process->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

/* What dies already is counted already. */
static __always_inline int is_dying(struct task_struct *task)
{
	return BPF_CORE_READ(task, flags) & PF_EXITING || BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT;
}

static __always_inline kt_u32 slot_of(struct kt_orders *orders, kt_u64 number, struct kt_process *process)
{
	kt_u32 slot = kt_find(orders, number, process);
	struct heir *heir;

	if (slot != KT_NO_SLOT)
		return slot;
	heir = bpf_map_lookup_elem(&heirs, &process->pid);
	if (heir && heir->number == number && heir->start_ns == process->start_ns)
		return heir->slot;
	return KT_NO_SLOT;
}

/* One more, if that is within `most`. The high half of the word is `tag`; under another one nothing was counted. */
static __always_inline int count(kt_u64 *word, kt_u64 tag, kt_u64 most)
{
	for (int i = 0; i < COUNT_TRIES; i++) {
		kt_u64 old = KT_READ(*word);
		kt_u64 ended = old >> 32 == tag ? (kt_u32)old : 0;

		if (ended >= most)
			return 0;
		if (__sync_val_compare_and_swap(word, old, tag << 32 | (ended + 1)) == old)
			return 1;
	}
	return 0;
}

/* Counts a process that is about to be ended; 0 if a bound forbids it. */
static __always_inline int is_within_bounds(struct kt_orders *orders, struct kt_answers *answers, kt_u64 number,
					    kt_u32 slot)
{
	kt_u64 most;

	if (slot >= KT_SLOTS)
		return 0;
	if (slot < KT_BROAD_SLOTS)
		most = KT_READ(orders->broad[slot].what);
	else
		most = KT_READ(orders->by_pid[(slot - KT_BROAD_SLOTS) & (KT_PID_SLOTS - 1)].what);
	if (!count(&answers->tally[slot], (kt_u32)number, most & KT_MOST_MASK))
		return 0;
	if (count(&answers->ended, (kt_u32)number, *(volatile kt_u32 *)&orders->head.most))
		return 1;
	__sync_fetch_and_add(&answers->tally[slot], -1);
	return 0;
}

/* Ends the current process if an order says so and nothing forbids it. */
static __noinline int enforce(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct kt_answers *answers = the_answers();
	struct kt_orders *orders = the_orders();
	struct kt_process process = {};
	kt_u64 number = armed;
	kt_u32 slot;

	/* An order that was withdrawn is none from the moment its number is gone. */
	if (!answers || !orders || !number || KT_READ(orders->head.number) != number || is_dying(task))
		return 0;
	describe(task, &process);
	slot = slot_of(orders, number, &process);
	if (slot == KT_NO_SLOT || slot >= KT_SLOTS)
		return 0;
	if (!kt_may_end(answers, &process) || !is_within_bounds(orders, answers, number, slot)) {
		__sync_fetch_and_add(&answers->declined, 1);
		return 0;
	}
	if (bpf_send_signal(SIGKILL)) {
		/* Not now; it is met again. */
		__sync_fetch_and_add(&answers->tally[slot], -1);
		__sync_fetch_and_add(&answers->ended, -1);
	}
	return 0;
}

/* A child that a condemned process had on its way is condemned with it: it could go on where its parent ended. */
static __noinline int inherit(struct task_struct *child)
{
	struct task_struct *parent = (void *)bpf_get_current_task();
	struct kt_orders *orders = the_orders();
	struct kt_process process = {};
	struct heir heir = { .number = armed };
	__u32 pid = BPF_CORE_READ(child, tgid);
	kt_u32 slot;

	if (!orders || !heir.number || BPF_CORE_READ(child, pid) != pid)
		return 0; /* a thread */
	describe(parent, &process);
	slot = slot_of(orders, heir.number, &process);
	/* Users and cgroups find their children without that. */
	if (slot == KT_NO_SLOT || slot < KT_BROAD_SLOTS)
		return 0;
	heir.slot = slot;
	heir.start_ns = BPF_CORE_READ(child, start_time);
	bpf_map_update_elem(&heirs, &pid, &heir, BPF_ANY);
	return 0;
}

/* Takes up an order, or lays one down. Processors do this side by side, and one of them may be held up for long
 * between any two lines, so whatever it decided on may be over: `armed` is read before the number that it is compared
 * with (what is in force was written before), and changed only from what was seen there. What is not done now is done
 * at the next tick. Nothing is reset: counts bear the number they belong to. */
static __always_inline void take_up(struct kt_orders *orders, struct kt_answers *answers, kt_u64 now)
{
	kt_u64 old = armed, number = KT_READ(orders->head.number);
	kt_u32 refusal, lease_ms;

	if (old && old == number && now < KT_READ(answers->until_ns)) {
		/* A processor that was held up may have said something else. */
		if (KT_READ(answers->armed) != old)
			*(volatile kt_u64 *)&answers->armed = old;
		return;
	}
	if (old) {
		if (old == number) /* Its lease has ended: it is not taken up again. */
			*(volatile kt_u64 *)&answers->seen = old;
		if (__sync_val_compare_and_swap(&armed, old, 0) == old)
			__sync_val_compare_and_swap(&answers->armed, old, 0);
		return;
	}
	if (!number || number == KT_READ(answers->seen))
		return;
	refusal = kt_refusal(orders, number, KT_READ(answers->target));
	if (refusal) {
		*(volatile kt_u64 *)&answers->why = refusal;
		*(volatile kt_u64 *)&answers->refused = number;
		*(volatile kt_u64 *)&answers->seen = number;
		return;
	}
	/* Read once more: it may have been changed since it was checked. */
	lease_ms = *(volatile kt_u32 *)&orders->head.lease_ms;
	if (lease_ms > KT_LEASE_MS_MAX)
		lease_ms = KT_LEASE_MS_MAX;
	*(volatile kt_u64 *)&answers->until_ns = now + NS_OF_MS * lease_ms;
	if (__sync_val_compare_and_swap(&armed, 0, number) == 0)
		*(volatile kt_u64 *)&answers->armed = number;
}

/* On a timer of each processor: looks for orders, and ends a culprit that never lets go of its processor. */
static __always_inline void look_for_orders(void)
{
	struct kt_answers *answers = the_answers();
	struct kt_orders *orders = the_orders();
	kt_u64 now;

	if (!answers || !orders || KT_READ(answers->magic) != KT_ANSWERS_MAGIC)
		return;
	now = bpf_ktime_get_ns();
	*(volatile kt_u64 *)&answers->beat_ns = now;
	take_up(orders, answers, now);
	if (armed)
		enforce();
}

/* What the agent is told of each process that is left. */
struct left_over {
	__u32 pid;
	__u32 slot;
	__u64 start_ns;
};

/* Read by the agent, which ends those that never run: see sweep.rs. */
SEC("iter/task")
int list_condemned(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct kt_answers *answers = the_answers();
	struct kt_orders *orders = the_orders();
	struct kt_process process = {};
	struct left_over left = {};
	kt_u64 number = armed;

	if (!task || !answers || !orders || !number || KT_READ(orders->head.number) != number)
		return 0;
	if (BPF_CORE_READ(task, pid) != BPF_CORE_READ(task, tgid) ||
	    BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		return 0;
	describe(task, &process);
	left.slot = slot_of(orders, number, &process);
	if (left.slot == KT_NO_SLOT || !kt_may_end(answers, &process))
		return 0;
	left.pid = process.pid;
	left.start_ns = process.start_ns;
	bpf_seq_write(context->meta->seq, &left, sizeof(left));
	return 0;
}
