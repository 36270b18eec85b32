// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/* The kernel's side of the Sensor Box: programs that move the values of sensors which the agent has made.
 *
 * Each processor writes only its own records, with plain stores: no lock, no atomic, nothing shared with another
 * processor. Counters that belong to the whole machine are advanced atomically. Sensors look into no kernel structure,
 * the tables (kill_table.bpf.h, process_table.bpf.h, fence.bpf.h) into members that are placed when the programs are
 * loaded, so one object serves every kernel; the three kernel variables that are read are found by name and may be
 * absent.
 *
 * The record numbers come from src/records.rs through build.rs.
 */
#include "sensorbox.h"

/* What bpf_helpers.h expects from a vmlinux.h, which is not needed for anything else. */
typedef sb_u8 __u8;
typedef sb_u16 __u16;
typedef sb_u32 __u32;
typedef sb_u64 __u64;
typedef signed int __s32;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
enum { BPF_MAP_TYPE_ARRAY = 2, BPF_F_MMAPABLE = 1 << 10 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "kernel.bpf.h"
#include "kill_table.bpf.h"
#include "process_table.bpf.h"
#include "fence.bpf.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Record 0 is the box's header. The agent makes the map; this only describes it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RECORDS);
	__type(key, __u32);
	__type(value, struct sensor_record);
} sensor_box SEC(".maps");

extern const void panic_cpu __ksym __weak;    /* atomic_t, kernel/panic.c; -1 while all is well */
extern const void nr_threads __ksym __weak;   /* int, kernel/fork.c */
extern const void vm_zone_stat __ksym __weak; /* atomic_long_t[], mm/vmstat.c */

enum zone_stat_item { NR_FREE_PAGES = 0 };

static __always_inline struct sensor_record *record(__u32 id)
{
	return bpf_map_lookup_elem(&sensor_box, &id);
}

/* The calling processor's record in the block that starts at `first`. */
static __always_inline struct sensor_record *own_record(__u32 first)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return cpu < SENSOR_CPUS ? record(first + cpu) : 0;
}

static __always_inline void advance_own(__u32 first)
{
	struct sensor_record *sensor = own_record(first);

	if (sensor)
		*(volatile sb_u64 *)&sensor->value += 1;
}

static __always_inline void advance(__u32 id)
{
	struct sensor_record *sensor = record(id);

	if (sensor)
		__sync_fetch_and_add(&sensor->value, 1);
}

static __always_inline void show(__u32 id, sb_u64 value)
{
	struct sensor_record *sensor = record(id);

	if (sensor)
		*(volatile sb_u64 *)&sensor->value = value;
}

/* Amounts that the kernel counts anyway. Any processor that still ticks keeps them fresh. */
static __always_inline void show_amounts(void)
{
	int tasks = 0;
	long pages = 0;

	if (&nr_threads && !bpf_probe_read_kernel(&tasks, sizeof(tasks), &nr_threads))
		show(TASKS, tasks);
	if (&vm_zone_stat) {
		sb_u64 item = bpf_core_enum_value(enum zone_stat_item, NR_FREE_PAGES);
		const long *stat = (const long *)&vm_zone_stat + item;

		/* The kernel's sum lags behind per-processor differences and can be seen below zero. */
		if (!bpf_probe_read_kernel(&pages, sizeof(pages), stat)) {
			show(FREE_PAGES, pages > 0 ? pages : 0);
			show_free_pages(pages > 0 ? pages : 0);
		}
	}
}

/* A processor that waits for the end after a panic takes timer interrupts for ever: that is no progress. */
static __always_inline int panicking(void)
{
	int cpu = -1;

	return &panic_cpu && !bpf_probe_read_kernel(&cpu, sizeof(cpu), &panic_cpu) && cpu != -1;
}

/* What a perf_event program sees, cut to the registers. Source: uapi bpf_perf_event.h, x86 struct pt_regs. */
struct bpf_perf_event_data {
	sb_u64 before_code_segment[17];
	sb_u64 code_segment;
};

/* Whether the processor idles or runs a user's program: then the kernel holds on to nothing on it, and a long time
 * without a context switch only means that there is nobody to switch to. */
static __always_inline int kernel_lets_go(struct bpf_perf_event_data *context)
{
	__u32 user_ring = 3;

	return (__u32)bpf_get_current_pid_tgid() == 0 || (context->code_segment & user_ring) == user_ring;
}

/* One timer of each processor, 200 times a second, also when it idles. */
SEC("perf_event")
int tick(struct bpf_perf_event_data *context)
{
	struct sensor_record *sensor = own_record(TICK);

	if (!sensor || panicking())
		return 0;
	look_for_orders();
	note_the_running();
	look_for_lock();
	if (kernel_lets_go(context))
		advance_own(SWITCHES);
	*(volatile sb_u64 *)&sensor->value += 1;
	/* 25 times a second: monitors sample no faster than that for amounts. */
	if ((sensor->value & 7) == 0)
		show_amounts();
	return 0;
}

SEC("tp_btf/sched_switch")
int on_switch(void *context)
{
	advance_own(SWITCHES);
	/* The current process is the one that is switched away from. */
	if (armed)
		enforce();
	if (standing_mode)
		stop_the_service();
	return 0;
}

SEC("tp_btf/irq_handler_entry")
int on_device_interrupt(void *context)
{
	advance_own(INTERRUPTS);
	return 0;
}

SEC("tp_btf/local_timer_entry")
int on_timer_interrupt(void *context)
{
	advance_own(INTERRUPTS);
	return 0;
}

/* Takes a sensor out of the box: from here on it promises nothing. */
static __always_inline void retire(__u32 id)
{
	struct sensor_record *sensor = record(id);

	if (sensor && sensor->state == SENSOR_LIVE)
		*(volatile sb_u32 *)&sensor->state = SENSOR_RETIRED;
}

/* The kernel goes down in order: restart, halt, power off and kexec come through here (kernel/reboot.c), a crash does
 * not. What is about to stop for good must not look like a hang. Nobody in user space is asked: an agent that is
 * killed, stopped or replaced leaves its sensors alone. */
SEC("fentry/device_shutdown")
int on_shutdown(void *context)
{
	for (__u32 cpu = 0; cpu < SENSOR_CPUS; cpu++) {
		retire(TICK + cpu);
		retire(SWITCHES + cpu);
		retire(INTERRUPTS + cpu);
	}
	retire(AGENT);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int on_fork(__u64 *parent_and_child)
{
	struct task_struct *child = (struct task_struct *)parent_and_child[1];

	advance(FORKS);
	if (BPF_CORE_READ(child, pid) == BPF_CORE_READ(child, tgid))
		note_birth(task_at(&parent_and_child[1]));
	if (armed) {
		inherit(child);
		enforce();
	}
	return 0;
}

SEC("tp_btf/mark_victim")
int on_oom_kill(void *context)
{
	advance(OOM_KILLS);
	return 0;
}
