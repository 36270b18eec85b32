/* The bytes of the process table, for the eBPF programs that keep it, and how a record is written without a lock.
 *
 * Says the same as src/layout.rs, which has the reasons. tests/writer.rs compiles this for the machine it runs on, has
 * several writers at the same records and a reader that reads at any moment.
 *
 * A record's life is one word: process id, sequence, state. It changes by compare-and-swap only.
 *
 *   free ──claim──► writing ──words, check──► live ──► exiting ──► free
 *                      ▲                        │
 *                      └────────── begin ───────┘
 *
 * Writers: whoever has brought the word to `writing` writes the words of who the process is, then the check over the
 * new sequence and these words, then `live`. Who finds `writing` leaves the record alone: another one says the same at
 * this moment, and what is missed is made up for at the process's next tick. A process that ends meanwhile takes the
 * word away from its writer; the words are then of a dead process. Two words stand outside of the check, each written
 * whole: the life, and the memory.
 *
 * Readers believe a record only if its state is live or exiting and the check holds over the sequence that stands
 * there: so neither half-written words nor those of two moments are believed, in whatever order a read brought them.
 * What was torn is read again.
 */
#ifndef PROCTABLE_H
#define PROCTABLE_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t pt_u8;
typedef uint32_t pt_u32;
typedef uint64_t pt_u64;
#else
/* eBPF programs are compiled without a C library. */
typedef unsigned char pt_u8;
typedef unsigned int pt_u32;
typedef unsigned long long pt_u64;
#endif

#define PT_INLINE static inline __attribute__((always_inline))
#define PT_READ(word) (*(const volatile pt_u64 *)&(word))
#define PT_WRITE(word, value) (*(volatile pt_u64 *)&(word) = (value))
/* Keeps the compiler from moving stores; x86 and a processor's own interrupts keep their order by themselves. */
#define PT_IN_ORDER() __asm__ volatile("" ::: "memory")

#define PT_MAGIC 0xb1726f636c697395ULL
#define PT_VERSION 1u
#define PT_RECORD_BYTES 64u
#define PT_HEAD_RECORDS 64u
#define PT_PROBES 32u
#define PT_TRIES 8
#define PT_COMM_BYTES 16

enum pt_state { PT_FREE = 0, PT_LIVE = 0x35, PT_EXITING = 0x5b, PT_WRITING = 0xa7 };

/* A thread of the kernel. */
enum pt_flag { PT_KERNEL = 1 };

struct pt_head {
	/* The agent's, once in its life. */
	pt_u64 magic;
	pt_u32 version;
	pt_u32 record_bytes;
	pt_u32 capacity; /* records after the head; a power of two */
	pt_u32 head_records;
	pt_u64 target;
	pt_u64 pages_total;
	pt_u64 reserved[2];
	pt_u64 check;
	/* The kernel's. */
	pt_u64 left_out; /* how often a process found no room */
	pt_u64 beat_ns;
	pt_u64 pages_free;
	pt_u64 reserved_for_kernel[5];
	/* The agent's. */
	pt_u64 rounds; /* how often it has been through all processes */
	pt_u64 round_ns;
	pt_u64 reserved_page[494];
};

struct pt_record {
	pt_u64 life;   /* process id: 32 bits, sequence: 24, state: 8 */
	pt_u64 family; /* parent: 32, user: 32 */
	pt_u64 start_ns;
	pt_u64 cgroup;
	pt_u64 comm[2];
	pt_u64 memory; /* resident pages: 28 bits, swapped-out ones: 28, what it does: 8 (a letter) */
	pt_u64 about;  /* depth: 16, flags: 8, zero: 8, check: 32 */
};

/* Who a process is. */
struct pt_who {
	pt_u32 pid;
	pt_u32 parent;
	pt_u32 uid;
	pt_u32 depth;
	pt_u32 flags;
	pt_u32 zero;
	pt_u64 start_ns;
	pt_u64 cgroup;
	pt_u64 comm[2];
};

#define PT_FNV_OFFSET 0xcbf29ce484222325ULL
#define PT_FNV_PRIME 0x00000100000001b3ULL
#define PT_FNV(sum, word) (((sum) ^ (word)) * PT_FNV_PRIME)

#define PT_PID(life) ((pt_u32)(life))
#define PT_STATE(life) ((pt_u32)((life) >> 56))
/* The same life in another state. */
#define PT_IN_STATE(life, state) (((life) & 0x00ffffffffffffffULL) | (pt_u64)(state) << 56)
/* Process and sequence: what the check is over. */
#define PT_NAME(life) ((life) & 0x00ffffffffffffffULL)

PT_INLINE pt_u64 pt_check(pt_u64 name, pt_u64 family, pt_u64 start_ns, pt_u64 cgroup, pt_u64 comm, pt_u64 comm_too,
			  pt_u32 low)
{
	pt_u64 sum = PT_FNV(PT_FNV(PT_FNV(PT_FNV_OFFSET, name), family), start_ns);

	return PT_FNV(PT_FNV(PT_FNV(PT_FNV(sum, cgroup), comm), comm_too), low) >> 32;
}

