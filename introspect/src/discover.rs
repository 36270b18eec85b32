//! The way from raw RAM to a [`Kernel`]: each step's result is checked against an earlier one, so that a stale note or
//! a page that only looks like one leads nowhere.

use std::collections::{BTreeMap, HashSet};

use remote_memory::{KernelVirt, LinkError, PAGE_BYTES};

use crate::btf::{Btf, TypeError};
use crate::kallsyms;
use crate::linux::channel::ChannelLayout;
use crate::linux::contain::ContainLayout;
use crate::linux::kill::KillLayout;
use crate::linux::log::LogLayout;
use crate::linux::task::{DetailLayouts, TaskLayout};
use crate::linux::tcp::{EndsHash, TcpLayout, tables};
use crate::linux::ucounts;
use crate::living::ClockLayout;
use crate::memory::{Memory, word};
use crate::paging::{IMAGE_START, Space};
use crate::sources::Sources;
use crate::vmcoreinfo::{Note, scan};
use crate::{DiscoverError, Extent, Kernel};

/// Looked up in the one pass over the symbol table.
const SYMBOLS: &[&str] = &[
    "__per_cpu_offset",
    "__start_BTF",
    "__stop_BTF",
    "_end",
    "_totalram_pages",
    "current_task",
    "inet6_ehash_secret",
    "inet_ehash_secret",
    "init_net",
    "init_pid_ns",
    "init_task",
    "init_user_ns",
    "ipv6_hash_secret",
    "jiffies",
    "linux_banner",
    "net_hotdata",
    "nr_cpu_ids",
    "nr_threads",
    "page_offset_base",
    "pcpu_hot",
    "pids_cgrp_subsys",
    "process_timeout",
    "real_mode_header",
    "tcp_hashinfo",
    "tcp_ipv6_hash_secret",
    "timer_bases",
    "tk_core",
    "total_forks",
    "total_swap_pages",
    "ucounts_hashtable",
    "vm_zone_stat",
    "vmemmap_base",
];

/// `linux_banner` begins with this and the release.
const BANNER: &str = "Linux version ";

/// Why one note did not lead to a kernel.
enum Dead {
    Link(LinkError),
    Note(String),
}

impl From<LinkError> for Dead {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<TypeError> for Dead {
    fn from(error: TypeError) -> Self {
        Self::Note(format!(
            "{error}: this kernel's layout is not known here; boot the target with a kernel that is, \
             or update this program"
        ))
    }
}

impl From<&'static str> for Dead {
    fn from(what: &'static str) -> Self {
        Self::Note(what.to_string())
    }
}

/// See [`Kernel::discover`].
pub(crate) fn discover(
    memory: &mut Memory<'_>,
    extents: &[Extent],
    others: &[Kernel],
) -> Result<Kernel, DiscoverError> {
    let mut candidates = 0;
    let mut last = String::from("none");
    let found = scan(memory, extents, |memory, note| {
        candidates += 1;
        match follow(memory, note, extents) {
            Ok(kernel) if others.contains(&kernel) => {
                last = format!("Linux {}: not one of those that were found before is wanted", note.release());
                Ok(None)
            }
            Ok(kernel) => Ok(Some(kernel)),
            Err(Dead::Link(error)) => Err(error),
            Err(Dead::Note(what)) => {
                last = format!("Linux {}: {what}", note.release());
                Ok(None)
            }
        }
    })?;
    found.ok_or(DiscoverError::NoKernel { candidates, last })
}

/// What a kernel without this symbol was built without.
fn lacks(symbol: &str) -> String {
    let built_without = match symbol {
        "__start_BTF" | "__stop_BTF" => "CONFIG_DEBUG_INFO_BTF",
        "page_offset_base" | "vmemmap_base" => "CONFIG_KALLSYMS_ALL or CONFIG_RANDOMIZE_MEMORY",
        _ => "CONFIG_KALLSYMS_ALL",
    };
    format!(
        "its symbol table has no {symbol}: it was built without {built_without}; \
         boot the target with a kernel that has it"
    )
}

fn follow(memory: &mut Memory<'_>, note: &Note, extents: &[Extent]) -> Result<Kernel, Dead> {
    let mut space = bootstrap(note, extents)?;
    let mut sources = Sources::of(memory, note, &space)?.map_err(Dead::Note)?;
    let mut symbols = read_symbols(memory, &sources, &space)?;
    // A name of three letters may stand for something else as well; the note means the log.
    symbols.extend(note.symbol("prb").map(|at| ("prb".to_owned(), at)));
    let address = |name: &'static str| symbols.get(name).copied().ok_or_else(|| Dead::Note(lacks(name)));
    space.image_end = address("_end")?.clamp(IMAGE_START, Space::image_end_max());
    check_banner(memory, &space, address("linux_banner")?, note.release())?;
    space.page_offset_base = pointer(memory, &space, address("page_offset_base")?)?;
    space.vmemmap_base = pointer(memory, &space, address("vmemmap_base")?)?;
    sources.btf = (address("__start_BTF")?, address("__stop_BTF")?);
    let btf = Btf::parse(&sources.read_btf(memory, &space)?.map_err(Dead::Note)?)?;
    space.page_struct_bytes = btf.size("page")? as u64;
    let tcp = TcpLayout::resolve(&btf)?;
    let roots = [address("tcp_hashinfo")?, address("init_net")?].map(KernelVirt::new);
    let tcp_tables = tables::find(memory, &space, &btf, roots)??;
    for table in &tcp_tables {
        prewalk(memory, &mut space, table.start(), table.bytes())?;
    }
    Ok(Kernel {
        release: note.release().to_string(),
        task: TaskLayout::resolve(&btf)?,
        ends: ends_hash(&btf, &symbols),
        log: LogLayout::resolve(&btf).ok(),
        kill: KillLayout::resolve(&btf).ok(),
        contain: ContainLayout::resolve(&btf),
        clock: ClockLayout::resolve(&btf),
        reserved_bit: btf.count_of("PG_reserved").and_then(|bit| u8::try_from(bit).ok()),
        hot_task: btf.field_at("pcpu_hot.current_task").ok(),
        details: DetailLayouts::resolve(&btf),
        ucounts: ucounts::Layout::resolve(&btf),
        channels: ChannelLayout::resolve(&btf),
        sources: Some(sources),
        tcp,
        tcp_tables,
        symbols,
        space,
    })
}

