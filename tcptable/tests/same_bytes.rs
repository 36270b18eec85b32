//! `include/tcptable.h`, which the kernel's programs write by, against the reader: the same bytes. The header is
//! compiled for this machine; then the reader is given garbage.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use tcptable::layout::{self, HEAD_BYTES, RING_BYTES, SLOT_BYTES, flag};
use tcptable::{BadSlot, BadTable, Connection, Table, header};

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// Writes a header, then a slot with both records; every field has a value of its own.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <string.h>
#include "tcptable.h"
static struct tt_slot slot;
static void fill(struct tt_record *r, tt_u64 number) {
    r->number = number;
    r->snd_una = 0x1001; r->snd_nxt = 0x1002; r->write_seq = 0x1003; r->rcv_nxt = 0x2005; r->copied_seq = 0x2001;
    r->rcv_wup = 0x2002; r->rcv_wnd = 0x3001; r->snd_wl1 = 0x2003; r->snd_wnd = 0x3002; r->max_window = 0x3003;
    r->snd_cwnd = 11; r->mss_cache = 1448; r->tsoffset = 0x4001; r->ts_recent = 0x4002;
    r->tcp_mstamp_us = 0x500000001; r->tcp_wstamp_ns = 0x500000002; r->bytes_acked = 0x600000001;
    r->bytes_received = 0x600000002; r->taken = 0x2004; r->mss_clamp = 1460; r->snd_wscale = 7; r->rcv_wscale = 9;
    r->state = 8; r->shutdown = 1; r->flags = TT_SACK | TT_INIT_NET; r->bound_device = 3;
    r->check = tt_record_check(slot.generation, r);
}
int main(void) {
    struct tt_header h;
    memset(&h, 0, sizeof h);
    h.magic = TT_MAGIC; h.version = TT_VERSION; h.slot_bytes = TT_SLOT_BYTES; h.slots = 3; h.ring_bytes = TT_RING_BYTES;
    h.check = tt_header_check(&h);
    h.ports_count = 5;
    for (int i = 0; i < 5; i++) h.ports[i] = 8080 + i;
    fwrite(&h, sizeof h, 1, stdout);
    slot.state = TT_OPEN; slot.generation = 4;
    slot.local_address[1] = 0xffff0000ULL | (tt_u64)0x0100000a << 32;
    slot.peer_address[0] = 0x01000000000000fdULL; slot.peer_address[1] = 0x0200000000000000ULL;
    slot.local_port = 8080; slot.peer_port = 40000; slot.first_received = 0x2000; slot.first_sent = 0x1000;
    slot.identity_check = tt_identity_check(&slot);
    slot.accepted = 1; slot.overwritten = 2;
    fill(&slot.records[0], 6);
    fill(&slot.records[1], 7);
    fwrite(&slot, sizeof slot, 1, stdout);
    return 0;
}
"#;

