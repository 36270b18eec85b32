//! What goes into a guest image, and the image file made of it.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::archive::{self, Entry, Tree};
use super::modules::{self, ModuleTree};
use super::{Kernel, libraries};

/// Part of an image's name; raised when the same input has to give another image.
const BUILDER_VERSION: u32 = 1;

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");

/// Images that are kept beside those in use: a few for each kernel and set of programs that is worked with.
const KEPT: usize = 12;

/// An image that was asked for within this time may be about to be booted: slow machines, and runs that wait for their
/// turn.
const IN_USE: Duration = Duration::from_secs(3600);

/// Drivers every guest has: the network, the serial ports and shared folders. A disk has only one that swaps.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_net", "virtio_console", "9pnet_virtio", "9p"];

/// Where the kernel or init mounts something.
const MOUNT_POINTS: [&str; 7] = ["proc", "sys", "dev", "run", "tmp", "mnt", "var/log"];

/// A process that init starts and starts again whenever it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// A word; names the log file `/var/log/NAME` in the guest.
    pub name: String,
    /// Shell words; the first is a path in the guest.
    pub command: String,
    /// The next service starts, and the guest is ready, only when this path exists in the guest.
    pub ready_path: Option<String>,
}

/// A program or library of the host, which comes with the libraries that it is linked to.
#[derive(Clone, Debug)]
struct Binary {
    in_guest: String,
    on_host: PathBuf,
    /// The folder that its package was unpacked below, if it is not installed.
    unpacked: Option<PathBuf>,
}

/// The content of an image. Programs land in `/bin`, kernel modules of the testbed in `/lib/extra`.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    kernel: Kernel,
    modules: Vec<String>,
    programs: Vec<Binary>,
    files: Vec<(String, u32, PathBuf)>,
    texts: Vec<(String, String)>,
    services: Vec<Service>,
}

impl ImageSpec {
    /// An image with a shell, init and the drivers of a virtual machine.
    pub fn new(kernel: Kernel) -> Self {
        let modules = MODULES.map(str::to_owned).to_vec();
        Self { kernel, modules, programs: vec![], files: vec![], texts: vec![], services: vec![] }
    }

    /// The kernel it is for.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Loads one more of the kernel's own modules at boot, and what it needs.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Adds a module built outside the kernel as `/lib/extra/FILE`; it is not loaded at boot.
    pub fn extra_module(self, file: &Path) -> Self {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.file(&format!("/lib/extra/{name}"), 0o644, file)
    }

    /// Adds a program of the host as `/bin/NAME`, with its shared libraries.
    pub fn program(mut self, name: &str, on_host: &Path) -> Self {
        self.programs.push(Binary { in_guest: format!("bin/{name}"), on_host: on_host.to_owned(), unpacked: None });
        self
    }

    /// Adds the program or library at `path` of a package unpacked below `folder`, with its shared libraries, some of
    /// which may lie there too. A program lands in `/bin`, a library where its package has it.
    pub(super) fn unpacked(mut self, folder: &Path, path: &str) -> Self {
        let in_guest = path.strip_prefix("usr/bin/").map_or(path.to_owned(), |name| format!("bin/{name}"));
        self.programs.push(Binary { in_guest, on_host: folder.join(path), unpacked: Some(folder.to_owned()) });
        self
    }

    /// Adds a file of the host as it is.
    pub fn file(mut self, in_guest: &str, mode: u32, on_host: &Path) -> Self {
        self.files.push((in_guest.to_owned(), mode, on_host.to_owned()));
        self
    }

    /// Adds a file with this content.
    pub fn text(mut self, in_guest: &str, content: &str) -> Self {
        self.texts.push((in_guest.to_owned(), content.to_owned()));
        self
    }

    /// Starts a service at boot, after those added before.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Makes the image below `folder`, or finds it there, and returns its path.
    ///
    /// # Errors
    /// If something that goes into it is missing, or `folder` cannot be written.
    pub fn build(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("guest-{}-{}.cpio", self.kernel.release, &self.key()?[..16]));
        if let Ok(file) = fs::File::open(&path) {
            // The time of its last use decides what is pruned; another user's file keeps its own.
            let _ = file.set_modified(SystemTime::now());
            return Ok(path);
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        // Written aside and renamed: another testbed never sees half an image. A random name: in a sandbox every
        // testbed may be process 1.
        let aside = path.with_extension(format!("{:08x}.part", rand::random::<u32>()));
        let mut file = BufWriter::new(fs::File::create(&aside).with_context(|| format!("{}", aside.display()))?);
        archive::write(&self.tree()?, &mut file)?;
        file.flush()?;
        fs::rename(&aside, &path).with_context(|| format!("cannot name the image {}", path.display()))?;
        prune(folder, KEPT);
        Ok(path)
    }

