//! The maps that boxes lie in: kernel memory made once in a machine's life and found again by its pin.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapHandle, MapType, libbpf_sys};

use crate::pins::Pins;
use crate::shared::{Mapping, PAGE_BYTES};

/// A pinned array map that processes can map.
#[derive(Debug)]
pub struct BoxMap {
    name: &'static str,
    map: MapHandle,
    mapping: Mapping,
}

/// The name under which the backdoor knows the Sensor Box, and its pin.
pub const SENSOR_BOX: &str = "sb";

/// The name under which the backdoor knows the pool of Continuation Boxes, and its pin.
pub const CONTINUATION_BOXES: &str = "cb";

impl BoxMap {
    /// Opens the map pinned as `name`, or makes one of `entries` entries of `entry_bytes` and pins it.
    ///
    /// A map found keeps the size it was made with: boxes in use are worth more than a new size.
    ///
    /// # Errors
    /// If the kernel refuses, or the map found cannot be used.
    pub fn open(pins: &Pins, name: &'static str, entry_bytes: u32, entries: u32) -> Result<Self> {
        let path = pins.map(name);
        let map = if path.exists() {
            MapHandle::from_pinned_path(&path).with_context(|| format!("cannot open the map {}", path.display()))?
        } else {
            make(&path, name, entry_bytes, entries)?
        };
        let len = map.value_size() as usize * map.max_entries() as usize;
        let mapping =
            Mapping::new(map.as_fd(), len).with_context(|| format!("cannot map {} ({len} bytes)", path.display()))?;
        Ok(Self { name, map, mapping })
    }

    /// The region's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its memory.
    pub fn mapping(&self) -> Mapping {
        self.mapping
    }

    /// A descriptor of one's own, to hand on.
    ///
    /// # Errors
    /// If this process has too many.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.map.as_fd().try_clone_to_owned()
    }
}

impl AsFd for BoxMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Entries that make up `len` bytes in whole pages.
pub fn page_entries(len: u64) -> u32 {
    u32::try_from(len.div_ceil(PAGE_BYTES as u64)).unwrap_or(u32::MAX)
}

fn make(path: &Path, name: &str, entry_bytes: u32, entries: u32) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let mut map = MapHandle::create(MapType::Array, Some(name), 4, entry_bytes, entries, &options)
        .with_context(|| format!("the kernel makes no BPF array of {entries} times {entry_bytes} bytes"))?;
    map.pin(path).with_context(|| format!("cannot pin a map at {}", path.display()))?;
    Ok(map)
}
