//! Member offsets from the kernel's own type information (BTF).
//!
//! A map from (kind, name) to type of our own lies over the parser's, because BTF names are not unique: over a hundred
//! structs of kernel 6.1 share their name with a later function or typedef, and the parser's look-up returns the last.
//! Walks over types are bounded: the blob comes from the target and may refer in circles.

mod types;

use std::cell::Cell;
use std::collections::HashMap;

use btfparse::{MemberList, Offset, Readable, TypeInformation, TypeVariant};
use serde::{Deserialize, Serialize};

use crate::memory::word;

/// The BTF of a kernel with all of its modules built in stays well below this, in bytes.
pub(crate) const BTF_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Typedefs, qualifiers and anonymous members passed on the way down to one member.
const DEPTH_MAX: usize = 32;

/// Members looked at for one look-up: depth alone would not stop structs that hold themselves many times over.
const MEMBERS_MAX: usize = 100_000;

/// No struct of the kernel is larger, in bytes; keeps what is allocated for copies of one small.
const STRUCT_BYTES_MAX: usize = 64 * 1024;

/// How many times a blob's length the parser may read of it. It reads a name wherever that is used: 1.1 times for
/// kernels.
const READINGS_MAX: usize = 4;

const MAGIC: u64 = 0xeb9f;
const HEADER_BYTES: u64 = 24;

/// Where a member lies in its struct.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Field {
    /// Byte offset of the first byte that holds it.
    pub offset: usize,
    /// Bytes that hold it, at most 8 for [`Field::of`].
    pub size: usize,
    /// For a bit field: its first bit in those bytes, and how many.
    pub bits: Option<(u8, u8)>,
}

impl Field {
    /// The member's value in a copy of its struct; 0 if the copy is too short.
    pub(crate) fn of(self, bytes: &[u8]) -> u64 {
        let raw = word(bytes, self.offset, self.size);
        match self.bits {
            Some((first, count)) if count < 64 => raw >> first & ((1 << count) - 1),
            _ => raw,
        }
    }

    /// The bytes of the member.
    pub(crate) fn bytes_of(self, bytes: &[u8]) -> &[u8] {
        self.offset.checked_add(self.size).and_then(|end| bytes.get(self.offset..end)).unwrap_or(&[])
    }

    /// The first byte after it.
    pub(crate) fn end(self) -> usize {
        self.offset + self.size
    }
}

/// A struct or member that the kernel does not have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TypeError {
    /// The blob is no BTF.
    #[error("the kernel's BTF does not parse: {0}")]
    Malformed(String),
    /// The kernel has no such struct.
    #[error("the kernel's BTF has no struct {0}")]
    NoStruct(String),
    /// The struct has no such member.
    #[error("the kernel's struct {in_struct} has no member {member}")]
    NoMember {
        /// The struct.
        in_struct: String,
        /// Its member, dotted.
        member: String,
    },
}

/// Declares a set of members that a walker needs, resolved all at once. The first component of a path is the struct;
/// of alternatives the first present one counts, newest first. `optional` members may be absent altogether.
macro_rules! layout {
    ($(#[$doc:meta])* $visibility:vis struct $name:ident {
        $($field:ident: $path:literal $(| $older:literal)*,)*
    } $(optional { $($maybe:ident: $maybe_path:literal,)* })?) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        $visibility struct $name {
            $(pub $field: $crate::btf::Field,)*
            $($(pub $maybe: Option<$crate::btf::Field>,)*)?
        }

        impl $name {
            /// The members by their newest paths.
            #[cfg(test)]
            #[allow(dead_code, reason = "not every layout is built by a test")]
            pub(crate) const PATHS: &[&str] = &[$($path,)* $($($maybe_path,)*)?];

            pub(crate) fn resolve(btf: &$crate::btf::Btf) -> Result<Self, $crate::btf::TypeError> {
                Ok(Self {
                    $($field: btf.field_at($path)$(.or_else(|_| btf.field_at($older)))*?,)*
                    $($($maybe: btf.field_at($maybe_path).ok(),)*)?
                })
            }

            /// Bytes from the start of the struct that hold every member named.
            #[allow(dead_code)]
            pub(crate) fn span(&self) -> usize {
                let mut span = 0;
                $(span = span.max(self.$field.end());)*
                $($(span = span.max(self.$maybe.map_or(0, $crate::btf::Field::end));)*)?
                span
            }
        }
    };
}
pub(crate) use layout;

/// A parsed blob.
pub(crate) struct Btf {
    types: TypeInformation,
    structs: HashMap<String, u32>,
    /// Typedefs, integers, enums: what a name may mean besides a struct.
    others: HashMap<String, u32>,
    /// Variables with a type; kernels describe the per-CPU ones.
    variables: HashMap<String, u32>,
    /// Enumerators of all enums, with as many values as the name has.
    enumerators: HashMap<String, Vec<i64>>,
}

