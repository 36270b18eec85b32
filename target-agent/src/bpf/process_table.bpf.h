/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only */
/* Keeps the process table (proctable.h has its bytes and the rule of writing). Part of sensors.bpf.c.
 *
 * | met | by | what is written |
 * |---|---|---|
 * | a child | fork | all of it, before the child runs |
 * | who becomes another program | exec | all of it |
 * | who runs when a timer fires | tick, 200 Hz | its memory; all of it if that is not there or says otherwise |
 * | whose last thread ends | exit | that it is exiting |
 * | who is buried | sched_process_free | that its place is free |
 * | everybody | the agent's iterator, once a second | as at a tick |
 *
 * A context switch costs nothing, nor does a page fault: memory is counted where a process is met anyway. It grows only
 * while the process runs, and shrinks in its sleep only to the swap.
 */
#include "proctable.h"

/* Ancestors that are counted: deeper ones are as deep as that. */
enum { DEPTH_MAX = 128 };

/* Times a free place is tried that another processor has just taken. */
enum { CLAIM_TRIES = 4 };

enum { TASK_STATES = 0x7f };

/* The agent makes the map, as large as it is told; record 0 to PT_HEAD_RECORDS is the head. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PT_HEAD_RECORDS);
	__type(key, __u32);
	__type(value, struct pt_record);
} processes SEC(".maps");

/* Words of the head by their records: the first two, eight words each. */
struct pt_head_words {
	pt_u64 words[8];
};

static __always_inline struct pt_head_words *head_of_processes(__u32 index)
{
	return bpf_map_lookup_elem(&processes, &index);
}

/* How many records there are; 0 as long as there is no table. */
static __always_inline pt_u32 capacity_of_processes(void)
{
	struct pt_head_words *head = head_of_processes(0);
	pt_u32 capacity;

	if (!head || PT_READ(head->words[0]) != PT_MAGIC)
		return 0;
	capacity = (pt_u32)PT_READ(head->words[2]);
	return capacity & (capacity - 1) ? 0 : capacity;
}

static __always_inline struct pt_record *process_record(__u32 index)
{
	index += PT_HEAD_RECORDS;
	return bpf_map_lookup_elem(&processes, &index);
}

/* Functions that are not static are checked by the kernel once and not for each caller; they take numbers only. */

/* A pointer to a task as a number, out of a program's context: the kernel hands pointers of its own types to no such
 * function. */
static __always_inline pt_u64 task_at(const void *place)
{
	pt_u64 task = 0;

	bpf_probe_read_kernel(&task, sizeof(task), place);
	return task;
}

/* The index of the record of process `pid`, or of the first free one where it would be; -1 if there is none. */
__noinline int place_of_process(pt_u32 pid, pt_u32 capacity, int wants_free)
{
	for (int i = 0; i < PT_PROBES; i++) {
		__u32 index = (pt_home(pid, capacity) + i) & (capacity - 1);
		struct pt_record *record = process_record(index);
		pt_u64 life;

		if (!record)
			break;
		life = PT_READ(record->life);
		if (PT_STATE(life) == PT_FREE ? wants_free : !wants_free && PT_PID(life) == pid)
			return index;
	}
	return -1;
}

static __always_inline pt_u64 pages_of(__s64 count)
{
	return count > 0 ? count : 0;
}

