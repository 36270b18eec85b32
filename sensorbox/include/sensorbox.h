/* The bytes of a Sensor Box, for C and for the eBPF programs that update sensors inside the kernel.
 *
 * Says the same as src/layout.rs, which has the reasons; tests/c_header.rs holds the two together. A program that
 * only moves values needs `struct sensor_record`'s `value` and nothing else: sensors are made by the agent.
 */
#ifndef SENSORBOX_H
#define SENSORBOX_H

#ifndef __bpf__
#include <stdint.h>
typedef uint8_t sb_u8;
typedef uint16_t sb_u16;
typedef uint32_t sb_u32;
typedef uint64_t sb_u64;
#else
/* eBPF programs are compiled without a C library. */
typedef unsigned char sb_u8;
typedef unsigned short sb_u16;
typedef unsigned int sb_u32;
typedef unsigned long long sb_u64;
#endif

#define SENSORBOX_MAGIC 0x8f786f42736e53d1ULL
#define SENSORBOX_VERSION 1u
#define SENSOR_RECORD_BYTES 64u
#define SENSOR_LIVE 0x5b1de0c7u
#define SENSOR_RETIRED 0x2a9613edu
#define SENSOR_CLAIMED 0x71c458b9u
#define SENSOR_NO_CPU 0xffffffffu
#define SENSOR_FLAG_FLOOR 1u

enum sensor_class { SENSOR_PROGRESS = 1, SENSOR_LEVEL = 2, SENSOR_PRESSURE = 3 };

struct sensorbox_header {
	sb_u64 magic;
	sb_u32 version;
	sb_u32 record_bytes;
	sb_u64 len_bytes;
	sb_u32 capacity;
	sb_u32 zero;
	sb_u8 boot_id[16];
	sb_u64 reserved;
	sb_u64 checksum;
};

struct sensor_record {
	sb_u32 state;
	sb_u32 id;
	sb_u8 class_code;
	sb_u8 flags;
	sb_u16 spare;
	sb_u32 cpu;
	sb_u64 value;
	sb_u64 limit;
	sb_u64 period_ns;
	char name[16];
	sb_u64 checksum;
};

#define SB_AT(type, member, offset) \
	_Static_assert(__builtin_offsetof(struct type, member) == (offset), #type "." #member)

_Static_assert(sizeof(struct sensorbox_header) == SENSOR_RECORD_BYTES, "header is one record long");
_Static_assert(sizeof(struct sensor_record) == SENSOR_RECORD_BYTES, "record");
SB_AT(sensorbox_header, record_bytes, 12);
SB_AT(sensorbox_header, len_bytes, 16);
SB_AT(sensorbox_header, capacity, 24);
SB_AT(sensorbox_header, boot_id, 32);
SB_AT(sensorbox_header, checksum, 56);
SB_AT(sensor_record, id, 4);
SB_AT(sensor_record, class_code, 8);
SB_AT(sensor_record, flags, 9);
SB_AT(sensor_record, cpu, 12);
SB_AT(sensor_record, value, 16);
SB_AT(sensor_record, limit, 24);
SB_AT(sensor_record, period_ns, 32);
SB_AT(sensor_record, name, 40);
SB_AT(sensor_record, checksum, 56);

#undef SB_AT
#endif
