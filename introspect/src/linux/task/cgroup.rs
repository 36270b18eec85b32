//! The cgroup of a task in the unified hierarchy, as a path.
//!
//! ```text
//!   css_set.dfl_cgrp ─► cgroup.kn ─► kernfs_node ─parent─► … ─► root
//!                          ▲────────────── priv       name      no parent
//! ```
//! Many tasks share a `css_set`; every node is read once, all of one level together.

use std::collections::HashMap;
use std::sync::Arc;

use remote_memory::LinkError;

use super::detail::Layouts;
use crate::Fault;
use crate::btf::layout;
use crate::linux::walk::{Walk, distinct};

/// Levels of cgroups that are followed; systemd makes five or six.
const DEPTH_MAX: usize = 32;

/// `NAME_MAX` and its end.
const NAME_BYTES: usize = 256;

layout! {
    pub(crate) struct CgroupLayout {
        unified: "css_set.dfl_cgrp",
        node: "cgroup.kn",
        parent: "kernfs_node.__parent" | "kernfs_node.parent",
        name: "kernfs_node.name",
        owner: "kernfs_node.priv",
    }
}

/// A directory of the hierarchy.
struct Node {
    parent: u64,
    name: u64,
}

impl Walk<'_> {
    /// The path of each of `css_sets`.
    pub(super) fn cgroups(&mut self, css_sets: &[u64], layouts: &Layouts) -> Result<Vec<Option<Arc<str>>>, LinkError> {
        let Some(layout) = &layouts.cgroup else {
            self.report(0, "css_set", Fault::Unknown);
            return Ok(vec![None; css_sets.len()]);
        };
        let sets = distinct(css_sets.iter().copied());
        let cgroups = self.pointers(&sets, layout.unified, "css_set.dfl_cgrp")?;
        let groups = distinct(cgroups.values().copied());
        let nodes = self.pointers(&groups, layout.node, "cgroup.kn")?;
        let tree = self.tree(&nodes, layout)?;
        let names = self.names(&tree)?;
        let paths: HashMap<u64, Option<Arc<str>>> =
            nodes.iter().map(|(cgroup, node)| (*cgroup, path(*node, &tree, &names))).collect();
        let of = |css_set: &u64| paths.get(cgroups.get(css_set)?).cloned().flatten();
        Ok(css_sets.iter().map(of).collect())
    }

    /// The pointer `field` of each struct, by the struct's address.
    fn pointers(
        &mut self,
        bases: &[u64],
        field: crate::btf::Field,
        part: &'static str,
    ) -> Result<HashMap<u64, u64>, LinkError> {
        let found = self.gather(bases, &[field], part, |image| field.of(image))?;
        Ok(bases.iter().zip(found).filter_map(|(base, pointer)| Some((*base, pointer?))).collect())
    }

    /// The nodes of `cgroups` and all above them. The nodes begun with must name their cgroup as theirs.
    fn tree(&mut self, cgroups: &HashMap<u64, u64>, layout: &CgroupLayout) -> Result<HashMap<u64, Node>, LinkError> {
        let owners: HashMap<u64, u64> = cgroups.iter().map(|(cgroup, node)| (*node, *cgroup)).collect();
        let mut tree: HashMap<u64, Node> = HashMap::new();
        let mut level = distinct(owners.keys().copied());
        for _ in 0..DEPTH_MAX {
            if level.is_empty() {
                return Ok(tree);
            }
            let fields = [layout.parent, layout.name, layout.owner];
            let of = |image: &[u8]| fields.map(|field| field.of(image));
            let found = self.gather(&level, &fields, "kernfs_node", of)?;
            let mut above = Vec::new();
            for (node, found) in level.iter().zip(found) {
                let Some([parent, name, found]) = found else { continue };
                if let Some(expected) = owners.get(node).copied().filter(|owner| *owner != found) {
                    self.report(*node, "kernfs_node.priv", Fault::Mismatch { expected, found });
                    continue;
                }
                above.push(parent);
                tree.insert(*node, Node { parent, name });
            }
            level = distinct(above.into_iter().filter(|parent| !tree.contains_key(parent)));
        }
        if let Some(node) = level.first() {
            self.report(*node, "depth of cgroups", Fault::TooLong { limit: DEPTH_MAX as u64 });
        }
        Ok(tree)
    }

    /// The names of the nodes, by the address of their text.
    fn names(&mut self, tree: &HashMap<u64, Node>) -> Result<HashMap<u64, String>, LinkError> {
        let texts = distinct(tree.values().map(|node| node.name));
        let records = self.stretches(&texts, NAME_BYTES, "kernfs_node.name")?;
        let mut names = HashMap::new();
        for (text, record) in texts.iter().zip(records.iter()) {
            let Some(bytes) = record else { continue };
            match bytes.iter().position(|byte| *byte == 0) {
                Some(end) => drop(names.insert(*text, String::from_utf8_lossy(&bytes[..end]).into_owned())),
                None => self.report(*text, "kernfs_node.name", Fault::TooLong { limit: NAME_BYTES as u64 }),
            }
        }
        Ok(names)
    }
}

/// From the root to `node`; `None` if a part of the way is missing. A node that is its own ancestor ends after
/// [`DEPTH_MAX`] steps.
fn path(node: u64, tree: &HashMap<u64, Node>, names: &HashMap<u64, String>) -> Option<Arc<str>> {
    let (mut at, mut parts) = (tree.get(&node)?, Vec::new());
    while at.parent != 0 {
        parts.push(names.get(&at.name)?.as_str());
        at = tree.get(&at.parent)?;
        if parts.len() > DEPTH_MAX {
            return None;
        }
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(node: u64, expected: Option<&str>) {
        let tree = [(1, 0, 11), (2, 1, 12), (3, 2, 13), (4, 9, 14), (5, 6, 15), (6, 5, 16), (7, 1, 99)];
        let tree = tree.map(|(node, parent, name)| (node, Node { parent, name })).into();
        let names = [(11, ""), (12, "system.slice"), (13, "a b")].map(|(at, name)| (at, name.to_owned())).into();
        assert_eq!(path(node, &tree, &names).as_deref(), expected);
    }

    #[test]
    fn a_path_begins_at_the_root_or_is_none() {
        check(1, Some("/"));
        check(3, Some("/system.slice/a b"));
        check(4, None); // no such parent
        check(5, None); // its own ancestor
        check(7, None); // no name
        check(8, None);
    }
}
