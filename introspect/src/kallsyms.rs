//! The kernel's own symbol table, as `scripts/kallsyms.c` compresses it into the image.
//!
//! ```text
//!   names        per symbol: length (1 byte, or 2 as ULEB128 from 6.1 on), then as many token numbers
//!   token_index  u16[256]: where token n begins in token_table, a text of zero-terminated pieces
//!   offsets      i32 per symbol, or addresses u64 per symbol
//! ```
//! The first character of an expanded name is its type. Where the tables lie comes from vmcoreinfo, since their order
//! in the image changed between versions. An offset is relative to `kallsyms_relative_base`; kernels with
//! CONFIG_KALLSYMS_ABSOLUTE_PERCPU store kernel addresses as `-1 - offset` and absolute values as they are. Which of
//! the two a kernel does is decided by which gives the address that vmcoreinfo states for a known symbol.

use std::collections::{BTreeMap, HashSet};

use crate::memory::word;

/// More symbols than any kernel has.
pub(crate) const SYMBOLS_MAX: usize = 2_000_000;
/// Compressed names of that many, in bytes.
pub(crate) const NAMES_BYTES_MAX: usize = 32 * 1024 * 1024;
/// `KSYM_NAME_LEN` is 512; type character included.
const NAME_BYTES_MAX: usize = 512;
/// The tokens of the table are few and short.
pub(crate) const TOKEN_TABLE_BYTES: usize = 8 * 1024;
pub(crate) const TOKEN_INDEX_BYTES: usize = 512;

/// The tables as read.
pub(crate) struct Tables<'a> {
    pub count: usize,
    pub names: &'a [u8],
    pub token_table: &'a [u8],
    pub token_index: &'a [u8],
    pub values: Values<'a>,
}

/// The addresses, in one of two forms.
pub(crate) enum Values<'a> {
    /// CONFIG_KALLSYMS_BASE_RELATIVE.
    Offsets { offsets: &'a [u8], relative_base: u64 },
    /// Absolute addresses.
    Addresses(&'a [u8]),
}

/// Looks `wanted` up in one pass. `anchor` is a symbol whose address is known.
///
/// # Errors
/// What contradicts what.
pub(crate) fn resolve(
    tables: &Tables<'_>,
    wanted: &HashSet<&str>,
    anchor: (&str, u64),
) -> Result<BTreeMap<String, u64>, &'static str> {
    let (mut found, mut numbered) = (BTreeMap::new(), BTreeMap::new());
    let mut anchor_index = None;
    each_name(tables, |index, _, name| {
        if name == anchor.0 {
            anchor_index = Some(index);
        }
        if wanted.contains(name) {
            found.entry(name.to_string()).or_insert(index);
        } else if let Some(name) = of_function(name).filter(|name| wanted.contains(name)) {
            numbered.entry(name.to_string()).or_insert(index);
        }
    })?;
    numbered.append(&mut found);
    let anchor_index = anchor_index.ok_or("kallsyms lacks the symbol that vmcoreinfo states")?;
    let decode = decoder(&tables.values, anchor_index, anchor.1)?;
    Ok(numbered.into_iter().map(|(name, index)| (name, decode(index))).collect())
}

/// All symbols of data that have one of the names `wanted`: a name may be that of several.
///
/// # Errors
/// What contradicts what.
pub(crate) fn data_symbols(
    tables: &Tables<'_>,
    wanted: &HashSet<&str>,
    anchor: (&str, u64),
) -> Result<BTreeMap<String, Vec<u64>>, &'static str> {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut anchor_index = None;
    each_name(tables, |index, kind, name| {
        if name == anchor.0 {
            anchor_index = Some(index);
        }
        if wanted.contains(name) && !is_function(kind) {
            found.entry(name.to_string()).or_default().push(index);
        }
    })?;
    let anchor_index = anchor_index.ok_or("kallsyms lacks the symbol that vmcoreinfo states")?;
    let decode = decoder(&tables.values, anchor_index, anchor.1)?;
    let addresses = |indices: Vec<usize>| {
        let mut addresses: Vec<u64> = indices.into_iter().map(&decode).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    };
    Ok(found.into_iter().map(|(name, indices)| (name, addresses(indices))).collect())
}

/// Whether a symbol of this kind is code, as nm(1) has kinds.
pub(crate) fn is_function(kind: u8) -> bool {
    matches!(kind, b't' | b'T')
}

