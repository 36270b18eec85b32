//! Discovery of a kernel that is made here, byte by byte: note, symbol table, type information, page tables, an empty
//! table of connections. Real kernels are too large to keep; what differs between them is a parameter.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use remote_memory::RemoteKey;
use remote_memory::image::Image;

use crate::linux::task::TaskLayout;
use crate::linux::tcp::{
    self, HeadLayout, RequestLayout, SavedSynLayout, SharedLayout, SkbLayout, SockLayout, TcpFilter,
};
use crate::{DiscoverError, Extent, Kernel};

const KEY: RemoteKey = RemoteKey::new(1);
const RAM: u64 = 32 << 20;
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// KASLR: where the image was put in memory, and by how much its addresses moved.
const PHYS_BASE: u64 = 0x20_0000u64.wrapping_sub(0x1000_0000);
const TEXT: u64 = IMAGE + 0x1000_0000;
const BANNER: &str = "Linux version 6.9.0-made-here (nobody@nowhere)";
const VMALLOC: u64 = 0xffff_c900_1234_5000;
const DIRECT: u64 = 0xffff_8a00_4000_0000;
const BUCKETS: u64 = 1024;

/// What differs between kernels.
#[derive(Clone, Copy)]
struct Made {
    levels: u8,
    absolute_percpu: bool,
    netmem: bool,
    ehash_in_vmalloc: bool,
    /// A symbol or member that it does not describe.
    without: Option<&'static str>,
}

const PLAIN: Made = Made { levels: 4, absolute_percpu: true, netmem: false, ehash_in_vmalloc: false, without: None };

fn phys(virt: u64) -> u64 {
    virt.wrapping_sub(IMAGE).wrapping_add(PHYS_BASE)
}

/// Members of a struct; one without members of its own is a 64-bit number.
#[derive(Default)]
struct Members(BTreeMap<String, Members>);

/// Collects BTF types and strings.
#[derive(Default)]
struct Blob {
    types: Vec<u32>,
    count: u32,
    strings: Vec<u8>,
}

impl Blob {
    fn text(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, words: &[u32]) -> u32 {
        self.types.extend_from_slice(words);
        self.count += 1;
        self.count
    }

    /// Adds a struct with its inner ones; returns its type and size in bytes.
    fn add_struct(&mut self, name: u32, members: &Members) -> (u32, u32) {
        const U64: u32 = 1;
        let mut words = Vec::new();
        let mut size = 0;
        for (member, inner) in &members.0 {
            let (id, bytes) = if inner.0.is_empty() { (U64, 8) } else { self.add_struct(0, inner) };
            words.extend([self.text(member), id, size * 8]);
            size += bytes;
        }
        let header = [name, 4 << 24 | members.0.len() as u32, size];
        (self.add(&[&header[..], &words].concat()), size)
    }

    fn finish(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32 * 4, self.strings.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let words = [24, 0, types, types, strings].into_iter().chain(self.types);
        bytes.extend(words.flat_map(u32::to_le_bytes));
        bytes.extend(self.strings);
        bytes
    }
}

/// Type information with every member that the walkers name.
fn btf(made: Made) -> Vec<u8> {
    let frag = match made.netmem {
        true => ["skb_frag.netmem", "skb_frag.len", "skb_frag.offset"],
        false => ["bio_vec.bv_page", "bio_vec.bv_len", "bio_vec.bv_offset"],
    };
    let of_tables = ["inet_hashinfo.ehash", "inet_hashinfo.ehash_mask", "net.ipv4.tcp_death_row.hashinfo"];
    let page = ["page.a", "page.b", "page.c", "page.d", "page.e", "page.f", "page.g", "page.h"];
    let layouts = [TaskLayout::PATHS, HeadLayout::PATHS, SockLayout::PATHS, SkbLayout::PATHS, SharedLayout::PATHS];
    let layouts = layouts.into_iter().chain([SavedSynLayout::PATHS, RequestLayout::PATHS]);
    let paths = layouts.into_iter().flatten().chain(&frag).chain(&of_tables).chain(&page);
    let mut all = Members::default();
    for path in paths.filter(|path| made.without != Some(path)) {
        path.split('.').fold(&mut all, |at, name| at.0.entry(name.to_string()).or_default());
    }
    let mut blob = Blob::default();
    blob.text("");
    let name = blob.text("unsigned long");
    blob.add(&[name, 1 << 24, 8, 64]);
    for (name, members) in &all.0 {
        let name = blob.text(name);
        blob.add_struct(name, members);
    }
    blob.finish()
}

