// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Locks a guest up the moment it is loaded. For virtual machines that are about to be thrown away.
 *
 *   insmod lockup.ko mode=soft          one processor spins with preemption off; interrupts still come
 *   insmod lockup.ko mode=soft all=1    every processor does
 *   insmod lockup.ko mode=hard          every processor spins with interrupts off: nothing on it runs again
 *
 * A spinning processor does nothing but spin: no lock is held, no memory is touched, so what the machine had reached
 * stays as it was. The processor that loads the module joins last, when the others are already spinning.
 */
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/workqueue.h>

static char *mode = "soft";
module_param(mode, charp, 0);
MODULE_PARM_DESC(mode, "soft or hard");

static bool all;
module_param(all, bool, 0);
MODULE_PARM_DESC(all, "soft: spin on every processor, not only on this one");

static void spin_without_interrupts(void *unused)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

static void spin_without_preemption(struct work_struct *unused)
{
	preempt_disable();
	for (;;)
		cpu_relax();
}

static DEFINE_PER_CPU(struct work_struct, spinner);

static void soft(void)
{
	int cpu;

	for_each_online_cpu(cpu) {
		if (!all || cpu == raw_smp_processor_id())
			continue;
		INIT_WORK(per_cpu_ptr(&spinner, cpu), spin_without_preemption);
		schedule_work_on(cpu, per_cpu_ptr(&spinner, cpu));
	}
	spin_without_preemption(NULL);
}

static void hard(void)
{
	/* Without waiting: the others take the interrupt that stops them, and never answer it. */
	smp_call_function(spin_without_interrupts, NULL, 0);
	spin_without_interrupts(NULL);
}

static int __init lockup_init(void)
{
	if (!strcmp(mode, "hard"))
		hard();
	else if (!strcmp(mode, "soft"))
		soft();
	return -EINVAL;
}
module_init(lockup_init);

MODULE_DESCRIPTION("Locks a test guest up");
MODULE_LICENSE("Dual MIT/GPL");