/* Its memory, and what it does. Counters lag behind by what processors or threads have not added yet. */
static __always_inline pt_u64 memory_of(struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	__u32 state = BPF_CORE_READ(task, __state) & TASK_STATES;
	pt_u64 rss = 0, swap = 0;
	pt_u32 does = 'R';

	if (state & 1)
		does = 'S';
	else if (state & 2)
		does = 'D';
	else if (state & 4)
		does = 'T';
	else if (state & 8)
		does = 't';
	if (!mm || BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return pt_memory(0, 0, does);
	if (bpf_core_type_exists(struct mm_rss_stat)) {
		struct mm_struct___before_6_2 *old = (void *)mm;

		rss = pages_of(BPF_CORE_READ(old, rss_stat.count[MM_FILEPAGES].counter)) +
		      pages_of(BPF_CORE_READ(old, rss_stat.count[MM_ANONPAGES].counter)) +
		      pages_of(BPF_CORE_READ(old, rss_stat.count[MM_SHMEMPAGES].counter));
		swap = pages_of(BPF_CORE_READ(old, rss_stat.count[MM_SWAPENTS].counter));
	} else {
		rss = pages_of(BPF_CORE_READ(mm, rss_stat[MM_FILEPAGES].count)) +
		      pages_of(BPF_CORE_READ(mm, rss_stat[MM_ANONPAGES].count)) +
		      pages_of(BPF_CORE_READ(mm, rss_stat[MM_SHMEMPAGES].count));
		swap = pages_of(BPF_CORE_READ(mm, rss_stat[MM_SWAPENTS].count));
	}
	return pt_memory(rss, swap, does);
}

/* Who the task's process is, but for its depth. */
static __always_inline void identify(struct task_struct *task, struct pt_who *who)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	who->pid = BPF_CORE_READ(leader, tgid);
	who->parent = BPF_CORE_READ(leader, real_parent, tgid);
	who->uid = BPF_CORE_READ(leader, real_cred, uid.val);
	who->flags = BPF_CORE_READ(leader, flags) & PF_KTHREAD ? PT_KERNEL : 0;
	who->start_ns = BPF_CORE_READ(leader, start_time);
	who->cgroup = BPF_CORE_READ(leader, cgroups, dfl_cgrp, kn, id);
	bpf_core_read(who->comm, sizeof(who->comm), &leader->comm);
	/* What is behind the name's end may be anything. */
	for (int i = 0, is_over = 0; i < PT_COMM_BYTES; i++) {
		char *letter = (char *)who->comm + i;

		is_over |= !*letter;
		if (is_over)
			*letter = 0;
	}
}

/* Generations below the first process. */
__noinline int depth_of(pt_u64 of)
{
	struct task_struct *task = (void *)of;
	int depth;

	for (depth = 0; depth < DEPTH_MAX; depth++) {
		struct task_struct *parent = BPF_CORE_READ(task, real_parent);

		if (!parent || BPF_CORE_READ(parent, tgid) == 0)
			break;
		task = BPF_CORE_READ(parent, group_leader);
	}
	return depth;
}

/* A free place is taken for a process that has no record. */
static __always_inline void claim_record(pt_u64 of, pt_u32 capacity, struct pt_who *who, pt_u64 memory)
{
	struct pt_head_words *counts;

	who->depth = depth_of(of);
	for (int i = 0; i < CLAIM_TRIES; i++) {
		int index = place_of_process(who->pid, capacity, 1);
		struct pt_record *record = index < 0 ? 0 : process_record(index);
		pt_u64 life;

		if (!record)
			break;
		life = PT_READ(record->life);
		/* Another processor may have been quicker. */
		if (PT_STATE(life) == PT_FREE && pt_write(record, life, who, memory))
			return;
	}
	counts = head_of_processes(1);
	if (counts)
		__sync_fetch_and_add(&counts->words[0], 1);
}

/* A process is made. Nobody has met it, so no record of it is looked for: that would be a look at every place where it
 * could be. One that an earlier process of its id left is overwritten when it is met, or freed when it is buried. */
__noinline int note_birth(pt_u64 of)
{
	pt_u32 capacity = capacity_of_processes();
	struct pt_who who = {};

	if (!capacity)
		return 0;
	identify((void *)of, &who);
	if (who.pid)
		claim_record(of, capacity, &who, memory_of((void *)of));
	return 0;
}

/* A process was met: what the table says of it is made right. It costs a look if that is so already. */
__noinline int note_process(pt_u64 of)
{
	struct task_struct *task = (void *)of;
	pt_u32 capacity = capacity_of_processes();
	struct pt_record *record;
	struct pt_who who = {};
	pt_u64 memory;
	int index;

	if (!capacity)
		return 0;
	identify(task, &who);
	if (!who.pid)
		return 0; /* a processor that idles */
	memory = memory_of(task);
	index = place_of_process(who.pid, capacity, 0);
	record = index < 0 ? 0 : process_record(index);
	if (record) {
		who.depth = (__u16)PT_READ(record->about);
		if (pt_says(record, &who)) {
			PT_WRITE(record->memory, memory);
			return 0;
		}
		who.depth = depth_of(of);
		pt_write(record, PT_READ(record->life), &who, memory);
		return 0;
	}
	claim_record(of, capacity, &who, memory);
	return 0;
}

