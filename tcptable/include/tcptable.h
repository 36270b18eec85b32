/* The bytes of the table of TCP connections, for the eBPF programs that keep it.
 *
 * Says the same as src/layout.rs, which has the reasons; tests/same_bytes.rs holds the two together. What a check
 * covers is said here, in functions of words, and compiled for this machine by that test.
 */
#ifndef TCPTABLE_H
#define TCPTABLE_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t tt_u8;
typedef uint16_t tt_u16;
typedef uint32_t tt_u32;
typedef uint64_t tt_u64;
#else
/* eBPF programs are compiled without a C library. */
typedef unsigned char tt_u8;
typedef unsigned short tt_u16;
typedef unsigned int tt_u32;
typedef unsigned long long tt_u64;
#endif

#define TT_INLINE static inline __attribute__((always_inline))

#define TT_MAGIC 0xa97463707461628fULL
#define TT_VERSION 1u
#define TT_RING_BYTES 65536u
#define TT_TAIL_BYTES 4096u
#define TT_SLOT_BYTES (TT_RING_BYTES + TT_TAIL_BYTES)
#define TT_PORTS 16u

/* What a slot is. A slot that is being filled or emptied is nobody's. */
#define TT_FREE 0ULL
#define TT_TAKEN 0x7a4e00a1cc0de5d1ULL
#define TT_OPEN 0x09e4c099ec71095dULL

enum tt_flag {
	TT_TIMESTAMPS = 1 << 0,
	TT_SCALING = 1 << 1,
	TT_SACK = 1 << 2,
	TT_MICROSECONDS = 1 << 3,
	TT_URGENT = 1 << 4,
	TT_REPAIR = 1 << 5,
	TT_UPPER_LAYER = 1 << 6,
	TT_MPTCP = 1 << 7,
	TT_ORPHANED = 1 << 8,
	TT_INET6 = 1 << 9,
	TT_INIT_NET = 1 << 10,
};

struct tt_header {
	tt_u64 magic;
	tt_u32 version;
	tt_u32 slot_bytes;
	tt_u32 slots;
	tt_u32 ring_bytes;
	tt_u64 check;
	tt_u64 hand;
	tt_u64 refused;
	tt_u64 ports_count;
	tt_u16 ports[TT_PORTS];
};

struct tt_record {
	tt_u64 number;
	tt_u32 snd_una;
	tt_u32 snd_nxt;
	tt_u32 write_seq;
	tt_u32 rcv_nxt;
	tt_u32 copied_seq;
	tt_u32 rcv_wup;
	tt_u32 rcv_wnd;
	tt_u32 snd_wl1;
	tt_u32 snd_wnd;
	tt_u32 max_window;
	tt_u32 snd_cwnd;
	tt_u32 mss_cache;
	tt_u32 tsoffset;
	tt_u32 ts_recent;
	tt_u64 tcp_mstamp_us;
	tt_u64 tcp_wstamp_ns;
	tt_u64 bytes_acked;
	tt_u64 bytes_received;
	tt_u32 taken;
	tt_u16 mss_clamp;
	tt_u8 snd_wscale;
	tt_u8 rcv_wscale;
	tt_u8 state;
	tt_u8 shutdown;
	tt_u16 flags;
	tt_u32 bound_device;
	tt_u64 reserved;
	tt_u64 check;
};

#define TT_RECORD_WORDS 16

struct tt_slot {
	tt_u8 ring[TT_RING_BYTES];
	tt_u64 state;
	tt_u64 generation;
	tt_u64 local_address[2];
	tt_u64 peer_address[2];
	tt_u16 local_port;
	tt_u16 peer_port;
	tt_u32 reserved;
	tt_u32 first_received;
	tt_u32 first_sent;
	tt_u64 identity_check;
	tt_u64 accepted;
	tt_u64 overwritten;
	tt_u64 reserved_words[5];
	struct tt_record records[2];
	tt_u8 rest[TT_TAIL_BYTES - 128 - 2 * sizeof(struct tt_record)];
};

#define TT_IDENTITY_WORDS 7

/* FNV-1a by words, begun with `start`. */
TT_INLINE tt_u64 tt_checksum(tt_u64 start, const tt_u64 *words, int count)
{
	tt_u64 sum = (0xcbf29ce484222325ULL ^ start) * 0x00000100000001b3ULL;

#ifdef __bpf__
#pragma clang loop unroll(full)
#endif
	for (int i = 0; i < count; i++)
		sum = (sum ^ words[i]) * 0x00000100000001b3ULL;
	return sum;
}

/* Covers everything before the check, and whose record it is. */
TT_INLINE tt_u64 tt_record_check(tt_u64 generation, const struct tt_record *record)
{
	return tt_checksum(generation, (const tt_u64 *)record, TT_RECORD_WORDS - 1);
}

/* Covers generation, addresses, ports and first numbers. */
TT_INLINE tt_u64 tt_identity_check(const struct tt_slot *slot)
{
	return tt_checksum(TT_MAGIC, &slot->generation, TT_IDENTITY_WORDS);
}

/* Covers what places the slots. */
TT_INLINE tt_u64 tt_header_check(const struct tt_header *header)
{
	return tt_checksum(TT_MAGIC, (const tt_u64 *)header, 3);
}

#define TT_AT(type, member, offset) \
	_Static_assert(__builtin_offsetof(struct type, member) == (offset), #type "." #member)

_Static_assert(sizeof(struct tt_header) == 88, "header");
_Static_assert(sizeof(struct tt_record) == 8 * TT_RECORD_WORDS, "record");
_Static_assert(sizeof(struct tt_slot) == TT_SLOT_BYTES, "slots are whole pages");
TT_AT(tt_header, ports, 56);
TT_AT(tt_record, tcp_mstamp_us, 64);
TT_AT(tt_record, taken, 96);
TT_AT(tt_record, check, 120);
TT_AT(tt_slot, state, TT_RING_BYTES);
TT_AT(tt_slot, local_port, TT_RING_BYTES + 48);
TT_AT(tt_slot, first_received, TT_RING_BYTES + 56);
TT_AT(tt_slot, identity_check, TT_RING_BYTES + 64);
TT_AT(tt_slot, overwritten, TT_RING_BYTES + 80);
TT_AT(tt_slot, records, TT_RING_BYTES + 128);

#undef TT_AT
#endif
