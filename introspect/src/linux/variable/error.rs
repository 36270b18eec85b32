//! Why a variable is none of this kernel's: which part of its text, and what comes near.

use std::fmt;

/// What comes near a name that is not there, for who misspelt it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Near(pub Vec<String>);

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => Ok(()),
            false => write!(f, "; near it: {}", self.0.join(", ")),
        }
    }
}

/// A part of a variable that leads nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VariableError {
    /// The text cannot be read.
    #[error("{text:?}: expected {expected}, found `{rest}`")]
    Syntax {
        /// The whole text.
        text: String,
        /// Where reading ended.
        rest: String,
        /// What should be there.
        expected: &'static str,
    },
    /// More than are resolved at a time.
    #[error("more than {limit} variables at a time")]
    TooMany {
        /// As many are.
        limit: usize,
    },
    /// The kernel's description of itself cannot be read now.
    #[error("the kernel does not describe itself: {why}")]
    NoDescription {
        /// What is wrong with it.
        why: String,
    },
    /// The kernel has no variable of that name.
    #[error("the kernel has no variable {symbol}{near}")]
    UnknownSymbol {
        /// The name.
        symbol: String,
        /// Names it has.
        near: Near,
    },
    /// The kernel has several, in different files.
    #[error("the kernel has {count} variables {symbol}: which is meant cannot be said")]
    SeveralSymbols {
        /// The name.
        symbol: String,
        /// How many.
        count: usize,
    },
    /// Neither the kernel nor this crate knows the variable's type.
    #[error("the type of {symbol} is not known: write it before the name, as in `(unsigned long){symbol}`")]
    NoType {
        /// The variable.
        symbol: String,
    },
    /// The kernel has no such type.
    #[error("the kernel has no type {name}{near}")]
    UnknownType {
        /// The type.
        name: String,
        /// Types it has.
        near: Near,
    },
    /// What comes before has no such member.
    #[error("{of} has no member {member}{near}")]
    NoMember {
        /// The text up to it.
        of: String,
        /// The member.
        member: String,
        /// Members that it has.
        near: Near,
    },
    /// `.` behind a pointer, or `->` behind something else.
    #[error("{of} is {is}: write `{mark}{member}`")]
    WrongMark {
        /// The text up to it.
        of: String,
        /// What it is.
        is: &'static str,
        /// What to write.
        mark: &'static str,
        /// The member.
        member: String,
    },
    /// An index behind something that is no array.
    #[error("{of} is no array")]
    NoArray {
        /// The text up to it.
        of: String,
    },
    /// An index beyond the end.
    #[error("{of} has {count} elements, none is {index}")]
    BeyondArray {
        /// The text up to it.
        of: String,
        /// How many it has.
        count: u64,
        /// The index.
        index: u64,
    },
    /// The kernel has no such enumerator.
    #[error("the kernel has no enumerator {name}{near}")]
    UnknownEnumerator {
        /// The name.
        name: String,
        /// Enumerators that it has.
        near: Near,
    },
    /// Several enums have it, with different values.
    #[error("the enumerator {name} has {count} values in this kernel: write the number")]
    SeveralValues {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// The text ends at something larger than a number.
    #[error("{of} is no number of at most 8 bytes{near}")]
    NoNumber {
        /// The text.
        of: String,
        /// Members that it has.
        near: Near,
    },
    /// A pointer on the way is null or leads out of memory, or the number itself does.
    #[error("{of} does not lead to memory that can be read")]
    Nowhere {
        /// The text up to it.
        of: String,
    },
}
