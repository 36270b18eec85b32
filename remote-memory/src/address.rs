//! Where a byte lives: newtypes with checked, named methods only, so that a physical address is never added to a key.

use std::fmt;

/// The page size of every target we read (x86-64 base pages), in bytes.
pub const PAGE_BYTES: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address; any value is representable, none is trusted.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// How far this lies past `start` in bytes, or `None` if it lies before it.
            pub const fn offset_from(self, start: Self) -> Option<u64> {
                self.0.checked_sub(start.0)
            }

            /// The start of the page that holds this address.
            pub const fn page_start(self) -> Self {
                Self(self.0 & !(PAGE_BYTES - 1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address of the target machine, in bytes.
    GuestPhys
}
address! {
    /// A kernel virtual address of the target machine, in bytes. A claim until a page walk has confirmed it.
    KernelVirt
}

/// The key that names a region to its server (an rkey in RDMA terms).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RemoteKey(u32);

impl RemoteKey {
    /// Wraps the 32 bits that travel in a packet.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The 32 bits that travel in a packet.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// One place in one registered region: key and address as the region was registered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RemoteAddr {
    /// Names the region.
    pub key: RemoteKey,
    /// Address inside the region, counted as its registration says: from [`Region::base`].
    pub addr: u64,
}

/// What a holder of a key may do with the region behind it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u8);

impl Rights {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Remote READ.
    pub const READ: Self = Self(1);
    /// Remote WRITE.
    pub const WRITE: Self = Self(2);
    /// Remote CMP_SWAP and FETCH_ADD.
    pub const ATOMIC: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether every right of `wanted` is in this set.
    pub const fn covers(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// The bits, for control messages.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Rights from a control message; bits without a meaning are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (right, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::ATOMIC, 'a')] {
            write!(f, "{}", if self.covers(right) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// A registered stretch of target memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// What it holds: `ram`, `sb`, `cb`, …
    pub name: String,
    /// The key to use in requests.
    pub key: RemoteKey,
    /// The address of its first byte (0 for `ram`, whose addresses are guest-physical).
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the key permits.
    pub rights: Rights,
}

impl Region {
    /// The remote address of byte `offset` of the region, or `None` if `len` bytes from there leave it.
    pub fn at(&self, offset: u64, len: u64) -> Option<RemoteAddr> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then_some(())?;
        Some(RemoteAddr { key: self.key, addr: self.base.checked_add(offset)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_do_not_wrap() {
        assert_eq!(GuestPhys::new(u64::MAX).checked_add(1), None);
        assert_eq!(GuestPhys::new(4).offset_from(GuestPhys::new(5)), None);
        assert_eq!(KernelVirt::new(0x1fff).page_start(), KernelVirt::new(0x1000));
    }

    #[test]
    fn a_region_hands_out_only_addresses_inside_it() {
        let region = Region { name: "sb".into(), key: RemoteKey::new(7), base: 0x1000, len: 64, rights: Rights::READ };
        assert_eq!(region.at(0, 64), Some(RemoteAddr { key: RemoteKey::new(7), addr: 0x1000 }));
        assert_eq!(region.at(1, 64), None);
        assert_eq!(region.at(u64::MAX, 2), None);
    }

    #[test]
    fn rights_cover_and_print() {
        let rights = Rights::READ.and(Rights::ATOMIC);
        assert!(rights.covers(Rights::READ) && !rights.covers(Rights::WRITE));
        assert_eq!(format!("{rights:?}"), "r-a");
        assert_eq!(Rights::from_bits(0xff), Rights::ALL);
    }
}
