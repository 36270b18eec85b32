/* Continuation Boxes for programs in C: create a box, export the session's state, import it again.
 *
 * Header only; the bytes and their order are those of contbox/src/layout.rs and contbox/src/continuation.rs, where
 * the argument stands why a stop at any instruction leaves a whole snapshot. Exporting makes no system call and
 * allocates nothing. One writer per box at a time; the slot has to be leased from the box service.
 *
 * Set TCP_SAVE_SYN to 1 on the listening socket: without a client's SYN, a session whose socket is held when the
 * machine stops cannot be told how far it has been read, and is lost if it had received anything.
 *
 * Functions return 0, or a negative CONTBOX_* code with nothing changed.
 */
#ifndef CONTBOX_H
#define CONTBOX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "contbox.h writes little-endian words without conversion"
#endif

#define CONTBOX_MAGIC UINT64_C(0x93584f42544e4fcb) /* "\xcb" "ONTBOX" "\x93" */
#define CONTBOX_VERSION 3u
#define CONTBOX_HEADER_BYTES 4096u
#define CONTBOX_SLOT_HEAD_BYTES 256u
#define CONTBOX_SHORT_LWS_BYTES 128u
#define CONTBOX_FRONT_BYTES (CONTBOX_SLOT_HEAD_BYTES + 2 * CONTBOX_SHORT_LWS_BYTES)
#define CONTBOX_SLOTS_MAX (1u << 18)

/* States: odd constants, so that zeroed memory is none. */
#define CONTBOX_FREE 0xf4ee0b01u
#define CONTBOX_LEASED 0x1ea50b03u
#define CONTBOX_OPEN 0x09e40b05u
#define CONTBOX_LOST_LOG 0x10570b07u
#define CONTBOX_CLOSED 0xc1050b09u

#define CONTBOX_BAD_POOL (-1)    /* the mapping is no pool of this version */
#define CONTBOX_BAD_SLOT (-2)    /* no such slot, or no whole session in it */
#define CONTBOX_TOO_LONG (-3)    /* the snapshot exceeds the box, or the caller's buffer */
#define CONTBOX_STEPS_BACK (-4)  /* the snapshot's input begins before that of the newest one */

struct contbox_pool_header {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t length_bytes, pool;
    uint32_t slots, slot_bytes, lws_bytes, log_bytes;
    uint32_t send_bytes, check;
};

struct contbox_buffer_head {
    uint64_t sequence, lsr, lsw;
    uint32_t length, check;
};

struct contbox_slot_head {
    uint32_t state, owner;
    uint8_t local_address[16], peer_address[16]; /* IPv4 as IPv4-mapped IPv6 */
    uint16_t local_port, peer_port;
    uint32_t generation;
    uint64_t base_read, base_written;
    uint32_t identity_check, reserved;
    uint64_t newest;
    uint64_t reserved_words[6];
    struct contbox_buffer_head even;
    uint64_t reserved_even[4];
    struct contbox_buffer_head odd;
    uint64_t reserved_odd[4];
};

_Static_assert(sizeof(struct contbox_pool_header) == 56, "layout of the pool header");
_Static_assert(sizeof(struct contbox_buffer_head) == 32, "layout of a buffer's description");
_Static_assert(sizeof(struct contbox_slot_head) == CONTBOX_SLOT_HEAD_BYTES, "layout of a slot's head");
_Static_assert(offsetof(struct contbox_slot_head, generation) == 44, "layout of a slot's head");
_Static_assert(offsetof(struct contbox_slot_head, newest) == 72, "layout of a slot's head");
_Static_assert(offsetof(struct contbox_slot_head, even) == 128, "layout of a slot's head");
_Static_assert(offsetof(struct contbox_slot_head, odd) == 192, "layout of a slot's head");

/* A mapped pool: fronts (head and short snapshots) side by side, bodies (long snapshots and log) behind them. */
struct contbox_pool {
    unsigned char *start, *bodies;
    uint64_t name;
    uint32_t slots, slot_bytes, lws_bytes, log_bytes;
};

/* One box and what its writer remembers. */
struct contbox {
    unsigned char *slot, *body;
    uint32_t lws_bytes, log_bytes, generation;
    uint64_t newest, lsr;
};

/* CRC-32 (IEEE, reflected), four bits at a time: no table to initialise, fast enough for a snapshot. */
static inline uint32_t contbox_crc(uint32_t crc, const void *bytes, size_t length)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const unsigned char *at = (const unsigned char *)bytes;
    crc = ~crc;
    while (length--) {
        crc = table[(crc ^ *at) & 15] ^ (crc >> 4);
        crc = table[(crc ^ (*at++ >> 4)) & 15] ^ (crc >> 4);
    }
    return ~crc;
}

static inline void contbox_store(unsigned char *slot, size_t word, uint64_t value)
{
    __atomic_store_n((uint64_t *)(void *)slot + word, value, __ATOMIC_RELAXED);
}

static inline uint64_t contbox_load(const unsigned char *slot, size_t word)
{
    return __atomic_load_n((const uint64_t *)(const void *)slot + word, __ATOMIC_RELAXED);
}

