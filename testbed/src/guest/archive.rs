//! A cpio archive in the "newc" form that the kernel unpacks into its first root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// One thing in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file with permission bits and content.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// An empty directory, mostly a mount point.
    Directory,
}

/// Entries by path without the leading slash. Sorted, so that the same content gives the same bytes.
pub type Tree = BTreeMap<String, Entry>;

/// Writes `tree`, with the directories its paths imply.
///
/// # Errors
/// If `to` fails or a file is above 4 GiB.
pub fn write(tree: &Tree, mut to: impl Write) -> Result<()> {
    let mut inode = 1;
    let mut add = |path: &str, mode: u32, content: &[u8]| -> Result<()> {
        let len = u32::try_from(content.len()).with_context(|| format!("{path} is too long for a cpio archive"))?;
        let mut writer = Builder::new(path).ino(inode).mode(mode).nlink(1).write(&mut to, len);
        inode += 1;
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    };
    for directory in directories(tree) {
        add(&directory, DIRECTORY, &[])?;
    }
    for (path, entry) in tree {
        match entry {
            Entry::File(mode, content) => add(path, FILE | mode, content)?,
            Entry::Link(target) => add(path, LINK, target.as_bytes())?,
            Entry::Directory => {}
        }
    }
    trailer(to)?;
    Ok(())
}

/// Parents sort before their children, as the kernel needs them.
fn directories(tree: &Tree) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (path, entry) in tree {
        if *entry == Entry::Directory {
            all.insert(path.clone());
        }
        all.extend(path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_lists_parents_first_and_keeps_content() {
        let tree = Tree::from([
            ("bin/sh".to_owned(), Entry::Link("busybox".to_owned())),
            ("etc/a/name".to_owned(), Entry::File(0o644, b"target".to_vec())),
            ("proc".to_owned(), Entry::Directory),
        ]);
        let mut archive = Vec::new();
        write(&tree, &mut archive).unwrap();
        let (mut rest, mut seen) = (&archive[..], Vec::new());
        loop {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mut content) = (reader.entry().name().to_owned(), Vec::new());
            rest = reader.to_writer(&mut content).unwrap();
            seen.push((name, String::from_utf8(content).unwrap()));
        }
        let seen: Vec<(&str, &str)> = seen.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
        let directories = [("bin", ""), ("etc", ""), ("etc/a", ""), ("proc", "")];
        assert_eq!(seen, [&directories[..], &[("bin/sh", "busybox"), ("etc/a/name", "target")]].concat());
    }
}