/// Where a member of a struct of [`btf`] lies: they are in alphabetical order.
fn hashinfo_member(name: &str) -> u64 {
    if name == "ehash" { 0 } else { 8 }
}

fn build(made: Made) -> Image {
    let mut image = Image::new();
    let btf = btf(made);
    let at = |page: u64| TEXT + page * 0x1000;
    let ehash_phys = 0x8000;
    let ehash = if made.ehash_in_vmalloc { VMALLOC } else { DIRECT + ehash_phys };
    let mut symbols = vec![
        ("_stext", TEXT),
        ("__start_BTF", at(64)),
        ("__stop_BTF", at(64) + btf.len() as u64),
        ("_end", at(128)),
        ("init_net", at(20)),
        ("init_pid_ns", at(30)),
        ("linux_banner", at(2)),
        ("page_offset_base", at(3)),
        ("tcp_hashinfo", at(4)),
        ("vmemmap_base", at(3) + 8),
    ];
    symbols.retain(|(name, _)| made.without != Some(name));
    let mut put = |virt: u64, bytes: &[u8]| image.write_at(phys(virt), bytes);
    put(at(2), BANNER.as_bytes());
    put(at(3), &DIRECT.to_le_bytes());
    put(at(3) + 8, &0xffff_ea00_0000_0000u64.to_le_bytes());
    put(at(4) + hashinfo_member("ehash"), &ehash.to_le_bytes());
    put(at(4) + hashinfo_member("ehash_mask"), &(BUCKETS - 1).to_le_bytes());
    put(at(20), &at(4).to_le_bytes());
    put(at(30), &[0; 64]);
    put(at(64), &btf);
    put_kallsyms(&mut put, &symbols, made, at(40));
    for bucket in 0..BUCKETS {
        image.write_at(ehash_phys + bucket * 8, &(bucket << 1 | 1).to_le_bytes());
    }
    put_page_tables(&mut image, made, phys(at(50)), ehash_phys);
    put_note(&mut image, 0x5000, made, "6.9.0-made-here", at);
    image
}

/// num_syms, names, token_table, token_index, offsets and relative_base, each on a page of its own from `start`.
fn put_kallsyms(put: &mut impl FnMut(u64, &[u8]), symbols: &[(&str, u64)], made: Made, start: u64) {
    put(start, &(symbols.len() as u32).to_le_bytes());
    let (mut names, mut offsets, mut table, mut index) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, address) in symbols {
        names.push(name.len() as u8 + 1);
        names.push(b'D');
        names.extend_from_slice(name.as_bytes());
        let offset = (address - IMAGE) as i32;
        let stored = if made.absolute_percpu { -1 - offset } else { offset };
        offsets.extend_from_slice(&stored.to_le_bytes());
    }
    for token in 0..=255u8 {
        index.extend_from_slice(&(table.len() as u16).to_le_bytes());
        table.extend((token != 0).then_some(token));
        table.push(0);
    }
    put(start + 0x1000, &names);
    put(start + 0x2000, &table);
    put(start + 0x3000, &index);
    put(start + 0x4000, &offsets);
    put(start + 0x5000, &IMAGE.to_le_bytes());
}