/// Calls `with` for each symbol: its number, its kind, its name.
///
/// # Errors
/// Where the tables end too early.
pub(crate) fn each_name(tables: &Tables<'_>, mut with: impl FnMut(usize, u8, &str)) -> Result<(), &'static str> {
    let tokens = expand_tokens(tables)?;
    let mut at = 0;
    let mut name = Vec::with_capacity(NAME_BYTES_MAX);
    for index in 0..tables.count {
        let (len, codes_at) = entry_len(tables.names, at).ok_or("kallsyms names end early")?;
        let codes = tables.names.get(codes_at..codes_at + len).ok_or("a kallsyms name ends early")?;
        at = codes_at + len;
        name.clear();
        for code in codes {
            name.extend_from_slice(tokens[usize::from(*code)]);
            if name.len() > NAME_BYTES_MAX {
                return Err("a kallsyms name is too long");
            }
        }
        let Some((kind, name)) = name.split_first() else { continue };
        if let Ok(name) = std::str::from_utf8(name) {
            with(index, *kind, name);
        }
    }
    Ok(())
}

/// The name of a static variable inside a function: compilers append a number to tell it from others.
fn of_function(symbol: &str) -> Option<&str> {
    let (name, number) = symbol.rsplit_once('.')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

/// Length of the entry at `at` and where its codes begin.
fn entry_len(names: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*names.get(at)?);
    if low & 0x80 == 0 {
        return Some((low, at + 1));
    }
    let high = usize::from(*names.get(at + 1)?);
    Some((low & 0x7f | high << 7, at + 2))
}

fn expand_tokens<'a>(tables: &Tables<'a>) -> Result<Vec<&'a [u8]>, &'static str> {
    (0..256)
        .map(|token| {
            let start = word(tables.token_index, token * 2, 2) as usize;
            let text = tables.token_table.get(start..).ok_or("a kallsyms token lies outside its table")?;
            let end = text.iter().position(|byte| *byte == 0).ok_or("a kallsyms token has no end")?;
            Ok(&text[..end])
        })
        .collect()
}

/// How a symbol's number becomes its address.
fn decoder<'t>(
    values: &'t Values<'t>,
    anchor_index: usize,
    anchor: u64,
) -> Result<Box<dyn Fn(usize) -> u64 + 't>, &'static str> {
    let candidates: Vec<Box<dyn Fn(usize) -> u64>> = match *values {
        Values::Addresses(addresses) => vec![Box::new(|index| word(addresses, index * 8, 8))],
        Values::Offsets { offsets, relative_base } => vec![
            Box::new(move |index| match word(offsets, index * 4, 4) as u32 as i32 {
                offset if offset >= 0 => offset as u64,
                offset => relative_base.wrapping_sub(1).wrapping_sub(i64::from(offset) as u64),
            }),
            Box::new(move |index| relative_base.wrapping_add(word(offsets, index * 4, 4))),
        ],
    };
    candidates.into_iter().find(|decode| decode(anchor_index) == anchor).ok_or("kallsyms contradicts vmcoreinfo")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens: each of the 256 is its own byte as text, except 1 which stands for "ext".
    fn token_tables() -> (Vec<u8>, Vec<u8>) {
        let (mut table, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255u8 {
            index.extend_from_slice(&(table.len() as u16).to_le_bytes());
            match token {
                0 => {}
                1 => table.extend_from_slice(b"ext"),
                other => table.push(other),
            }
            table.push(0);
        }
        (table, index)
    }

    fn check(names: &[u8], count: usize, offsets: &[i32], expected: Result<u64, &'static str>) {
        let (token_table, token_index) = token_tables();
        let offsets: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let values = Values::Offsets { offsets: &offsets, relative_base: 0xffff_ffff_8100_0000 };
        let tables = Tables { count, names, token_table: &token_table, token_index: &token_index, values };
        let found = resolve(&tables, &HashSet::from(["jiffies"]), ("_stext", 0xffff_ffff_8100_0010));
        assert_eq!(found.map(|found| found["jiffies"]), expected);
    }

    const NAMES: &[u8] = b"\x05T_st\x01\x08Djiffies";

    #[test]
    fn both_ways_of_storing_offsets_are_told_apart() {
        check(NAMES, 2, &[0x10, 0x20], Ok(0xffff_ffff_8100_0020));
        check(NAMES, 2, &[-1 - 0x10, -1 - 0x20], Ok(0xffff_ffff_8100_0020));
        check(NAMES, 2, &[-1 - 0x10, 0x20], Ok(0x20));
        check(NAMES, 2, &[0x11, 0x20], Err("kallsyms contradicts vmcoreinfo"));
    }

    #[test]
    fn names_longer_than_127_codes_have_two_length_bytes() {
        let mut names = vec![0x80 | 0x48, 0x01];
        names.extend([b'x'; 0xc8]);
        names.extend_from_slice(NAMES);
        check(&names, 3, &[0, 0x10, 0x20], Ok(0xffff_ffff_8100_0020));
    }

    #[test]
    fn cut_tables_are_refused() {
        check(&NAMES[..NAMES.len() - 1], 2, &[0x10, 0x20], Err("a kallsyms name ends early"));
        check(NAMES, 3, &[0x10, 0x20], Err("kallsyms names end early"));
    }
}
