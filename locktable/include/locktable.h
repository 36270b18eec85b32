/* The lock word of a target, the answers to it, and what follows from the two, for the eBPF programs that enforce it.
 *
 * Says the same as src/layout.rs and src/reference.rs, which have the reasons; tests/decisions.rs compiles this for the
 * machine it runs on and holds the two together, with words of garbage too.
 *
 * The lock word is written by remote CMP_SWAP and by nobody else: an adapter's atomics need not be atomic to the
 * processors beside it, so the target only reads it. What stands is one word as well, and is changed by
 * compare-and-swap of the target's processors only, from what was seen: who was held up meanwhile changes nothing.
 */
#ifndef LOCKTABLE_H
#define LOCKTABLE_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t lk_u8;
typedef uint32_t lk_u32;
typedef uint64_t lk_u64;
#else
/* eBPF programs are compiled without a C library. */
typedef unsigned char lk_u8;
typedef unsigned int lk_u32;
typedef unsigned long long lk_u64;
#endif

#define LK_INLINE static inline __attribute__((always_inline))
#define LK_READ(word) (*(const volatile lk_u64 *)&(word))
#define LK_WRITE(word, value) (*(volatile lk_u64 *)&(word) = (value))

#define LK_MAGIC 0xa96c6f636b6564c7ULL
#define LK_VERSION 1u
#define LK_NUMBER 0xffffffULL
#define LK_LEASE_UNIT_MS 10u
#define LK_PROCESSORS 64u
#define LK_MARKS 16u

/* Low half of a word: number 24 bits, mode 4; then lease in units of 10 ms, 12 bits; then the check, 24. */
enum lk_mode { LK_NONE = 0, LK_LOOK = 0x3, LK_FENCE = 0x5, LK_HOLD = 0x9, LK_RELEASE = 0xe };

/* What a look at the word came to. Those from LK_RELEASED on end what stood, and stand in its place. */
enum lk_verdict {
	LK_SAME = 0,
	LK_TAKEN = 1,
	LK_HELD = 2,
	LK_BAD_WORD = 3, /* no lock: torn, garbage, or for another machine */
	LK_TOO_LATE = 4, /* a fence is to be held that does not stand */
	LK_RELEASED = 5,
	LK_WITHDRAWN = 6,
	LK_LEASE_ENDED = 7,
	LK_HELD_RELEASED = 8,
};

/* What the lock covers besides addresses: kind in the highest byte. */
enum lk_mark { LK_MARK_UID = 0x5b, LK_MARK_CGROUP = 0x97 };

struct lk_lock {
	lk_u64 word;
	lk_u64 reserved[511];
};

struct lk_locked {
	/* The agent's, once in its life. */
	lk_u64 magic;
	lk_u64 version;
	lk_u64 target;
	lk_u64 processors; /* a bit for each */
	lk_u64 reserved[3];
	lk_u64 check;
	/* The kernel's. */
	lk_u64 standing; /* number 24, mode 4, end of the lease in ms 36; of what has ended: number, 0, verdict */
	lk_u64 since_ns;
	lk_u64 refused; /* the word that was refused last */
	lk_u64 why;
	lk_u64 beat_ns;
	lk_u64 dropped_in;
	lk_u64 dropped_out;
	lk_u64 stopped;
	/* The agent's. */
	lk_u64 guards; /* interfaces guarded: by tc both ways 16 bits, by XDP too 16 bits; addresses 16 */
	lk_u64 agent_beat_ns;
	lk_u64 agent_pid;
	lk_u64 reserved_for_agent[5];
	lk_u64 marks[LK_MARKS];
	lk_u64 reserved_too[24];
	/* The kernel's: the number that stood when a processor was last seen off the way out to the network. */
	lk_u64 settled[LK_PROCESSORS];
	lk_u64 reserved_page[384];
};

#define LK_FNV_OFFSET 0xcbf29ce484222325ULL
#define LK_FNV_PRIME 0x00000100000001b3ULL
#define LK_FNV(sum, word) (((sum) ^ (word)) * LK_FNV_PRIME)

