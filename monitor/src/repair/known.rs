//! A target whose regions are known from when it was met.
//!
//! To ask for them takes its agent, an ordinary process: on a target that drowns in processes it is waited for seconds
//! and longer, and the order that would end them with it. With what is known already a look and an order need nothing
//! of the target but its adapter and its kernel. A key that has died since is refused by the adapter; the ward forgets
//! what it knew then.

use control::backdoor::{LockToken, RegionEntry};
use link::LinkFailure;
use remote_memory::RemoteWrite;

use super::Table;

/// A table whose regions need not be asked for, as far as they are known.
pub(super) struct Known<'a> {
    table: &'a mut dyn Table,
    regions: &'a [RegionEntry],
}

impl<'a> Known<'a> {
    /// `table`, of which `regions` are known.
    pub fn new(table: &'a mut dyn Table, regions: &'a [RegionEntry]) -> Self {
        Self { table, regions }
    }
}

impl Table for Known<'_> {
    fn lock(&mut self, reason: &str, lease_ms: u32) -> Result<LockToken, LinkFailure> {
        self.table.lock(reason, lease_ms)
    }

    fn unlock(&mut self, token: &LockToken) -> Result<(), LinkFailure> {
        self.table.unlock(token)
    }

    fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
        self.table.ram()
    }

    fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
        match self.regions.iter().find(|region| region.name == name) {
            Some(region) => Ok(region.clone()),
            None => self.table.region(name),
        }
    }

    fn resets(&mut self) -> Result<u64, LinkFailure> {
        self.table.resets()
    }

    fn memory(&mut self) -> &mut dyn RemoteWrite {
        self.table.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that drowns with its machine: it is asked, and does not answer.
    #[derive(Default)]
    struct Drowning {
        asked: Vec<String>,
    }

    impl Table for Drowning {
        fn lock(&mut self, _: &str, _: u32) -> Result<LockToken, LinkFailure> {
            unreachable!("orders stop nothing")
        }

        fn unlock(&mut self, _: &LockToken) -> Result<(), LinkFailure> {
            unreachable!("orders stop nothing")
        }

        fn ram(&mut self) -> Result<RegionEntry, LinkFailure> {
            unreachable!("orders need no raw memory")
        }

        fn region(&mut self, name: &str) -> Result<RegionEntry, LinkFailure> {
            self.asked.push(name.to_owned());
            Err(LinkFailure::NoRegion(name.to_owned()))
        }

        fn memory(&mut self) -> &mut dyn RemoteWrite {
            unreachable!("nothing is read here")
        }
    }

    #[test]
    fn what_is_known_is_not_asked_for_of_an_agent_that_may_have_no_processor() {
        let orders = RegionEntry {
            name: "kill_orders".to_owned(),
            key: 7,
            base: 0x1000,
            len: 4096,
            rights: 3,
            extents: Vec::new(),
        };
        let mut agent = Drowning::default();
        let regions = [orders];
        let mut known = Known::new(&mut agent, &regions);
        assert_eq!(known.region("kill_orders").map(|region| region.key).ok(), Some(7));
        assert!(matches!(known.region("processes"), Err(LinkFailure::NoRegion(_))));
        assert_eq!(agent.asked, ["processes"]);
    }
}