/// Tables that map the two pages of the ehash at [`VMALLOC`].
fn put_page_tables(image: &mut Image, made: Made, root: u64, ehash: u64) {
    let mut table = root;
    for level in (1..=made.levels).rev() {
        image.write_at(table, &[0; 4096]);
        let index = VMALLOC >> (12 + 9 * (u32::from(level) - 1)) & 0x1ff;
        let next = table + 0x1000;
        let target = if level == 1 { ehash } else { next };
        image.write_at(table + index * 8, &(target | 1).to_le_bytes());
        if level == 1 {
            image.write_at(table + (index + 1) * 8, &((ehash + 0x1000) | 1).to_le_bytes());
        }
        table = next;
    }
}

fn put_note(image: &mut Image, place: u64, made: Made, release: &str, at: impl Fn(u64) -> u64) {
    let kallsyms = ["num_syms", "names", "token_table", "token_index", "offsets", "relative_base"];
    let mut text = format!("OSRELEASE={release}\nPAGESIZE=4096\nNUMBER(phys_base)={}\n", PHYS_BASE as i64);
    text += &format!("NUMBER(pgtable_l5_enabled)={}\n", u8::from(made.levels == 5));
    text += &format!("SYMBOL(_stext)={TEXT:x}\nSYMBOL(init_top_pgt)={:x}\n", at(50));
    for (page, name) in (40..).zip(kallsyms) {
        text += &format!("SYMBOL(kallsyms_{name})={:x}\n", at(page));
    }
    image.write_at(place, &[0; 4096]);
    image.write_at(place, text.as_bytes());
}

/// A machine for tests that need any, and where its symbol table, its type information and `init_net` lie.
pub(crate) fn plain_machine() -> (Kernel, Image, [u64; 3]) {
    let mut image = build(PLAIN);
    let kernel = discover(&mut image).unwrap();
    (kernel, image, [40, 64, 20].map(|page| phys(TEXT + page * 0x1000)))
}

/// With a hole, as every machine of more than a few gigabytes has one.
const EXTENTS: [Extent; 2] = [Extent { start: 0, len: 0x4000 }, Extent { start: 0x5000, len: RAM - 0x5000 }];

fn discover(image: &mut Image) -> Result<Kernel, DiscoverError> {
    Kernel::discover(image, KEY, &EXTENTS)
}

#[test]
fn every_kind_of_kernel_is_discovered_by_its_own_description() {
    for levels in [4, 5] {
        for bits in 0..8 {
            let flag = |bit: u8| bits >> bit & 1 == 1;
            let made =
                Made { levels, absolute_percpu: flag(0), netmem: flag(1), ehash_in_vmalloc: flag(2), without: None };
            let mut image = build(made);
            let kernel = discover(&mut image).unwrap();
            assert_eq!((kernel.release.as_str(), kernel.paging_levels()), ("6.9.0-made-here", levels));
            assert_eq!(kernel.space.page_offset_base, DIRECT);
            assert_eq!(kernel.space.page_struct_bytes, 64);
            assert_eq!(kernel.tcp.frag.netmem, made.netmem);
            assert_eq!(kernel.tcp_tables.len(), 1, "the table of init_net is the global one");
            let (sockets, damage) = tcp::walk(&kernel, &mut image, KEY, &TcpFilter::default()).unwrap();
            assert_eq!((sockets, damage), (vec![], vec![]));
        }
    }
}

#[test]
fn a_table_in_vmalloc_is_read_without_its_page_tables_once_walked() {
    let made = Made { ehash_in_vmalloc: true, ..PLAIN };
    let mut image = build(made);
    let kernel = discover(&mut image).unwrap();
    image.write_at(phys(TEXT + 50 * 0x1000), &[0; 4096]);
    let (_, damage) = tcp::walk(&kernel, &mut image, KEY, &TcpFilter::default()).unwrap();
    assert_eq!(damage, []);
}

#[test]
fn a_kernel_that_is_not_wanted_is_passed_over_and_told() {
    let mut image = build(PLAIN);
    let first = discover(&mut image).unwrap();
    let other = Kernel { release: "another".into(), ..first.clone() };
    assert_eq!(Kernel::discover_other_than(&mut image, KEY, &EXTENTS, std::slice::from_ref(&other)), Ok(first.clone()));
    let error = Kernel::discover_other_than(&mut image, KEY, &EXTENTS, &[other, first]).unwrap_err();
    assert!(matches!(error, DiscoverError::NoKernel { candidates: 1, .. }), "{error}");
}

