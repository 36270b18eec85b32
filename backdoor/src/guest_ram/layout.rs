//! Which guest-physical address lies where in the memory's file.
//!
//! QEMU's PC machines put as much RAM as fits below the devices that live under 4 GiB, and the rest above 4 GiB:
//!
//! ```text
//!   guest   [0 .............. low)   devices   [4 GiB ........ 4 GiB + rest)
//!   file    [0 .............. low)             [low ............. low + rest)
//! ```
//!
//! The machine itself says where the border is: `info mtree` lists the two aliases. Where that cannot be read, the rule
//! of hw/i386/pc_q35.c and pc_piix.c is applied (`pc_q35_init`, `pc_init1`; default `max-ram-below-4g`).
//! The first MiB counts as RAM as a whole: what the firmware shadows there is in the same file, and what VGA covers
//! is harmless to read.

use crate::scatter::{Run, Scatter};

const GIB: u64 = 1 << 30;

/// Where RAM goes on above the devices.
const ABOVE: u64 = 4 * GIB;

/// The PC machines whose memory map is known by rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// q35: at most 2.75 GiB below 4 GiB, else 2 GiB.
    Q35,
    /// i440fx (`pc`): at most 3.5 GiB below 4 GiB, else 3 GiB.
    I440fx,
}

impl Machine {
    /// The machine that QOM calls `kind`, for example `pc-q35-7.2-machine`.
    pub fn named(kind: &str) -> Option<Self> {
        if kind.contains("q35") {
            Some(Self::Q35)
        } else if kind.contains("i440fx") {
            Some(Self::I440fx)
        } else {
            None
        }
    }

    /// The layout of `ram_bytes` of memory on this machine by QEMU's rule.
    pub fn layout(self, ram_bytes: u64) -> Option<Scatter> {
        let (limit, low_if_more) = match self {
            Self::Q35 => (0xb000_0000, 2 * GIB),
            Self::I440fx => (0xe000_0000, 3 * GIB),
        };
        let low = if ram_bytes >= limit { low_if_more } else { ram_bytes };
        let mut runs = vec![Run { start: 0, offset: 0, len: low }];
        if ram_bytes > low {
            runs.push(Run { start: ABOVE, offset: low, len: ram_bytes - low });
        }
        Scatter::new(runs)
    }
}

/// The layout that the machine itself states in the text of `info mtree`, for the memory backend called `backend`;
/// `None` if the text does not say, or what it says cannot be a layout of a file of `ram_bytes`.
pub fn stated(mtree: &str, backend: &str, ram_bytes: u64) -> Option<Scatter> {
    // The trees come in any order, each under the names of all address spaces that it belongs to. Behind the last one
    // regions are listed, which repeat the aliases.
    let mut lines = mtree.lines().skip_while(|line| line.trim_end() != "address-space: memory");
    lines.next()?;
    let tree = lines.skip_while(|line| line.starts_with("address-space:")).take_while(|line| line.starts_with(' '));
    let runs: Vec<Run> = tree.filter_map(|line| alias(line, backend)).collect();
    let total: u64 = runs.iter().map(|run| run.len).try_fold(0, u64::checked_add)?;
    let inside = runs.iter().all(|run| run.offset.checked_add(run.len).is_some_and(|end| end <= ram_bytes));
    if runs.is_empty() || total != ram_bytes || !inside {
        return None;
    }
    Scatter::new(runs)
}