    /// Hash of everything that goes in, before unpacking and stripping.
    fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |name: &str, content: &[u8]| {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update((content.len() as u64).to_le_bytes());
            hash.update(content);
        };
        add("builder", &BUILDER_VERSION.to_le_bytes());
        add("init", INIT.as_bytes());
        add("busybox", &read(Path::new(BUSYBOX))?);
        add(&self.kernel.release, self.modules.join(" ").as_bytes());
        for binary in &self.programs {
            add(&binary.in_guest, &read(&binary.on_host)?);
        }
        for (name, mode, path) in &self.files {
            add(&format!("{name} {mode:o}"), &read(path)?);
        }
        for (name, content) in &self.texts {
            add(name, content.as_bytes());
        }
        add("services", self.service_table().as_bytes());
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn tree(&self) -> Result<Tree> {
        let mut tree = Tree::new();
        let mut put = |path: &str, entry: Entry| tree.insert(path.trim_start_matches('/').to_owned(), entry);
        put("init", Entry::File(0o755, INIT.into()));
        put("bin/busybox", Entry::File(0o755, read(Path::new(BUSYBOX)).context("install busybox-static")?));
        put("bin/sh", Entry::Link("busybox".into()));
        for point in MOUNT_POINTS {
            put(point, Entry::Directory);
        }
        for (path, content) in self.module_files()? {
            put(&path, Entry::File(0o644, content));
        }
        for Binary { in_guest, on_host, unpacked } in &self.programs {
            put(in_guest, Entry::File(0o755, libraries::stripped(on_host)?));
            for library in libraries::needed_by(on_host, unpacked.as_deref())? {
                let place = unpacked.as_ref().and_then(|folder| library.strip_prefix(folder).ok()).unwrap_or(&library);
                put(&place.to_string_lossy(), Entry::File(0o755, libraries::stripped(&library)?));
            }
        }
        for (name, mode, path) in &self.files {
            put(name, Entry::File(*mode, read(path)?));
        }
        for (name, content) in &self.texts {
            put(name, Entry::File(0o644, content.clone().into()));
        }
        put("etc/services", Entry::File(0o644, self.service_table().into()));
        Ok(tree)
    }

    /// The modules' files, and the list that init loads them by.
    fn module_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let order = ModuleTree::read(&self.kernel.modules)?.load_order(&self.modules)?;
        let (mut files, mut list) = (Vec::new(), String::new());
        for path in order {
            let in_guest = format!("lib/modules/{}.ko", modules::name(&path));
            list += &format!("/{in_guest}\n");
            files.push((in_guest, modules::unpacked(&self.kernel.modules.join(&path))?));
        }
        files.push(("etc/modules".to_owned(), list.into()));
        Ok(files)
    }

    /// One line for each service: name, readiness path or `-`, command.
    fn service_table(&self) -> String {
        let line = |service: &Service| {
            format!("{} {} {}\n", service.name, service.ready_path.as_deref().unwrap_or("-"), service.command)
        };
        self.services.iter().map(line).collect()
    }
}

/// Removes images of programs that are no more: all but the `kept` used last and those used within [`IN_USE`]. QEMU
/// reads an image when it starts, so an older one is in nobody's hands.
fn prune(folder: &Path, kept: usize) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let is_image = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("guest-") && (name.ends_with(".cpio") || name.ends_with(".part"))
    };
    let mut images: Vec<_> = entries
        .flatten()
        .filter(|entry| is_image(&entry.path()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort_unstable();
    images.reverse();
    let old = images.into_iter().skip(kept).filter(|(used, _)| used.elapsed().is_ok_and(|age| age > IN_USE));
    for (_, path) in old {
        let _ = fs::remove_file(path); // another testbed may have been faster
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("the guest image needs {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_images_go_and_those_used_last_or_lately_stay() {
        let folder = std::env::temp_dir().join(format!("images-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let put = |name: &str, minutes: u64| {
            let file = fs::File::create(folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60 * minutes)).unwrap();
        };
        put("guest-6.1-a.cpio", 10_000);
        put("guest-6.1-b.cpio", 300);
        put("guest-6.1-c.cpio", 200);
        put("guest-6.1-d.cpio", 1);
        put("guest-6.1-e.0011.part", 400);
        put("notes.txt", 20_000);
        let left = || {
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        prune(&folder, 2);
        assert_eq!(left(), ["guest-6.1-c.cpio", "guest-6.1-d.cpio", "notes.txt"]);
        prune(&folder, 0);
        assert_eq!(left(), ["guest-6.1-d.cpio", "notes.txt"], "used a minute ago");
        fs::remove_dir_all(&folder).unwrap();
    }
}
