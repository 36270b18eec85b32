//! A host program as the guest needs it: stripped, with the shared libraries it is linked to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

/// Where packages that were unpacked and not installed have their libraries.
const BELOW_UNPACKED: &str = "usr/lib/x86_64-linux-gnu";

/// Host paths of the shared libraries and the loader of `program`; none for a static one. Of a program of packages
/// that were unpacked below `unpacked`, libraries may lie there too.
///
/// # Errors
/// If `ldd` fails, or a library is missing on the host too.
pub fn needed_by(program: &Path, unpacked: Option<&Path>) -> Result<BTreeSet<PathBuf>> {
    let mut ldd = Command::new("ldd");
    if let Some(folder) = unpacked {
        ldd.env("LD_LIBRARY_PATH", folder.join(BELOW_UNPACKED));
    }
    let listing = ldd.arg(program).output().context("cannot run ldd")?;
    let (said, complained) = (String::from_utf8_lossy(&listing.stdout), String::from_utf8_lossy(&listing.stderr));
    if !listing.status.success() {
        let is_static = complained.contains("not a dynamic executable") || said.contains("statically linked");
        ensure!(is_static, "ldd {}: {}", program.display(), complained.trim());
        return Ok(BTreeSet::new());
    }
    parse_listing(&said).with_context(|| format!("libraries of {}", program.display()))
}

fn parse_listing(listing: &str) -> Result<BTreeSet<PathBuf>> {
    ensure!(!listing.contains("not found"), "a library is missing on this machine:\n{listing}");
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(listing.lines().filter_map(path).collect())
}

/// The bytes of `program` without its symbols: debug builds are ten times what the guest needs to hold in memory.
///
/// # Errors
/// If it cannot be read. A machine without `strip` gets the whole program.
pub fn stripped(program: &Path) -> Result<Vec<u8>> {
    let name = program.file_name().unwrap_or(OsStr::new("program")).to_string_lossy();
    let copy = env::temp_dir().join(format!("backdoors-strip-{:08x}-{name}", rand::random::<u32>()));
    let strip = Command::new("strip").args(["--strip-all", "-o"]).arg(&copy).arg(program).output();
    let bytes = match strip {
        Ok(output) if output.status.success() => fs::read(&copy),
        _ => fs::read(program),
    };
    // Absent when strip failed.
    let _ = fs::remove_file(&copy);
    bytes.with_context(|| format!("cannot read the program {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_yields_libraries_and_loader_but_not_the_vdso() {
        let listing =
            "\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld-linux.so.2 (0x7e)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux.so.2"].map(PathBuf::from);
        assert_eq!(parse_listing(listing).unwrap(), BTreeSet::from(expected));
    }

    #[test]
    fn a_library_that_the_host_lacks_is_an_error() {
        assert!(parse_listing("\tlibelf.so.1 => not found\n").is_err());
    }
}