/// One line such as
/// `    0000000100000000-000000012fffffff (prio 0, ram): alias ram-above-4g @mem 0000000080000000-00000000afffffff`.
fn alias(line: &str, backend: &str) -> Option<Run> {
    let (addresses, rest) = line.trim().split_once(" (prio 0, ram): alias ram-")?;
    let (_, source) = rest.split_once(" @")?;
    let (name, offsets) = source.split_once(' ')?;
    if name != backend {
        return None;
    }
    let (start, last) = range(addresses)?;
    let (offset, offset_last) = range(offsets)?;
    let len = last.checked_sub(start)?.checked_add(1)?;
    (offset_last.checked_sub(offset)?.checked_add(1)? == len).then_some(Run { start, offset, len })
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.trim().split_once('-')?;
    Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(machine: Machine, ram_mib: u64, expected: &[(u64, u64, u64)]) {
        let runs: Vec<_> = expected.iter().map(|&(start, offset, len)| Run { start, offset, len }).collect();
        assert_eq!(machine.layout(ram_mib * MIB).unwrap().runs(), runs, "{machine:?} {ram_mib} MiB");
    }

    #[test]
    fn the_rule_is_qemu_s() {
        check(Machine::Q35, 256, &[(0, 0, 256 * MIB)]);
        check(Machine::Q35, 2815, &[(0, 0, 2815 * MIB)]);
        check(Machine::Q35, 2816, &[(0, 0, 2048 * MIB), (ABOVE, 2048 * MIB, 768 * MIB)]);
        check(Machine::I440fx, 3583, &[(0, 0, 3583 * MIB)]);
        check(Machine::I440fx, 3584, &[(0, 0, 3072 * MIB), (ABOVE, 3072 * MIB, 512 * MIB)]);
    }

    /// From QEMU 7.2, `-M q35 -m 2816`.
    const MTREE: &str = "\
address-space: I/O\r
  0000000000000000-000000000000ffff (prio 0, i/o): io\r
\r
address-space: memory\r
  0000000000000000-ffffffffffffffff (prio 0, i/o): system\r
    0000000000000000-000000007fffffff (prio 0, ram): alias ram-below-4g @mem 0000000000000000-000000007fffffff\r
    00000000000a0000-00000000000bffff (prio 1, i/o): alias smram-region @pci 00000000000a0000-00000000000bffff\r
    0000000100000000-000000012fffffff (prio 0, ram): alias ram-above-4g @mem 0000000080000000-00000000afffffff\r
\r
address-space: VGA\r
  0000000000000000-000000000fffffff (prio 0, ram): alias ram-below-4g @mem 0000000000000000-000000000fffffff\r
";

    #[test]
    fn the_machine_s_own_word_is_understood() {
        assert_eq!(stated(MTREE, "mem", 2816 * MIB), Machine::Q35.layout(2816 * MIB));
    }

    #[test]
    fn the_order_of_the_trees_does_not_matter() {
        let expected = Machine::Q35.layout(2816 * MIB);
        let (io, memory) = MTREE.split_once("address-space: memory").unwrap();
        let (tree, vga) = memory.split_once("address-space: VGA").unwrap();
        let last = format!("{io}address-space: VGA{vga}\r\naddress-space: memory{tree}memory-region: system{tree}");
        assert_eq!(stated(&last, "mem", 2816 * MIB), expected, "the regions behind the last tree are not part of it");
        let shared = MTREE.replace("address-space: memory", "address-space: cpu-memory-0\r\naddress-space: memory");
        assert_eq!(stated(&shared, "mem", 2816 * MIB), expected);
        let shared = MTREE.replace("address-space: memory", "address-space: memory\r\naddress-space: smm");
        assert_eq!(stated(&shared, "mem", 2816 * MIB), expected);
    }

    #[test]
    fn what_does_not_add_up_is_not_believed() {
        assert_eq!(stated(MTREE, "other", 2816 * MIB), None);
        assert_eq!(stated(MTREE, "mem", 2815 * MIB), None);
        assert_eq!(stated(&MTREE.replace("afffffff", "zfffffff"), "mem", 2816 * MIB), None);
        assert_eq!(
            stated(
                &MTREE.replace("0000000080000000-00000000afffffff", "0000000090000000-00000000bfffffff"),
                "mem",
                2816 * MIB
            ),
            None
        );
        assert_eq!(stated("", "mem", 2816 * MIB), None);
    }
}
