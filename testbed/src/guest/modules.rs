//! Which kernel modules a guest loads, in which order, and their bytes.
//!
//! Source of the order: `modules.dep`, as depmod writes it. The walk is bounded by the visited set, so a cyclic file
//! ends too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The modules of one kernel, by name.
#[derive(Debug)]
pub struct ModuleTree {
    dependencies: HashMap<String, Vec<String>>,
    path_of: HashMap<String, String>,
    builtin: HashSet<String>,
}

impl ModuleTree {
    /// Reads the indexes below `folder`, the content of `/lib/modules/RELEASE`.
    ///
    /// # Errors
    /// If `modules.dep` cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let dep = folder.join("modules.dep");
        let dep = fs::read_to_string(&dep).with_context(|| format!("cannot read {}", dep.display()))?;
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        Ok(Self::parse(&dep, &builtin))
    }

    fn parse(dep: &str, builtin: &str) -> Self {
        let mut tree = Self {
            dependencies: HashMap::new(),
            path_of: HashMap::new(),
            builtin: builtin.lines().map(name).collect(),
        };
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            tree.path_of.insert(name(path), path.to_owned());
            tree.dependencies.insert(name(path), needs.split_whitespace().map(name).collect());
        }
        tree
    }

    /// Paths of `wanted` and all they need, each after what it needs. Built-in modules need no file.
    ///
    /// # Errors
    /// If the kernel has no such module.
    pub fn load_order(&self, wanted: &[String]) -> Result<Vec<String>> {
        let (mut order, mut visited) = (Vec::new(), HashSet::new());
        for module in wanted {
            self.visit(&name(module), &mut visited, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, module: &str, visited: &mut HashSet<String>, order: &mut Vec<String>) -> Result<()> {
        if !visited.insert(module.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.path_of.get(module) else {
            if self.builtin.contains(module) {
                return Ok(());
            }
            bail!("this kernel has no module {module}");
        };
        for needed in self.dependencies.get(module).into_iter().flatten() {
            self.visit(needed, visited, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// The bytes of the module at `path`, unpacked.
///
/// # Errors
/// If it cannot be read or unpacked.
pub fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the module {}", path.display()))?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut module = Vec::new();
    xz2::read::XzDecoder::new(&bytes[..])
        .read_to_end(&mut module)
        .with_context(|| format!("cannot unpack the module {}", path.display()))?;
    Ok(module)
}

/// A module's name as the kernel knows it: without folder, suffix and dashes.
pub fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/virtio_pci.ko: kernel/a/virtio-ring.ko kernel/a/virtio.ko\n\
                       kernel/a/virtio-ring.ko.xz:\nkernel/a/virtio.ko: kernel/a/virtio-ring.ko\n\
                       kernel/b/loop_one.ko: kernel/b/loop_two.ko\nkernel/b/loop_two.ko: kernel/b/loop_one.ko\n";

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        ModuleTree::parse(DEP, "kernel/c/built-in.ko\n").load_order(&wanted)
    }

    #[test]
    fn a_module_is_loaded_once_and_after_what_it_needs() {
        let expected = ["kernel/a/virtio-ring.ko.xz", "kernel/a/virtio.ko", "kernel/a/virtio_pci.ko"];
        assert_eq!(order(&["virtio-pci", "virtio"]).unwrap(), expected);
    }

    #[test]
    fn built_in_modules_need_no_file_and_unknown_ones_are_errors() {
        assert_eq!(order(&["built_in"]).unwrap(), Vec::<String>::new());
        assert!(order(&["absent"]).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn a_cycle_in_the_index_ends() {
        assert_eq!(order(&["loop_one"]).unwrap().len(), 2);
    }
}