fn written_by_c(test: &str) -> (Vec<u8>, Vec<u8>) {
    let folder = std::env::temp_dir().join(format!("tcptable-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, program): (PathBuf, PathBuf) = (folder.join("write.c"), folder.join("write"));
    std::fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("cc")
        .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-o"])
        .args([&program, &source])
        .status()
        .expect("a C compiler");
    assert!(built.success());
    let mut bytes = Command::new(&program).output().unwrap().stdout;
    std::fs::remove_dir_all(&folder).unwrap();
    let slot = bytes.split_off(tcptable::reader::HEADER_BYTES);
    assert_eq!(slot.len(), SLOT_BYTES as usize);
    (bytes, slot)
}

fn head(slot: &[u8]) -> &[u8] {
    &slot[RING_BYTES as usize..][..HEAD_BYTES as usize]
}

#[test]
fn the_reader_finds_what_the_kernels_programs_write() {
    let (header, slot) = written_by_c("reader");
    let table = Table::parse(&header, layout::region_bytes(2)).unwrap();
    assert_eq!((table.slots, table.connections()), (3, 1..3));
    let found = Connection::parse(1, head(&slot)).unwrap().unwrap();
    assert_eq!(found.local, "10.0.0.1:8080".parse().unwrap());
    assert_eq!(found.peer, "[fd00:0:0:1::2]:40000".parse().unwrap());
    assert_eq!((found.first_received, found.first_sent), (0x2000, 0x1000));
    assert!(found.accepted && found.record.has(flag::SACK) && found.record.has(flag::INIT_NET));
    let it = found.record;
    assert_eq!((it.number, it.snd_una, it.snd_nxt, it.write_seq), (7, 0x1001, 0x1002, 0x1003));
    assert_eq!((it.rcv_nxt, it.copied_seq, it.rcv_wup, it.rcv_wnd), (0x2005, 0x2001, 0x2002, 0x3001));
    assert_eq!((it.snd_wl1, it.snd_wnd, it.max_window), (0x2003, 0x3002, 0x3003));
    assert_eq!((it.snd_cwnd, it.mss_cache, it.tsoffset, it.ts_recent), (11, 1448, 0x4001, 0x4002));
    assert_eq!((it.tcp_mstamp_us, it.tcp_wstamp_ns), (0x5_0000_0001, 0x5_0000_0002));
    assert_eq!((it.bytes_acked, it.bytes_received), (0x6_0000_0001, 0x6_0000_0002));
    assert_eq!((it.taken, it.mss_clamp, it.snd_wscale, it.rcv_wscale), (0x2004, 1460, 7, 9));
    assert_eq!((it.state, it.shutdown, it.bound_device), (8, 1, 3));
    assert!(it.flags == flag::SACK | flag::INIT_NET && !it.is_inet6());
}

#[test]
fn the_agent_writes_the_header_that_the_kernels_programs_read() {
    let (by_c, _) = written_by_c("header");
    let region: Vec<AtomicU64> = (0..3 * SLOT_BYTES as usize / 8).map(|_| AtomicU64::new(0)).collect();
    header::write(&region, &[8080, 8081, 8082, 8083, 8084]).unwrap();
    let words = region.iter().take(by_c.len() / 8);
    let ours: Vec<u8> = words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    assert_eq!(ours, by_c);
    assert!(header::write(&region[1..], &[]).is_err() && header::write(&region, &[1; 17]).is_err());
}

#[test]
fn a_record_that_is_torn_gives_way_to_the_one_before_and_two_to_none() {
    let (_, slot) = written_by_c("torn");
    let mut bytes = head(&slot).to_vec();
    for (record, left) in [(1, Some(6)), (0, None)] {
        bytes[8 * (16 + 16 * record) + 40] ^= 1;
        match (Connection::parse(1, &bytes), left) {
            (Ok(Some(found)), Some(number)) => assert_eq!(found.record.number, number),
            (Err(BadSlot::NoRecord { .. }), None) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_record_of_the_slots_last_connection_is_none_of_this_one() {
    let (_, slot) = written_by_c("generation");
    let mut words: Vec<u64> =
        head(&slot).as_chunks().0.iter().map(|word: &[u8; 8]| u64::from_le_bytes(*word)).collect();
    words[1] += 1;
    words[8] = layout::checksum(layout::MAGIC, &words[1..8]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert!(matches!(Connection::parse(1, &bytes), Err(BadSlot::NoRecord { .. })));
    let mut bytes = head(&slot).to_vec();
    bytes[17] ^= 4;
    assert!(matches!(Connection::parse(1, &bytes), Err(BadSlot::Identity { .. })));
    bytes[..8].fill(0);
    assert_eq!(Connection::parse(1, &bytes), Ok(None));
}

#[test]
fn unread_bytes_are_where_stream_offsets_say_and_nowhere_once_overwritten() {
    let (_, slot) = written_by_c("ring");
    let found = Connection::parse(2, head(&slot)).unwrap().unwrap();
    assert_eq!((found.unread_bytes(2), found.unread_bytes(1)), (Some(3), None));
    let ring = 2 * u64::from(SLOT_BYTES);
    assert_eq!(found.unread(3), [ring + 1..ring + 4, ring..ring]);
    let mut later = found;
    later.record.copied_seq = 0x2000 + 3 * RING_BYTES - 2;
    later.record.taken = later.record.copied_seq.wrapping_add(10);
    let end = ring + u64::from(RING_BYTES);
    assert_eq!(later.unread(10), [end - 2..end, ring..ring + 8]);
    later.record.taken = later.record.copied_seq.wrapping_add(RING_BYTES + 1);
    assert_eq!(later.unread_bytes(u64::MAX), None);
}

#[test]
fn a_header_is_held_against_its_region() {
    let (header, _) = written_by_c("region");
    assert!(matches!(Table::parse(&header, layout::region_bytes(1)), Err(BadTable::Header { .. })));
    assert!(matches!(Table::parse(&header[1..], u64::MAX), Err(BadTable::Truncated { .. })));
    assert!(matches!(Table::parse(&[0; 4096], u64::MAX), Err(BadTable::Magic { found: 0 })));
    for at in 8..32 {
        let mut damaged = header.clone();
        damaged[at] ^= 0x10;
        assert!(Table::parse(&damaged, u64::MAX).is_err(), "{at}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 384), open: bool, slot: u32) {
        if open {
            bytes[..8].copy_from_slice(&layout::OPEN.to_le_bytes());
        }
        let _ = Connection::parse(slot, &bytes);
        let _ = Table::parse(&bytes, u64::MAX);
    }
}
