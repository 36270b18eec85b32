//! How many processes each user has, as the kernel itself counts them for RLIMIT_NPROC: threads, in its words, of each
//! user in each user namespace. Who bombs a machine with forks shows here without a look at any process.
//!
//! ```text
//!   ucounts_hashtable[1024] ─► ucounts ─node.next─► ucounts ─► …       node.pprev points back at what pointed here
//! ```
//! All chains take each step together: as many rounds as the longest chain has links, one or two on most machines.

use std::collections::HashSet;

use remote_memory::{GuestPhys, KernelVirt, LinkError, RemoteKey, RemoteRead};
use serde::{Deserialize, Serialize};

use super::walk::Walk;
use crate::btf::{Btf, Field, layout};
use crate::memory::word;
use crate::{Damage, Fault, Kernel};

/// `UCOUNTS_HASHTABLE_ENTRIES` of kernel/ucount.c, the same since 4.9; no type information has it.
const CHAINS: usize = 1024;

/// Links of one chain: ten thousand users make ten.
const CHAIN_MAX: usize = 1024;

/// Users in all, over all namespaces.
const USERS_MAX: usize = 256 * 1024;

/// What identifies a user and the count, in one stretch: some 200 bytes in the kernels of 2026.
const COUNT_BYTES_MAX: usize = 1024;

layout! {
    pub(crate) struct UcountsLayout {
        next: "ucounts.node.next",
        back: "ucounts.node.pprev",
        namespace: "ucounts.ns",
        uid: "ucounts.uid",
        // Until 5.19 the limits were counted behind everything else, in one array.
        counts: "ucounts.rlimit" | "ucounts.ucount",
    }
}

/// How one kernel counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Layout {
    members: UcountsLayout,
    /// The 64-bit count of processes among the others.
    processes: Field,
}

impl Layout {
    /// `None` for a kernel that counts in another way.
    pub(crate) fn resolve(btf: &Btf) -> Option<Self> {
        let members = UcountsLayout::resolve(btf).ok()?;
        let at = btf.count_of("UCOUNT_RLIMIT_NPROC")?.checked_mul(8)?;
        let fits = at.checked_add(8)? <= members.counts.size;
        let processes = Field { offset: members.counts.offset + at, size: 8, bits: None };
        fits.then_some(Self { members, processes })
    }
}

/// What one user has in one namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserCount {
    /// The `struct ucounts`, to which credentials point.
    pub address: KernelVirt,
    /// User id.
    pub uid: u32,
    /// Its `user_namespace`.
    pub namespace: KernelVirt,
    /// Whether that is the initial one.
    pub is_initial: bool,
    /// Processes and threads.
    pub processes: u64,
}

/// Where the count of one user is kept, to be read again and again without a walk. Valid as long as the user has
/// processes: [`CountPlace::count`] notices when somebody else has the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountPlace {
    /// As the walk found it.
    pub user: UserCount,
    /// Where to read.
    pub at: GuestPhys,
    /// How many bytes.
    pub len: usize,
    namespace: Field,
    uid: Field,
    processes: Field,
}

impl CountPlace {
    /// The place of what a walk of `kernel` has found; `None` if it is not in memory that can be told by arithmetic.
    pub fn of(kernel: &Kernel, user: &UserCount) -> Option<Self> {
        let Layout { members, processes } = kernel.ucounts.as_ref()?;
        let fields = [members.namespace, members.uid, *processes];
        let start = fields.iter().map(|field| field.offset).min()?;
        let len =
            fields.iter().map(|field| field.end()).max()?.checked_sub(start).filter(|len| *len <= COUNT_BYTES_MAX)?;
        let at = kernel.phys(user.address.checked_add(start as u64)?, len as u64)?;
        let [namespace, uid, processes] = fields.map(|field| Field { offset: field.offset - start, ..field });
        Some(Self { user: *user, at, len, namespace, uid, processes })
    }

    /// How many processes and threads the user has by the bytes that were read; `None` if they are not this user's.
    pub fn count(&self, read: &[u8]) -> Option<u64> {
        let is_his = self.namespace.of(read) == self.user.namespace.raw() && self.uid.of(read) as u32 == self.user.uid;
        is_his.then(|| self.processes.of(read).cast_signed().max(0).cast_unsigned())
    }
}

/// Whether `kernel` counts in a way that is known here.
pub fn is_known(kernel: &Kernel) -> bool {
    kernel.ucounts.is_some() && kernel.symbol("ucounts_hashtable").is_some()
}

