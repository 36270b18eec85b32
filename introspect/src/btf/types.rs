//! Types by name, and the way from a variable's type down to one number in it.

use btfparse::{Integer32Value, Integer64Value, TypeVariant};

use super::{Btf, DEPTH_MAX, MEMBERS_MAX};

/// Enumerators that are kept; a kernel has some twenty thousand.
const ENUMERATORS_MAX: usize = 200_000;

/// Values of one name that are kept: more than one is nobody's anyhow, and of a damaged blob all may have one name.
const VALUES_OF_A_NAME_MAX: usize = 16;

/// A member of a struct or union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    /// Its type.
    pub id: u32,
    /// Where it begins.
    pub bit: u64,
    /// Bits that it has, 0 if it is no bit field.
    pub width: u32,
}

/// A type that is one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    /// At most 8.
    pub bytes: usize,
    /// Whether it can be below zero.
    pub signed: bool,
}

impl Btf {
    /// Fills the indices by name; the first type of a name counts.
    pub(super) fn index(&mut self) {
        let mut left = ENUMERATORS_MAX;
        for (id, variant) in self.types.get() {
            let (index, name) = match variant {
                TypeVariant::Struct(found) => (&mut self.structs, found.name()),
                TypeVariant::Union(found) => (&mut self.others, found.name()),
                TypeVariant::Typedef(found) => (&mut self.others, found.name()),
                TypeVariant::Int(found) => (&mut self.others, found.name()),
                TypeVariant::Enum(found) => (&mut self.others, found.name()),
                TypeVariant::Var(found) => (&mut self.variables, found.name()),
                _ => continue,
            };
            if let Some(name) = name {
                index.entry(name.clone()).or_insert(*id);
            }
        }
        for variant in self.types.get().values() {
            let values: Vec<(&String, i64)> = match variant {
                TypeVariant::Enum(found) => {
                    found.named_value_list().iter().map(|it| (&it.name, narrow(it.value))).collect()
                }
                TypeVariant::Enum64(found) => {
                    found.named_value_list().iter().map(|it| (&it.name, wide(it.value))).collect()
                }
                _ => continue,
            };
            for (name, value) in values.into_iter().take(left) {
                left -= 1;
                let known = self.enumerators.entry(name.clone()).or_default();
                if known.len() < VALUES_OF_A_NAME_MAX && !known.contains(&value) {
                    known.push(value);
                }
            }
        }
    }

    /// What an enumerator stands for: several values if several enums have one of that name.
    pub(crate) fn enumerator(&self, name: &str) -> &[i64] {
        self.enumerators.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one value of an enumerator that counts something.
    pub(crate) fn count_of(&self, name: &str) -> Option<usize> {
        match self.enumerator(name) {
            [one] => usize::try_from(*one).ok(),
            _ => None,
        }
    }

    /// The type of a variable, if the kernel describes it.
    pub(crate) fn variable(&self, name: &str) -> Option<u32> {
        match self.types.get().get(self.variables.get(name)?)? {
            TypeVariant::Var(found) => Some(*found.tid()),
            _ => None,
        }
    }

    /// The type that `name` means in C: `struct rq`, `unsigned long`, `atomic_long_t`.
    pub(crate) fn named(&self, name: &str) -> Option<u32> {
        match name.strip_prefix("struct ") {
            Some(name) => self.structs.get(name.trim()).copied(),
            None => {
                let plain = name.strip_prefix("union ").or(name.strip_prefix("enum ")).unwrap_or(name).trim();
                // The compiler's spelling of the longer integers.
                let known = match plain {
                    "unsigned long" => "long unsigned int",
                    "long" => "long int",
                    "unsigned" => "unsigned int",
                    "unsigned long long" => "long long unsigned int",
                    "long long" => "long long int",
                    other => other,
                };
                self.others.get(known).or_else(|| self.structs.get(plain)).copied()
            }
        }
    }

    /// Names of types, for who misspells one.
    pub(crate) fn type_names(&self) -> impl Iterator<Item = &str> {
        self.structs.keys().chain(self.others.keys()).map(String::as_str)
    }

    /// Names of enumerators, for who misspells one.
    pub(crate) fn enumerator_names(&self) -> impl Iterator<Item = &str> {
        self.enumerators.keys().map(String::as_str)
    }

    /// The member `name` of type `id`, through anonymous ones.
    pub(crate) fn member_of(&self, id: u32, name: &str) -> Option<Member> {
        let (id, bit, width) = self.member(id, name, DEPTH_MAX, &mut { MEMBERS_MAX })?;
        Some(Member { id, bit, width })
    }

    /// The names of the members of type `id`, those of anonymous ones included; none if it has none.
    pub(crate) fn member_names(&self, id: u32) -> Vec<String> {
        let mut names = Vec::new();
        self.collect_members(id, DEPTH_MAX, &mut { MEMBERS_MAX }, &mut names);
        names
    }

    fn collect_members(&self, id: u32, depth: usize, budget: &mut usize, names: &mut Vec<String>) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        for member in self.members_of(id)? {
            *budget = budget.checked_sub(1)?;
            match member.name() {
                Some(name) => names.push(name),
                None => {
                    self.collect_members(member.tid(), depth, budget, names);
                }
            }
        }
        Some(())
    }

    /// Type and size of the elements of array `id`, and how many it has; a flexible one has 0.
    pub(crate) fn element_of(&self, id: u32) -> Option<(u32, usize, u32)> {
        match self.types.get().get(&self.plain(id)?)? {
            TypeVariant::Array(found) => {
                let element = *found.element_tid();
                Some((element, self.size_of(element, DEPTH_MAX)?, *found.element_count()))
            }
            _ => None,
        }
    }

    /// The size of type `id`, in bytes.
    pub(crate) fn bytes_of(&self, id: u32) -> Option<usize> {
        self.size_of(id, DEPTH_MAX)
    }

    /// What a pointer points to.
    pub(crate) fn pointee_of(&self, id: u32) -> Option<u32> {
        match self.types.get().get(&self.plain(id)?)? {
            TypeVariant::Ptr(found) => Some(*found.tid()),
            _ => None,
        }
    }

    /// The number that type `id` is: an integer, an enum, a pointer, or a struct around one, as `atomic_t` is.
    pub(crate) fn leaf_of(&self, id: u32) -> Option<Leaf> {
        let mut id = id;
        for _ in 0..DEPTH_MAX {
            let (bytes, signed) = match self.types.get().get(&self.plain(id)?)? {
                TypeVariant::Int(found) => (*found.size(), *found.signed()),
                TypeVariant::Enum(found) => (*found.size(), *found.signed()),
                TypeVariant::Enum64(found) => (*found.size(), *found.signed()),
                TypeVariant::Ptr(_) => (8, false),
                TypeVariant::Struct(found) => match found.member_list().as_slice() {
                    [one] => {
                        id = one.tid();
                        continue;
                    }
                    _ => return None,
                },
                _ => return None,
            };
            return (1..=8).contains(&bytes).then_some(Leaf { bytes, signed });
        }
        None
    }
}

fn narrow(value: Integer32Value) -> i64 {
    match value {
        Integer32Value::Signed(value) => value.into(),
        Integer32Value::Unsigned(value) => value.into(),
    }
}

fn wide(value: Integer64Value) -> i64 {
    match value {
        Integer64Value::Signed(value) => value,
        Integer64Value::Unsigned(value) => value.cast_signed(),
    }
}