#[test]
fn the_note_of_an_earlier_boot_is_passed_over() {
    let mut image = build(PLAIN);
    put_note(&mut image, 0x2000, PLAIN, "5.0.0-gone", |page| TEXT + page * 0x1000);
    assert_eq!(discover(&mut image).unwrap().release, "6.9.0-made-here");
}

#[test]
fn a_description_survives_being_stored() {
    let kernel = discover(&mut build(PLAIN)).unwrap();
    let stored = serde_json::to_string(&kernel).unwrap();
    assert_eq!(serde_json::from_str::<Kernel>(&stored).unwrap(), kernel);
}

#[test]
fn each_missing_part_is_named() {
    let check = |place: u64, len: usize, expected: &str| {
        let mut image = build(PLAIN);
        image.write_at(phys(place), &vec![0; len]);
        match discover(&mut image) {
            Err(DiscoverError::NoKernel { candidates: 1, last }) => assert!(last.contains(expected), "{last}"),
            other => panic!("{other:?}"),
        }
    };
    let at = |page: u64| TEXT + page * 0x1000;
    check(at(2), 64, "banner");
    check(at(41), 64, "kallsyms");
    check(at(44), 64, "kallsyms");
    check(at(64), 64, "BTF");
}

#[test]
fn a_kernel_that_does_not_describe_itself_is_told_what_it_lacks() {
    let check =
        |without: &'static str, expected: &[&str]| match discover(&mut build(Made { without: Some(without), ..PLAIN }))
        {
            Err(error @ DiscoverError::NoKernel { candidates: 1, .. }) => {
                let said = error.to_string();
                let named = without.rsplit('.').next().unwrap();
                let all = expected.iter().chain(&[named]).all(|word| said.contains(word));
                assert!(all, "{expected:?} are not all in: {said}");
            }
            other => panic!("{without}: {other:?}"),
        };
    let boot = "boot the target with a kernel that has it";
    // Without type information.
    check("__start_BTF", &["the target's kernel", "CONFIG_DEBUG_INFO_BTF", boot]);
    check("__stop_BTF", &["the target's kernel", "CONFIG_DEBUG_INFO_BTF", boot]);
    // With functions only in its symbol table.
    check("tcp_hashinfo", &["CONFIG_KALLSYMS_ALL"]);
    check("init_net", &["CONFIG_KALLSYMS_ALL"]);
    check("page_offset_base", &["CONFIG_KALLSYMS_ALL", "CONFIG_RANDOMIZE_MEMORY"]);
    // Newer than anything known: a member has another name.
    check("tcp_sock.snd_una", &["6.9.0-made-here", "not known here"]);
    check("inet_hashinfo.ehash_mask", &["6.9.0-made-here", "not known here"]);
}

/// The machine that the monitor's tests show to an operator (`monitor/tests/live/unknown.rs`). To write it anew:
/// `GOLDEN=accept cargo test -p introspect`.
#[test]
fn the_kept_machine_without_type_information_is_the_one_made_here() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/made-without-btf.image.xz");
    let mut made = Vec::new();
    build(Made { without: Some("__start_BTF"), ..PLAIN }).save(&mut made).unwrap();
    if std::env::var("GOLDEN").is_ok_and(|value| value == "accept") {
        let mut packed = xz2::write::XzEncoder::new(std::fs::File::create(path).unwrap(), 9);
        packed.write_all(&made).unwrap();
        packed.finish().unwrap();
    }
    let mut kept = Vec::new();
    xz2::read::XzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut kept).unwrap();
    // What it is made without has to be missing still; type information itself may grow with the walkers.
    let kept = Image::load(&kept[..]).unwrap();
    assert_eq!(discover(&mut kept.clone()), discover(&mut Image::load(&made[..]).unwrap()));
    assert!(discover(&mut kept.clone()).is_err());
}