/// Reads the counts of all users, those with most processes first.
///
/// # Errors
/// [`LinkError`] if the path to the memory failed.
pub fn walk(
    kernel: &Kernel,
    mem: &mut dyn RemoteRead,
    ram: RemoteKey,
) -> Result<(Vec<UserCount>, Vec<Damage>), LinkError> {
    let mut walk = Walk::new(kernel, mem, ram);
    let (Some(layout), Some(table)) = (&kernel.ucounts, kernel.symbol("ucounts_hashtable")) else {
        walk.report(0, "ucounts_hashtable", Fault::Unknown);
        return Ok((Vec::new(), walk.damage));
    };
    let mut users = walk.users(layout, table)?;
    users.sort_by_key(|user| (std::cmp::Reverse(user.processes), user.uid, user.namespace));
    Ok((users, walk.damage))
}

impl Walk<'_> {
    fn users(&mut self, layout: &Layout, table: KernelVirt) -> Result<Vec<UserCount>, LinkError> {
        let Some(heads) = self.kernel.space.fetch(&mut self.memory, table, CHAINS * 8)? else {
            self.report(table.raw(), "ucounts_hashtable", Fault::Unreadable);
            return Ok(Vec::new());
        };
        let place = |chain: usize| table.raw().wrapping_add(8 * chain as u64);
        // Each link with the place that pointed to it.
        let mut links: Vec<(u64, u64)> = (0..CHAINS)
            .map(|chain| (word(&heads, chain * 8, 8), place(chain)))
            .filter(|link| !is_end(link.0))
            .collect();
        let (mut users, mut seen) = (Vec::new(), HashSet::new());
        for _ in 0..CHAIN_MAX {
            if links.is_empty() {
                return Ok(users);
            }
            links = self.step(layout, &links, &mut seen, &mut users)?;
            if users.len() > USERS_MAX {
                break;
            }
        }
        if let Some((link, _)) = links.first() {
            self.report(*link, "ucounts chain", Fault::TooLong { limit: CHAIN_MAX as u64 });
        }
        Ok(users)
    }

    /// Reads what `links` point to, and returns the links behind.
    fn step(
        &mut self,
        layout: &Layout,
        links: &[(u64, u64)],
        seen: &mut HashSet<u64>,
        users: &mut Vec<UserCount>,
    ) -> Result<Vec<(u64, u64)>, LinkError> {
        let members = &layout.members;
        // `next` is the first word of the node that links point to.
        let base = |link: u64| link.wrapping_sub(members.next.offset as u64);
        let bases: Vec<u64> = links.iter().map(|(link, _)| base(*link)).collect();
        let fields = [members.next, members.back, members.namespace, members.uid, layout.processes];
        let found = self.gather(&bases, &fields, "ucounts", |image| fields.map(|field| field.of(image)))?;
        let initial = self.kernel.symbol("init_user_ns");
        let mut next = Vec::new();
        for (((link, from), base), found) in links.iter().zip(&bases).zip(found) {
            let Some([behind, back, namespace, uid, processes]) = found else { continue };
            if !seen.insert(*link) {
                self.report(*base, "ucounts chain", Fault::Cycle);
                continue;
            }
            if back != *from {
                self.report(*base, "ucounts.node.pprev", Fault::Mismatch { expected: *from, found: back });
                continue;
            }
            let namespace = KernelVirt::new(namespace);
            users.push(UserCount {
                address: KernelVirt::new(*base),
                uid: uid as u32,
                namespace,
                is_initial: Some(namespace) == initial,
                // Below zero for a moment, while a task moves from one user to another.
                processes: processes.cast_signed().max(0).cast_unsigned(),
            });
            if !is_end(behind) {
                next.push((behind, *link));
            }
        }
        Ok(next)
    }
}

/// Null, or the odd end marker of a list that is walked without locks.
fn is_end(link: u64) -> bool {
    link == 0 || link & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_user_s_only_while_the_memory_is() {
        let field = |offset, size| Field { offset, size, bits: None };
        let (address, namespace) = (KernelVirt::new(0xffff_8880_0000_1000), KernelVirt::new(0xffff_ffff_8200_0000));
        let user = UserCount { address, uid: 1000, namespace, is_initial: true, processes: 3 };
        let (at, len) = (GuestPhys::new(0x1010), 24);
        let place = CountPlace { user, at, len, namespace: field(0, 8), uid: field(8, 4), processes: field(16, 8) };
        let bytes = |namespace: u64, uid: u64, count: i64| {
            [namespace.to_le_bytes(), uid.to_le_bytes(), count.to_le_bytes()].concat()
        };
        assert_eq!(place.count(&bytes(namespace.raw(), 1000, 17)), Some(17));
        assert_eq!(place.count(&bytes(namespace.raw(), 1000, -1)), Some(0));
        assert_eq!(place.count(&bytes(namespace.raw(), 1001, 17)), None);
        assert_eq!(place.count(&bytes(0x6b6b, 1000, 17)), None);
        assert_eq!(place.count(&[]), None);
    }
}