/* Where the search for a process begins. Ids are given out one after the other, so neighbours take neighbouring places.
 */
PT_INLINE pt_u32 pt_home(pt_u32 pid, pt_u32 capacity)
{
	return pid & (capacity - 1);
}

PT_INLINE pt_u64 pt_memory(pt_u64 rss_pages, pt_u64 swap_pages, pt_u32 does)
{
	const pt_u64 most = (1ULL << 28) - 1;

	rss_pages = rss_pages < most ? rss_pages : most;
	swap_pages = swap_pages < most ? swap_pages : most;
	return rss_pages | swap_pages << 28 | (pt_u64)does << 56;
}

PT_INLINE pt_u64 pt_family(const struct pt_who *who)
{
	return who->parent | (pt_u64)who->uid << 32;
}

PT_INLINE pt_u32 pt_low(const struct pt_who *who)
{
	return (who->depth < 0xffff ? who->depth : 0xffff) | (who->flags & 0xff) << 16;
}

/* Whether the record says all of that already, whole. */
PT_INLINE int pt_says(const struct pt_record *record, const struct pt_who *who)
{
	pt_u64 life = PT_READ(record->life), about = PT_READ(record->about);
	pt_u32 low = pt_low(who);

	if (PT_READ(record->family) != pt_family(who) || PT_READ(record->start_ns) != who->start_ns ||
	    PT_READ(record->cgroup) != who->cgroup || PT_READ(record->comm[0]) != who->comm[0] ||
	    PT_READ(record->comm[1]) != who->comm[1] || (pt_u32)about != low)
		return 0;
	return about >> 32 == pt_check(PT_NAME(life), pt_family(who), who->start_ns, who->cgroup, who->comm[0],
				       who->comm[1], low);
}

/* Writes who the process is and what memory it has, if nobody else does at this moment. `life` is what was seen there:
 * free, or of the same id. */
PT_INLINE int pt_write(struct pt_record *record, pt_u64 life, const struct pt_who *who, pt_u64 memory)
{
	/* Of the same process; the id may have been another one's before. */
	int is_exiting = PT_STATE(life) == PT_EXITING && PT_READ(record->start_ns) == who->start_ns;
	pt_u64 sequence = ((life >> 32) + 1) & 0xffffff;
	pt_u64 mine = who->pid | sequence << 32 | (pt_u64)PT_WRITING << 56;
	pt_u64 family = pt_family(who), check;
	pt_u32 low = pt_low(who);

	if (PT_STATE(life) == PT_WRITING || __sync_val_compare_and_swap(&record->life, life, mine) != life)
		return 0;
	PT_WRITE(record->family, family);
	PT_WRITE(record->start_ns, who->start_ns);
	PT_WRITE(record->cgroup, who->cgroup);
	PT_WRITE(record->comm[0], who->comm[0]);
	PT_WRITE(record->comm[1], who->comm[1]);
	PT_WRITE(record->memory, memory);
	check = pt_check(PT_NAME(mine), family, who->start_ns, who->cgroup, who->comm[0], who->comm[1], low);
	PT_WRITE(record->about, low | check << 32);
	PT_IN_ORDER();
	/* A process that has ended meanwhile stays so. */
	__sync_val_compare_and_swap(&record->life, mine, PT_IN_STATE(mine, is_exiting ? PT_EXITING : PT_LIVE));
	return 1;
}

/* The process `pid` that started then is on its way out (PT_EXITING) or gone (PT_FREE). */
PT_INLINE void pt_end(struct pt_record *record, pt_u32 pid, pt_u64 start_ns, pt_u32 state)
{
	for (int i = 0; i < PT_TRIES; i++) {
		pt_u64 life = PT_READ(record->life);
		/* The sequence goes on, so that no writer takes the next life for the one he saw. */
		pt_u64 then = state == PT_FREE ? life & 0x00ffffff00000000ULL : PT_IN_STATE(life, state);

		if (PT_STATE(life) == PT_FREE || PT_PID(life) != pid || PT_READ(record->start_ns) != start_ns)
			return;
		if (__sync_val_compare_and_swap(&record->life, life, then) == life)
			return;
	}
}

#define PT_AT(type, member, offset) \
	_Static_assert(__builtin_offsetof(struct type, member) == (offset), #type "." #member)

_Static_assert(sizeof(struct pt_record) == PT_RECORD_BYTES, "record");
_Static_assert(sizeof(struct pt_head) == PT_HEAD_RECORDS * PT_RECORD_BYTES, "the head is whole records, and a page");
_Static_assert(sizeof(struct pt_who) == 56, "who");
PT_AT(pt_head, target, 24);
PT_AT(pt_head, pages_total, 32);
PT_AT(pt_head, check, 56);
PT_AT(pt_head, left_out, 64);
PT_AT(pt_head, rounds, 128);
PT_AT(pt_record, start_ns, 16);
PT_AT(pt_record, comm, 32);
PT_AT(pt_record, memory, 48);
PT_AT(pt_record, about, 56);

#undef PT_AT
#endif