/* Stores before become visible before stores after. */
static inline void contbox_order(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void contbox_store_bytes(unsigned char *slot, size_t word, const void *bytes, size_t length)
{
    const unsigned char *at = (const unsigned char *)bytes;
    for (; length > 0; word++) {
        uint64_t value = 0;
        size_t count = length < 8 ? length : 8;
        memcpy(&value, at, count);
        contbox_store(slot, word, value);
        at += count;
        length -= count;
    }
}

static inline uint32_t contbox_buffer_check(const struct contbox_buffer_head *head, uint32_t generation,
                                            const void *lws)
{
    uint32_t crc = contbox_crc(0, &generation, sizeof generation);
    crc = contbox_crc(crc, head, offsetof(struct contbox_buffer_head, check));
    return contbox_crc(crc, lws, head->length);
}

static inline uint32_t contbox_identity_check(const struct contbox_slot_head *head)
{
    const size_t from = offsetof(struct contbox_slot_head, local_address);
    const size_t to = offsetof(struct contbox_slot_head, identity_check);
    return contbox_crc(0, (const unsigned char *)head + from, to - from);
}

/* Checks a mapping of `length` bytes that the box service has handed out. */
static inline int contbox_open(struct contbox_pool *pool, void *mapping, size_t length)
{
    struct contbox_pool_header header;
    if (length < CONTBOX_HEADER_BYTES)
        return CONTBOX_BAD_POOL;
    memcpy(&header, mapping, sizeof header);
    const uint64_t fronts = CONTBOX_HEADER_BYTES + (uint64_t)header.slots * CONTBOX_FRONT_BYTES;
    const uint64_t bodies = (fronts + 4095) / 4096 * 4096;
    uint64_t need = CONTBOX_FRONT_BYTES + 2 * (uint64_t)header.lws_bytes + header.log_bytes + header.send_bytes;
    if (header.magic != CONTBOX_MAGIC || header.version != CONTBOX_VERSION ||
        header.header_bytes != CONTBOX_HEADER_BYTES || header.length_bytes > length ||
        header.check != contbox_crc(0, &header, offsetof(struct contbox_pool_header, check)) ||
        header.slots == 0 || header.slots > CONTBOX_SLOTS_MAX || header.log_bytes == 0 ||
        (header.lws_bytes | header.log_bytes | header.slot_bytes) % 8 != 0 || need > header.slot_bytes ||
        bodies + (uint64_t)header.slots * (header.slot_bytes - CONTBOX_FRONT_BYTES) > header.length_bytes)
        return CONTBOX_BAD_POOL;
    pool->start = (unsigned char *)mapping;
    pool->bodies = pool->start + bodies;
    pool->name = header.pool;
    pool->slots = header.slots;
    pool->slot_bytes = header.slot_bytes;
    pool->lws_bytes = header.lws_bytes;
    pool->log_bytes = header.log_bytes;
    return 0;
}

static inline unsigned char *contbox_slot(const struct contbox_pool *pool, uint32_t slot)
{
    return pool->start + CONTBOX_HEADER_BYTES + (size_t)slot * CONTBOX_FRONT_BYTES;
}

static inline unsigned char *contbox_body(const struct contbox_pool *pool, uint32_t slot)
{
    return pool->bodies + (size_t)slot * (pool->slot_bytes - CONTBOX_FRONT_BYTES);
}

/* Where a snapshot of `length` bytes lies: a short one in the front. */
static inline unsigned char *contbox_lws(unsigned char *slot, unsigned char *body, unsigned odd, uint32_t lws_bytes,
                                         uint32_t length)
{
    return length <= CONTBOX_SHORT_LWS_BYTES
        ? slot + CONTBOX_SLOT_HEAD_BYTES + odd * (size_t)CONTBOX_SHORT_LWS_BYTES
        : body + odd * (size_t)lws_bytes;
}

static inline void contbox_set_state(unsigned char *slot, uint32_t state, uint32_t owner)
{
    contbox_order();
    contbox_store(slot, 0, state | (uint64_t)owner << 32);
    contbox_order();
}

/* Makes `lws` the newest snapshot: all input before `lsr` is digested, all output before `lsw` was produced. */
static inline int contbox_export_state(struct contbox *box, const void *lws, uint32_t length, uint64_t lsr,
                                       uint64_t lsw)
{
    struct contbox_buffer_head head = { box->newest + 1, lsr, lsw, length, 0 };
    const unsigned odd = head.sequence & 1;
    const size_t description = odd ? offsetof(struct contbox_slot_head, odd) : offsetof(struct contbox_slot_head, even);
    if (length > box->lws_bytes)
        return CONTBOX_TOO_LONG;
    if (lsr < box->lsr)
        return CONTBOX_STEPS_BACK;
    head.check = contbox_buffer_check(&head, box->generation, lws);
    contbox_store_bytes(box->slot, description / 8, &head, sizeof head);
    contbox_store_bytes(contbox_lws(box->slot, box->body, odd, box->lws_bytes, length), 0, lws, length);
    contbox_order();
    contbox_store(box->slot, offsetof(struct contbox_slot_head, newest) / 8, head.sequence);
    contbox_order();
    box->newest = head.sequence;
    box->lsr = lsr;
    return 0;
}

/* Makes a box for a new connection in a leased slot. Addresses as 16 bytes, IPv4 as ::ffff:a.b.c.d; ports in host
   order. */
static inline int contbox_create(struct contbox *box, const struct contbox_pool *pool, uint32_t slot, uint32_t owner,
                                 const uint8_t local_address[16], uint16_t local_port,
                                 const uint8_t peer_address[16], uint16_t peer_port)
{
    struct contbox_slot_head head;
    if (slot >= pool->slots)
        return CONTBOX_BAD_SLOT;
    memset(&head, 0, sizeof head);
    box->slot = contbox_slot(pool, slot);
    box->body = contbox_body(pool, slot);
    contbox_set_state(box->slot, CONTBOX_LEASED, owner);
    const size_t generation_word = offsetof(struct contbox_slot_head, local_port) / 8;
    box->generation = (uint32_t)(contbox_load(box->slot, generation_word) >> 32) + 1;
    box->newest = contbox_load(box->slot, offsetof(struct contbox_slot_head, newest) / 8);
    box->lws_bytes = pool->lws_bytes;
    box->log_bytes = pool->log_bytes;
    box->lsr = 0;
    memcpy(head.local_address, local_address, 16);
    memcpy(head.peer_address, peer_address, 16);
    head.local_port = local_port;
    head.peer_port = peer_port;
    head.generation = box->generation;
    head.identity_check = contbox_identity_check(&head);
    contbox_store_bytes(box->slot, 1, (unsigned char *)&head + 8, offsetof(struct contbox_slot_head, newest) - 8);
    contbox_order();
    contbox_export_state(box, "", 0, 0, 0);
    contbox_set_state(box->slot, CONTBOX_OPEN, owner);
    return 0;
}

/* Takes over the box that the service put into `slot`; copies its snapshot into `lws`, at most `*length` bytes. */
static inline int contbox_import_state(struct contbox *box, const struct contbox_pool *pool, uint32_t slot, void *lws,
                                       uint32_t *length, uint64_t *lsr, uint64_t *lsw)
{
    struct contbox_slot_head head;
    if (slot >= pool->slots)
        return CONTBOX_BAD_SLOT;
    box->slot = contbox_slot(pool, slot);
    box->body = contbox_body(pool, slot);
    memcpy(&head, box->slot, sizeof head);
    const unsigned odd = head.newest & 1;
    const struct contbox_buffer_head *newest = odd ? &head.odd : &head.even;
    const unsigned char *stored = contbox_lws(box->slot, box->body, odd, pool->lws_bytes, newest->length);
    if (head.state != CONTBOX_OPEN || head.identity_check != contbox_identity_check(&head) ||
        newest->sequence != head.newest || newest->length > pool->lws_bytes ||
        newest->check != contbox_buffer_check(newest, head.generation, stored))
        return CONTBOX_BAD_SLOT;
    if (newest->length > *length)
        return CONTBOX_TOO_LONG;
    memcpy(lws, stored, newest->length);
    *length = newest->length;
    *lsr = newest->lsr;
    *lsw = newest->lsw;
    box->lws_bytes = pool->lws_bytes;
    box->log_bytes = pool->log_bytes;
    box->generation = head.generation;
    box->newest = head.newest;
    box->lsr = newest->lsr;
    return 0;
}

/* The log memory behind `room` bytes of input from stream offset `from`: pass it to recvmsg, so that a stop inside
 * recvmsg loses nothing, and read the input from there. `from + room` must not exceed lsr + log_bytes. */
static inline int contbox_log(const struct contbox *box, uint64_t from, uint32_t room, struct iovec stretches[2])
{
    unsigned char *log = box->body + 2 * (size_t)box->lws_bytes;
    const uint32_t start = (uint32_t)(from % box->log_bytes);
    const uint32_t first = room < box->log_bytes - start ? room : box->log_bytes - start;
    if (from < box->lsr || from - box->lsr > box->log_bytes || room > box->log_bytes - (from - box->lsr))
        return CONTBOX_TOO_LONG;
    stretches[0].iov_base = log + start;
    stretches[0].iov_len = first;
    stretches[1].iov_base = log;
    stretches[1].iov_len = room - first;
    return 0;
}

/* The log is full and the application cannot export: the session goes on, but nothing can resume it. */
static inline void contbox_give_up(struct contbox *box)
{
    contbox_set_state(box->slot, CONTBOX_LOST_LOG, (uint32_t)(contbox_load(box->slot, 0) >> 32));
}

/* The connection has ended; the slot stays leased. */
static inline void contbox_close(struct contbox *box)
{
    const uint32_t owner = (uint32_t)(contbox_load(box->slot, 0) >> 32);
    contbox_set_state(box->slot, CONTBOX_CLOSED, owner);
    contbox_set_state(box->slot, CONTBOX_LEASED, owner);
}

#endif
