//! Where a kernel describes itself: its symbol table and its type information, some ten megabytes that are read when
//! something is to be looked up and not kept.

use remote_memory::{KernelVirt, LinkError};
use serde::{Deserialize, Serialize};

use crate::btf::BTF_BYTES_MAX;
use crate::kallsyms::{NAMES_BYTES_MAX, SYMBOLS_MAX, TOKEN_INDEX_BYTES, TOKEN_TABLE_BYTES, Tables, Values};
use crate::memory::{Memory, word};
use crate::paging::Space;
use crate::vmcoreinfo::Note;

/// Addresses of it all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Sources {
    /// The symbol whose address the note states, by which the form of the others is told.
    pub stext: u64,
    /// First and last address of the type information; both 0 until the symbols were read.
    pub btf: (u64, u64),
    count: usize,
    names: (u64, usize),
    token_table: (u64, usize),
    token_index: u64,
    values: u64,
    /// Whether `values` are offsets, and what from.
    relative_base: Option<u64>,
}

/// The symbol table as read.
pub(crate) struct RawSymbols {
    count: usize,
    names: Vec<u8>,
    token_table: Vec<u8>,
    token_index: Vec<u8>,
    values: Vec<u8>,
    relative_base: Option<u64>,
}

impl RawSymbols {
    pub(crate) fn tables(&self) -> Tables<'_> {
        let values = match self.relative_base {
            Some(relative_base) => Values::Offsets { offsets: &self.values, relative_base },
            None => Values::Addresses(&self.values),
        };
        let (names, token_table, token_index) = (&self.names, &self.token_table, &self.token_index);
        Tables { count: self.count, names, token_table, token_index, values }
    }
}

/// What was read, or what is wrong with the kernel's description.
type Described<T> = Result<Result<T, String>, LinkError>;

fn read(memory: &mut Memory<'_>, space: &Space, at: u64, len: usize) -> Described<Vec<u8>> {
    let found = space.fetch(memory, KernelVirt::new(at), len)?;
    Ok(found.ok_or_else(|| format!("{len} bytes of kernel memory at {at:#x} cannot be read")))
}

/// The value, or out with what is wrong.
macro_rules! sound {
    ($described:expr) => {
        match $described {
            Ok(found) => found,
            Err(wrong) => return Ok(Err(wrong.into())),
        }
    };
}

impl Sources {
    /// Where the note says that the symbol table is.
    pub(crate) fn of(memory: &mut Memory<'_>, note: &Note, space: &Space) -> Described<Self> {
        let symbol = |name: &str| note.symbol(name).ok_or("no kallsyms addresses in the note: older than 6.0");
        let count = sound!(read(memory, space, sound!(symbol("kallsyms_num_syms")), 4)?);
        let count = word(&count, 0, 4) as usize;
        if count > SYMBOLS_MAX {
            return Ok(Err("more kallsyms than any kernel has".into()));
        }
        let (names, tokens) = (sound!(symbol("kallsyms_names")), sound!(symbol("kallsyms_token_table")));
        // The end of the names is not stated, but the tokens lie behind them in every version.
        let names_len = sound!(tokens.checked_sub(names).ok_or("kallsyms tokens lie before the names"));
        if names_len > NAMES_BYTES_MAX as u64 {
            return Ok(Err("kallsyms names are longer than any kernel's".into()));
        }
        let token_index = sound!(symbol("kallsyms_token_index"));
        let token_len = token_index.checked_sub(tokens).unwrap_or(u64::MAX).min(TOKEN_TABLE_BYTES as u64);
        let values = note.symbol("kallsyms_offsets").or_else(|| note.symbol("kallsyms_addresses"));
        let relative_base = match note.symbol("kallsyms_relative_base") {
            Some(at) => Some(word(&sound!(read(memory, space, at, 8)?), 0, 8)),
            None => None,
        };
        Ok(Ok(Self {
            stext: sound!(symbol("_stext")),
            btf: (0, 0),
            count,
            names: (names, names_len as usize),
            token_table: (tokens, token_len as usize),
            token_index,
            values: sound!(values.ok_or("no kallsyms values in the note")),
            relative_base,
        }))
    }

    /// Reads the symbol table.
    pub(crate) fn read_symbols(&self, memory: &mut Memory<'_>, space: &Space) -> Described<RawSymbols> {
        // A description that was stored and came back is not trusted more than memory is.
        let sane =
            self.count <= SYMBOLS_MAX && self.names.1 <= NAMES_BYTES_MAX && self.token_table.1 <= TOKEN_TABLE_BYTES;
        if !sane {
            return Ok(Err("a symbol table beyond its bounds".into()));
        }
        let each = if self.relative_base.is_some() { 4 } else { 8 };
        Ok(Ok(RawSymbols {
            count: self.count,
            names: sound!(read(memory, space, self.names.0, self.names.1)?),
            token_table: sound!(read(memory, space, self.token_table.0, self.token_table.1)?),
            token_index: sound!(read(memory, space, self.token_index, TOKEN_INDEX_BYTES)?),
            values: sound!(read(memory, space, self.values, self.count * each)?),
            relative_base: self.relative_base,
        }))
    }

    /// Reads the type information.
    pub(crate) fn read_btf(&self, memory: &mut Memory<'_>, space: &Space) -> Described<Vec<u8>> {
        let (start, stop) = self.btf;
        let len = sound!(stop.checked_sub(start).ok_or("BTF ends before it starts"));
        if len > BTF_BYTES_MAX {
            return Ok(Err("BTF is larger than any kernel's".into()));
        }
        read(memory, space, start, len as usize)
    }
}
