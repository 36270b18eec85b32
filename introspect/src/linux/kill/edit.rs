//! A change of memory: where, what is there, what is to be there. A repair of thirty thousand processes has sixty
//! thousand, so each is a few words, and is put into a sentence only when somebody reads it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use remote_memory::GuestPhys;
use serde::{Deserialize, Serialize};

/// A place to be changed. It is so now; whoever finds it otherwise changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edit {
    /// Guest-physical address.
    pub at: u64,
    /// What is there.
    pub was: Bytes,
    /// What is to be there; as long as `was`.
    pub now: Bytes,
    /// What the place is to the kernel.
    pub what: What,
}

/// Bytes of an edit; a word needs no memory of its own.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct Bytes(Held);

#[derive(Clone)]
enum Held {
    Word { bytes: [u8; 8], len: usize },
    Many(Vec<u8>),
}

impl From<&[u8]> for Bytes {
    fn from(from: &[u8]) -> Self {
        let mut bytes = [0; 8];
        match bytes.get_mut(..from.len()) {
            Some(place) => {
                place.copy_from_slice(from);
                Self(Held::Word { bytes, len: from.len() })
            }
            None => Self(Held::Many(from.to_vec())),
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.len() <= 8 { Self::from(bytes.as_slice()) } else { Self(Held::Many(bytes)) }
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        match bytes.0 {
            Held::Word { bytes, len } => bytes[..len].to_vec(),
            Held::Many(bytes) => bytes,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Word { bytes, len } => &bytes[..*len],
            Held::Many(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(to)
    }
}

/// What a place is to the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum What {
    /// A member of a task.
    OfTask(Member, u32),
    /// Something else, in words.
    Other(Cow<'static, str>),
}

/// A member of a task that is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// The thread's own pending signals.
    PendingSignals,
    /// `thread_info.flags`.
    ThreadFlags,
    /// `__state`.
    State,
    /// `jobctl`.
    JobControl,
    /// `usage`.
    References,
}

impl Member {
    const ALL: [Self; 5] = [Self::PendingSignals, Self::ThreadFlags, Self::State, Self::JobControl, Self::References];

    fn name(self) -> &'static str {
        match self {
            Self::PendingSignals => "pending signals",
            Self::ThreadFlags => "thread flags",
            Self::State => "state",
            Self::JobControl => "job control",
            Self::References => "references",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfTask(member, pid) => write!(to, "{} of {pid}", member.name()),
            Self::Other(what) => to.write_str(what),
        }
    }
}

impl From<String> for What {
    fn from(text: String) -> Self {
        let of_task = text.rsplit_once(" of ").and_then(|(name, pid)| {
            let member = Member::ALL.into_iter().find(|member| member.name() == name)?;
            Some(Self::OfTask(member, pid.parse().ok()?))
        });
        of_task.unwrap_or(Self::Other(text.into()))
    }
}

impl From<What> for String {
    fn from(what: What) -> Self {
        what.to_string()
    }
}

impl From<&'static str> for What {
    fn from(text: &'static str) -> Self {
        Self::Other(text.into())
    }
}

pub(super) fn set_word(at: GuestPhys, was: u64, now: u64, what: impl Into<What>) -> Edit {
    set(at, &was.to_le_bytes()[..], &now.to_le_bytes()[..], what)
}

pub(super) fn set(at: GuestPhys, was: impl Into<Bytes>, now: impl Into<Bytes>, what: impl Into<What>) -> Edit {
    Edit { at: at.raw(), was: was.into(), now: now.into(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journals have edits as they were written when each was a text and two lists.
    #[test]
    fn an_edit_is_written_down_in_words_and_comes_back() {
        let at = GuestPhys::new(0x1000);
        let of_task = Member::ALL.map(|member| set_word(at, 1, 2, What::OfTask(member, 4_000_000)));
        let others = [set(at, vec![1; 9], vec![2; 9], "timers"), set(at, vec![0], vec![1], "a list of 3 of them")];
        for edit in of_task.into_iter().chain(others) {
            let text = serde_json::to_string(&edit).unwrap();
            assert_eq!(serde_json::from_str::<Edit>(&text).unwrap(), edit, "{text}");
        }
        let old = r#"{"at":5,"was":[0,1,0,0,0,0,0,0],"now":[4,1,0,0,0,0,0,0],"what":"thread flags of 17"}"#;
        let edit: Edit = serde_json::from_str(old).unwrap();
        assert_eq!(edit, set_word(GuestPhys::new(5), 0x100, 0x104, What::OfTask(Member::ThreadFlags, 17)));
        assert_eq!(serde_json::to_string(&edit).unwrap(), old);
    }
}