/// Where the secrets are that ends of connections are hashed with: from 6.9 on in `net_hotdata`, before in variables of
/// their own.
fn ends_hash(btf: &Btf, symbols: &BTreeMap<String, u64>) -> Option<EndsHash> {
    let member = |of: &str, path: &str| {
        let field = btf.field_at(path).ok().filter(|field| field.size == 4)?;
        symbols.get(of)?.checked_add(field.offset as u64)
    };
    let place = |path: &str, names: &[&str]| {
        let of_its_own = || names.iter().find_map(|name| symbols.get(*name).copied());
        member("net_hotdata", path).or_else(of_its_own)
    };
    Some(EndsHash {
        secret4: place("net_hotdata.tcp_protocol.secret", &["inet_ehash_secret"])?,
        secret6: place("net_hotdata.tcpv6_protocol.secret", &["inet6_ehash_secret"])?,
        peer6: place("net_hotdata.tcpv6_offload.secret", &["tcp_ipv6_hash_secret", "ipv6_hash_secret"])?,
        mix: btf.field_at("net.hash_mix").ok()?,
    })
}

/// The address space as far as the note states it: enough for image and page tables.
fn bootstrap(note: &Note, extents: &[Extent]) -> Result<Space, Dead> {
    let phys_base = note.number("phys_base").ok_or("no phys_base: not x86-64")?;
    let root = note
        .symbol("init_top_pgt")
        .or_else(|| note.symbol("swapper_pg_dir"))
        .ok_or("no page-table root: neither init_top_pgt nor swapper_pg_dir")?;
    let five = note.number("pgtable_l5_enabled").unwrap_or(0) != 0;
    Ok(Space {
        phys_base,
        image_end: Space::image_end_max(),
        root: root.wrapping_sub(IMAGE_START).wrapping_add(phys_base),
        levels: if five { 5 } else { 4 },
        sme_mask: note.number("sme_mask").unwrap_or(0),
        extents: extents.to_vec(),
        ..Space::default()
    })
}

fn read(memory: &mut Memory<'_>, space: &Space, at: u64, len: usize) -> Result<Vec<u8>, Dead> {
    let found = space.fetch(memory, KernelVirt::new(at), len)?;
    found.ok_or_else(|| Dead::Note(format!("{len} bytes of kernel memory at {at:#x} cannot be read")))
}

fn pointer(memory: &mut Memory<'_>, space: &Space, at: u64) -> Result<u64, Dead> {
    Ok(word(&read(memory, space, at, 8)?, 0, 8))
}

fn read_symbols(memory: &mut Memory<'_>, sources: &Sources, space: &Space) -> Result<BTreeMap<String, u64>, Dead> {
    let wanted: HashSet<&str> = SYMBOLS.iter().copied().collect();
    let raw = sources.read_symbols(memory, space)?.map_err(Dead::Note)?;
    Ok(kallsyms::resolve(&raw.tables(), &wanted, ("_stext", sources.stext))?)
}

fn check_banner(memory: &mut Memory<'_>, space: &Space, at: u64, release: &str) -> Result<(), Dead> {
    let expected = format!("{BANNER}{release}");
    if release.is_empty() || expected.len() > PAGE_BYTES as usize {
        return Err("the note states no release".into());
    }
    let found = read(memory, space, at, expected.len())?;
    if found == expected.as_bytes() { Ok(()) } else { Err("the kernel's banner is not that of the note".into()) }
}

/// Walks the pages of a table that is not in the direct map now, while the page tables are whole.
fn prewalk(memory: &mut Memory<'_>, space: &mut Space, start: KernelVirt, len: u64) -> Result<(), LinkError> {
    if space.known(start, len).is_some() {
        return Ok(());
    }
    let first = start.page_start().raw();
    let pages: Vec<u64> = (0..=len / PAGE_BYTES).filter_map(|number| first.checked_add(number * PAGE_BYTES)).collect();
    let found = space.walk_pages(memory, &pages)?;
    space.walked.extend(pages.iter().zip(found).filter_map(|(virt, at)| Some((*virt, at?.raw()))));
    Ok(())
}
