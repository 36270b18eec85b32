/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only */
/* Members of kernel structures that are read, placed by CO-RE when the programs are loaded. */
#define NS_OF_MS 1000000ULL

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_LRU_HASH = 9, BPF_ANY = 0 };
enum { PF_EXITING = 0x4, PF_KTHREAD = 0x200000, SIGNAL_GROUP_EXIT = 0x4 };
/* Indices of a process's memory counters. Source: include/linux/mm_types_task.h. */
enum { MM_FILEPAGES = 0, MM_ANONPAGES = 1, MM_SWAPENTS = 2, MM_SHMEMPAGES = 3, MM_COUNTERS = 4 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct cred {
	struct {
		unsigned int val;
	} uid, euid;
};
struct kernfs_node {
	__u64 id;
};
struct cgroup {
	struct kernfs_node *kn;
};
struct css_set {
	struct cgroup *dfl_cgrp;
};
struct signal_struct {
	struct {
		int counter;
	} live;
	unsigned int flags;
};
/* Since 6.2 (commit f1a7941243c1) each of a process's counters is one for all processors and a difference of each. */
struct percpu_counter {
	__s64 count;
};
struct mm_struct {
	struct percpu_counter rss_stat[MM_COUNTERS];
};
/* Before. */
struct mm_rss_stat {
	struct {
		__s64 counter;
	} count[MM_COUNTERS];
};
struct mm_struct___before_6_2 {
	struct mm_rss_stat rss_stat;
};
struct sighand_struct;
struct task_struct {
	int pid;
	int tgid;
	unsigned int flags;
	unsigned int __state;
	int exit_state;
	__u64 start_time;
	char comm[16];
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	const struct cred *real_cred;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	struct css_set *cgroups;
	struct mm_struct *mm;
};
struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};
#pragma clang attribute pop