#define LK_MODE(word) ((lk_u32)((word) >> 24) & 0xf)
#define LK_UNTIL_MS(standing) ((standing) >> 28)
#define LK_STANDS(number, mode, until_ms) ((number) | (lk_u64)(mode) << 24 | (until_ms) << 28)

LK_INLINE lk_u64 lk_check(lk_u64 low, lk_u64 target)
{
	return LK_FNV(LK_FNV(LK_FNV_OFFSET, low), target) >> 40;
}

/* Whether the word is one of this machine's locks, whole. */
LK_INLINE int lk_is_whole(lk_u64 word, lk_u64 target)
{
	lk_u64 low = word & 0xffffffffffULL;
	lk_u32 mode = LK_MODE(word);

	if (!(word & LK_NUMBER) || word >> 40 != lk_check(low, target))
		return 0;
	if (mode == LK_LOOK || mode == LK_FENCE)
		return (low >> 28) != 0;
	return mode == LK_HOLD || mode == LK_RELEASE;
}

/* What stands after a look at the lock word. */
LK_INLINE lk_u64 lk_next(lk_u64 standing, lk_u64 word, lk_u64 target, lk_u64 now_ms, lk_u32 *verdict)
{
	lk_u64 number = standing & LK_NUMBER, lease_ms = (word >> 28 & 0xfff) * LK_LEASE_UNIT_MS;
	lk_u32 mode = LK_MODE(standing), wanted = LK_MODE(word);
	int is_whole = lk_is_whole(word, target), is_same = is_whole && (word & LK_NUMBER) == number;

	*verdict = LK_SAME;
	if (mode == LK_NONE) {
		/* What has ended is not taken again. */
		if (!word || is_same || (is_whole && wanted == LK_RELEASE))
			return standing;
		if (!is_whole || wanted == LK_HOLD) {
			*verdict = is_whole ? LK_TOO_LATE : LK_BAD_WORD;
			return standing;
		}
		*verdict = LK_TAKEN;
		return LK_STANDS(word & LK_NUMBER, wanted, now_ms + lease_ms);
	}
	if (mode == LK_HOLD) {
		/* No garbage and no time ends it. */
		if (!is_same || wanted != LK_RELEASE)
			return standing;
		*verdict = LK_HELD_RELEASED;
	} else if (now_ms >= LK_UNTIL_MS(standing)) {
		*verdict = LK_LEASE_ENDED;
	} else if (is_same && wanted == mode) {
		return standing;
	} else if (is_same && wanted == LK_HOLD && mode == LK_FENCE) {
		*verdict = LK_HELD;
		return LK_STANDS(number, LK_HOLD, 0ULL);
	} else {
		*verdict = is_same && wanted == LK_RELEASE ? LK_RELEASED : LK_WITHDRAWN;
	}
	return LK_STANDS(number, LK_NONE, (lk_u64)*verdict);
}

/* Whether a process of that user and cgroup is one of the service's. */
LK_INLINE int lk_is_marked(const struct lk_locked *locked, lk_u64 pid, lk_u64 uid, lk_u64 cgroup)
{
	const lk_u64 key = 0x00ffffffffffffffULL;

	if (pid <= 1 || pid == LK_READ(locked->agent_pid))
		return 0;
	for (lk_u32 i = 0; i < LK_MARKS; i++) {
		lk_u64 mark = LK_READ(locked->marks[i]);

		if ((mark >> 56 == LK_MARK_UID && (mark & key) == uid) ||
		    (mark >> 56 == LK_MARK_CGROUP && (mark & key) == (cgroup & key)))
			return 1;
	}
	return 0;
}

#define LK_AT(type, member, offset) \
	_Static_assert(__builtin_offsetof(struct type, member) == (offset), #type "." #member)

_Static_assert(sizeof(struct lk_lock) == 4096, "lock words are a page");
_Static_assert(sizeof(struct lk_locked) == 4096, "answers are a page");
LK_AT(lk_locked, check, 56);
LK_AT(lk_locked, standing, 64);
LK_AT(lk_locked, guards, 128);
LK_AT(lk_locked, marks, 192);
LK_AT(lk_locked, settled, 512);

#undef LK_AT
#endif