/// Hands the parser bytes, so many at most: of a blob that something else was written over, each member may have a name
/// of megabytes, which the parser reads and keeps for each of them.
struct Blob<'a> {
    bytes: &'a [u8],
    left: Cell<usize>,
}

impl<'a> Blob<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, left: Cell::new(bytes.len().saturating_mul(READINGS_MAX)) }
    }
}

impl Readable for Blob<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let left = self.left.get().checked_sub(buffer.len()).ok_or_else(|| {
            btfparse::Error::new(btfparse::ErrorKind::InvalidString, "its names are longer than all of it")
        })?;
        self.left.set(left);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = start.checked_add(buffer.len()).and_then(|end| self.bytes.get(start..end));
        let found = found.ok_or_else(|| btfparse::Error::new(btfparse::ErrorKind::EOF, "the blob ends here"))?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

impl Btf {
    /// Parses a blob.
    ///
    /// # Errors
    /// [`TypeError::Malformed`]
    pub(crate) fn parse(blob: &[u8]) -> Result<Self, TypeError> {
        check_header(blob)?;
        let types = TypeInformation::new(&Blob::new(blob))
            .map_err(|error| TypeError::Malformed(error.message().to_string()))?;
        let mut btf = Self {
            structs: HashMap::new(),
            others: HashMap::new(),
            variables: HashMap::new(),
            enumerators: HashMap::new(),
            types,
        };
        btf.index();
        Ok(btf)
    }

    /// The size of a struct, in bytes.
    ///
    /// # Errors
    /// [`TypeError::NoStruct`]
    pub(crate) fn size(&self, name: &str) -> Result<usize, TypeError> {
        let id = self.structs.get(name);
        match id.and_then(|id| self.types.get().get(id)) {
            Some(TypeVariant::Struct(found)) => Ok(*found.size()),
            _ => Err(TypeError::NoStruct(name.to_string())),
        }
    }

    /// As [`Btf::field`], with the struct as the first component of the path.
    pub(crate) fn field_at(&self, path: &str) -> Result<Field, TypeError> {
        match path.split_once('.') {
            Some((in_struct, path)) => self.field(in_struct, path),
            None => Err(TypeError::NoStruct(path.to_string())),
        }
    }

    /// Where `path` (dotted; anonymous members need no mention) lies in a struct.
    ///
    /// # Errors
    /// [`TypeError::NoStruct`], [`TypeError::NoMember`]
    pub(crate) fn field(&self, in_struct: &str, path: &str) -> Result<Field, TypeError> {
        let id = *self.structs.get(in_struct).ok_or_else(|| TypeError::NoStruct(in_struct.to_string()))?;
        let missing = || TypeError::NoMember { in_struct: in_struct.to_string(), member: path.to_string() };
        let (mut id, mut bit, mut width) = (id, 0u64, 0);
        let mut budget = MEMBERS_MAX;
        for name in path.split('.') {
            let (member, offset, bits) = self.member(id, name, DEPTH_MAX, &mut budget).ok_or_else(missing)?;
            (id, bit, width) = (member, bit + offset, bits);
        }
        let offset = (bit / 8) as usize;
        let field = if width != 0 {
            let first = bit % 8;
            let size = (first + u64::from(width)).div_ceil(8) as usize;
            Field { offset, size, bits: Some((first as u8, width as u8)) }
        } else {
            Field { offset, size: self.size_of(id, DEPTH_MAX).ok_or_else(missing)?, bits: None }
        };
        let fits = field.offset.checked_add(field.size).is_some_and(|end| end <= STRUCT_BYTES_MAX);
        if fits { Ok(field) } else { Err(missing()) }
    }

    /// Type, bit offset and bit-field width of the member `name` of type `id`.
    fn member(&self, id: u32, name: &str, depth: usize, budget: &mut usize) -> Option<(u32, u64, u32)> {
        let depth = depth.checked_sub(1)?;
        for member in self.members_of(id)? {
            *budget = budget.checked_sub(1)?;
            let (bit, width) = match member.offset() {
                Offset::ByteOffset(byte) => (u64::from(byte) * 8, 0),
                Offset::BitOffsetAndSize(bit, width) => (u64::from(bit), width),
            };
            match member.name() {
                Some(found) if found == name => return Some((member.tid(), bit, width)),
                Some(_) => {}
                None => {
                    if let Some((id, inner, width)) = self.member(member.tid(), name, depth, budget) {
                        return Some((id, bit + inner, width));
                    }
                }
            }
        }
        None
    }

    /// What a struct or union holds; `None` for any other type.
    fn members_of(&self, id: u32) -> Option<&MemberList> {
        match self.types.get().get(&self.plain(id)?)? {
            TypeVariant::Struct(found) => Some(found.member_list()),
            TypeVariant::Union(found) => Some(found.member_list()),
            _ => None,
        }
    }