/* Ends a record of process `pid`, if it says when that began, or at a burial says an earlier one of its id, which is
 * dead as well; a later one may have been born already. */
__noinline int end_record(pt_u32 index, pt_u32 pid, pt_u64 start_ns, pt_u32 state)
{
	struct pt_record *record = process_record(index);
	pt_u64 life, began_ns;

	if (!record)
		return 0;
	life = PT_READ(record->life);
	began_ns = PT_READ(record->start_ns);
	/* What is being written may still have the beginning of who was there before. */
	if (began_ns > start_ns || (began_ns < start_ns && (state != PT_FREE || PT_STATE(life) == PT_WRITING)))
		return 0;
	pt_end(record, pid, began_ns, state);
	return 0;
}

/* Its exit is said in the first record of it, where every look ends; the burial follows. */
__noinline int note_exit(pt_u64 of)
{
	struct task_struct *task = (void *)of;
	pt_u32 capacity = capacity_of_processes(), pid = BPF_CORE_READ(task, tgid);
	pt_u64 start_ns = BPF_CORE_READ(task, group_leader, start_time);
	int index;

	if (!capacity)
		return 0;
	index = place_of_process(pid, capacity, 0);
	if (index >= 0)
		end_record(index, pid, start_ns, PT_EXITING);
	return 0;
}

/* Every record of it, should there be two: two processors may have met it first at the same moment. */
__noinline int bury_process(pt_u64 of)
{
	struct task_struct *task = (void *)of;
	pt_u32 capacity = capacity_of_processes(), pid = BPF_CORE_READ(task, tgid);
	pt_u64 start_ns = BPF_CORE_READ(task, group_leader, start_time);

	if (!capacity)
		return 0;
	for (int i = 0; i < PT_PROBES; i++) {
		__u32 index = (pt_home(pid, capacity) + i) & (capacity - 1);
		struct pt_record *record = process_record(index);

		if (record && PT_PID(PT_READ(record->life)) == pid)
			end_record(index, pid, start_ns, PT_FREE);
	}
	return 0;
}

/* On a timer of each processor. */
static __always_inline void note_the_running(void)
{
	struct pt_head_words *counts = head_of_processes(1);

	if (!counts || !capacity_of_processes())
		return;
	PT_WRITE(counts->words[1], bpf_ktime_get_ns());
	if (bpf_get_current_pid_tgid() >> 32)
		note_process(bpf_get_current_task());
}

static __always_inline void show_free_pages(pt_u64 pages)
{
	struct pt_head_words *counts = head_of_processes(1);

	if (counts)
		PT_WRITE(counts->words[2], pages);
}

SEC("tp_btf/sched_process_exec")
int on_exec(__u64 *task_and_others)
{
	note_process(task_at(task_and_others));
	return 0;
}

SEC("tp_btf/sched_process_exit")
int on_exit(__u64 *task_alone)
{
	struct task_struct *task = (void *)task_at(task_alone);

	/* Others of its threads may live. */
	if (BPF_CORE_READ(task, signal, live.counter) == 0)
		note_exit((pt_u64)task);
	return 0;
}

SEC("tp_btf/sched_process_free")
int on_free(__u64 *task_alone)
{
	struct task_struct *task = (void *)task_at(task_alone);

	if (BPF_CORE_READ(task, pid) == BPF_CORE_READ(task, tgid))
		bury_process((pt_u64)task);
	return 0;
}

/* Read by the agent, for those that were there before these programs and for those that sleep: see roster.rs. */
SEC("iter/task")
int list_all(struct bpf_iter__task *context)
{
	struct task_struct *task = (void *)task_at(&context->task);

	if (!task || BPF_CORE_READ(task, pid) != BPF_CORE_READ(task, tgid) || !BPF_CORE_READ(task, sighand))
		return 0;
	note_process((pt_u64)task);
	if (BPF_CORE_READ(task, signal, live.counter) == 0)
		note_exit((pt_u64)task);
	/* Buried meanwhile: who freed its place may have been before us. The kernel lets go of `sighand` first. */
	if (!BPF_CORE_READ(task, sighand))
		bury_process((pt_u64)task);
	return 0;
}