    /// The type behind typedefs and qualifiers.
    fn plain(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            id = match self.types.get().get(&id)? {
                TypeVariant::Typedef(inner) => *inner.tid(),
                TypeVariant::Const(inner) => *inner.tid(),
                TypeVariant::Volatile(inner) => *inner.tid(),
                TypeVariant::Restrict(inner) => *inner.tid(),
                TypeVariant::TypeTag(inner) => *inner.tid(),
                _ => return Some(id),
            };
        }
        None
    }

    fn size_of(&self, id: u32, depth: usize) -> Option<usize> {
        let depth = depth.checked_sub(1)?;
        match self.types.get().get(&self.plain(id)?)? {
            TypeVariant::Ptr(_) => Some(8),
            TypeVariant::Int(found) => Some(*found.size()),
            TypeVariant::Enum(found) => Some(*found.size()),
            TypeVariant::Enum64(found) => Some(*found.size()),
            TypeVariant::Struct(found) => Some(*found.size()),
            TypeVariant::Union(found) => Some(*found.size()),
            TypeVariant::Array(found) => {
                self.size_of(*found.element_tid(), depth)?.checked_mul(*found.element_count() as usize)
            }
            _ => None,
        }
    }
}

/// The parser adds header fields without care for overflow: let no absurd ones reach it.
fn check_header(blob: &[u8]) -> Result<(), TypeError> {
    let malformed = |what: &str| Err(TypeError::Malformed(what.to_string()));
    if word(blob, 0, 2) != MAGIC {
        return malformed("no BTF magic");
    }
    let [header, type_off, type_len, str_off, str_len] = [4, 8, 12, 16, 20].map(|at| word(blob, at, 4));
    let len = blob.len() as u64;
    let fits = |off: u64, size: u64| header + off + size <= len;
    if header < HEADER_BYTES || !fits(type_off, type_len) || !fits(str_off, str_len) || len > BTF_BYTES_MAX {
        return malformed("sections outside the blob");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assembled(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        let sizes = [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32];
        blob.extend(sizes.iter().chain(types).flat_map(|word| word.to_le_bytes()));
        blob.extend_from_slice(strings);
        blob
    }

    const fn kind(kind: u32, members: u32, flag: u32) -> u32 {
        kind << 24 | members | flag << 31
    }

    /// A struct `s` { int a; struct { int c; u3 f:3 at bit 69 }; } followed by a typedef of the same name.
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0c\0f\0";
        let types: Vec<u32> = [
            vec![1, kind(1, 0, 0), 4, 32],                           // 1: int
            vec![0, kind(4, 2, 1), 8, 9, 1, 0, 11, 1, 37 | 3 << 24], // 2: anonymous { c; f:3 at bit 37 }
            vec![5, kind(4, 2, 0), 12, 7, 1, 0, 0, 2, 32],           // 3: s
            vec![5, kind(8, 0, 0), 1],                               // 4: typedef int s
        ]
        .concat();
        assembled(&types, strings)
    }

    #[test]
    fn members_are_found_through_anonymous_structs_and_shadowed_names() {
        let btf = Btf::parse(&blob()).unwrap();
        assert_eq!(btf.size("s"), Ok(12));
        assert_eq!(btf.field("s", "c"), Ok(Field { offset: 4, size: 4, bits: None }));
        assert_eq!(btf.field("s", "f"), Ok(Field { offset: 8, size: 1, bits: Some((5, 3)) }));
        assert!(matches!(btf.field("s", "x"), Err(TypeError::NoMember { .. })));
        assert!(matches!(btf.field("int", "x"), Err(TypeError::NoStruct(_))));
    }

    /// What the next kernel has written over the names of a dead one need not end for megabytes.
    #[test]
    fn members_whose_names_do_not_end_cost_no_more_than_the_blob() {
        let (members, name) = (2000, "n".repeat(64 * 1024));
        let mut types = vec![1, kind(4, members, 0), 4];
        types.extend((0..members).flat_map(|_| [1, 0, 0]));
        let mut blob = assembled(&types, format!("\0{name}\0").as_bytes());
        let refused = Btf::parse(&blob).map(drop).unwrap_err().to_string();
        assert!(refused.contains("longer than all of it"), "{refused}");
        let short = blob.len() - 2;
        blob[short - name.len() + 2..short].fill(0);
        assert_eq!(Btf::parse(&blob).unwrap().size("n"), Ok(4));
    }

    #[test]
    fn bit_fields_are_cut_out() {
        let field = Field { offset: 1, size: 1, bits: Some((5, 3)) };
        assert_eq!(field.of(&[0, 0b1010_0000]), 5);
        assert_eq!(field.of(&[0]), 0);
    }

    proptest! {
        #[test]
        fn damaged_blobs_never_panic(at in 0usize..200, value: u8, cut in 0usize..200) {
            let mut blob = blob();
            let place = at % blob.len();
            blob[place] = value;
            blob.truncate(blob.len() - cut % blob.len());
            if let Ok(btf) = Btf::parse(&blob) {
                let _ = (btf.size("s"), btf.field("s", "c"), btf.field("s", "f"));
            }
        }
    }
}
