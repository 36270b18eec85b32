//! What a virtual machine is made of, and the QEMU command line that says so.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::NETDEV;

/// Receive buffers that each take a whole packet. With mergeable ones, QEMU before 9.1 can wait for a kick that the
/// guest does not owe ("virtio-net: Fix network stall at the host side waiting for kick"), and the guest is deaf until
/// it happens to make one: seen as a second without a single acknowledgement, before any fault.
const WHOLE_BUFFERS: &str = "mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off";
use crate::guest::CONTROL_PORT;

/// The guest's driver of the disk that it swaps to.
pub const SWAP_DRIVER: &str = "virtio_blk";

/// The second network device's name in QEMU. A fence takes the first one's link down: who has two is a spare.
const SECOND_NETDEV: &str = "net1";

/// Where the guest has that disk: its only one.
const SWAP_IN_GUEST: &str = "/dev/vda";

/// Forces the accelerator: `kvm` or `tcg`.
const ACCEL_VARIABLE: &str = "BACKDOORS_ACCEL";

/// Hardware address of a machine's card, unless another one is wanted.
pub const MAC: &str = "52:54:00:bd:00:10";

/// How guest instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// By translation.
    Tcg,
}

impl Accel {
    /// `BACKDOORS_ACCEL`, or KVM where it works, or TCG.
    ///
    /// An open /dev/kvm is not enough: machines without vmx or svm have been seen to offer one in which a stock
    /// kernel never leaves the firmware.
    ///
    /// # Errors
    /// If the variable holds another word.
    pub fn choose() -> Result<Self> {
        match std::env::var(ACCEL_VARIABLE).as_deref() {
            Ok("kvm") => Ok(Self::Kvm),
            Ok("tcg") => Ok(Self::Tcg),
            Ok(other) => bail!("{ACCEL_VARIABLE} is `{other}`; it can be `kvm` or `tcg`"),
            Err(_) => {
                let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
                let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                let virtualizes = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
                Ok(if opens && virtualizes { Self::Kvm } else { Self::Tcg })
            }
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What guest RAM lies in. Both kinds can be mapped by another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ram {
    /// Anonymous shared memory, reached through `/proc/PID/fd`.
    Memfd,
    /// A file, usually below /dev/shm. It stays when the machine goes.
    File(PathBuf),
}

/// The network device's other end.
#[derive(Debug)]
pub enum Tap {
    /// An open, configured tap device.
    Fd(OwnedFd),
    /// A tap device in the caller's network namespace.
    Name(String),
}

/// A folder of the host that the guest mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// A word, unique in this machine.
    pub tag: String,
    /// The folder.
    pub on_host: PathBuf,
    /// Where it is mounted.
    pub in_guest: String,
    /// Whether init mounts it. A guest that has one mounted cannot be saved, see [`Vm::save`](super::Vm::save).
    pub at_boot: bool,
    /// Whether the guest may write.
    pub writable: bool,
}

/// A second network device, `eth1`, on a network with frames of its own size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// A tap device in the caller's network namespace.
    pub tap: String,
    /// Its hardware address.
    pub mac: String,
    /// The one address of eth1, with prefix length.
    pub address: String,
    /// Largest packet. The guest's driver makes its buffers as large.
    pub mtu: u32,
}

/// Everything a machine is started with.
#[derive(Debug)]
pub struct VmSpec {
    /// A word for messages; also the guest's host name.
    pub name: String,
    /// Compressed kernel.
    pub vmlinuz: PathBuf,
    /// Image made by [`crate::guest::ImageSpec::build`].
    pub initramfs: PathBuf,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Processor model with QEMU's options; `max,la57=off` for 4-level paging.
    pub cpu_model: String,
    /// Where RAM lies.
    pub ram: Ram,
    /// Network device, if any.
    pub tap: Option<Tap>,
    /// Its hardware address.
    pub mac: String,
    /// Addresses of eth0 with prefix length, IPv4 and IPv6; the first is the machine's own.
    pub addresses: Vec<String>,
    /// A second network device, if any.
    pub second: Option<Card>,
    /// Interfaces of the guest that get a soft-RoCE device: `rxe0` for `eth0`. Its image needs
    /// [`ImageSpec::soft_roce`](crate::guest::ImageSpec::soft_roce).
    pub soft_roce: Vec<String>,
    /// Shared folders.
    pub shares: Vec<Share>,
    /// A file that the guest swaps to, all of it. Its image needs the module [`SWAP_DRIVER`].
    pub swap: Option<PathBuf>,
    /// Further kernel parameters.
    pub append: Vec<String>,
    /// Whether a reset boots it anew; otherwise QEMU ends, so that a guest that reboots by mistake is noticed.
    pub reboots: bool,
    /// Emulated with two nanoseconds for each instruction of its one processor, whatever else the host does: its clock
    /// counts instructions.
    pub counted: bool,
    /// How it is executed; `None` chooses.
    pub accel: Option<Accel>,
    /// A saved machine of the same make that goes on instead of a boot; see [`Vm::save`](super::Vm::save).
    pub saved: Option<PathBuf>,
}

impl VmSpec {
    /// A machine of 256 MiB and two processors without network.
    pub fn new(name: &str, vmlinuz: &Path, initramfs: &Path) -> Self {
        Self {
            name: name.to_owned(),
            vmlinuz: vmlinuz.to_owned(),
            initramfs: initramfs.to_owned(),
            memory_mib: 256,
            cpus: 2,
            cpu_model: "max".to_owned(),
            ram: Ram::Memfd,
            tap: None,
            mac: MAC.to_owned(),
            addresses: vec![],
            second: None,
            soft_roce: vec![],
            shares: vec![],
            swap: None,
            append: vec![],
            reboots: false,
            counted: false,
            accel: None,
            saved: None,
        }
    }
}

/// Paths of a running machine's sockets and console, all in one private folder.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub folder: PathBuf,
    pub agent: PathBuf,
    pub control: PathBuf,
    pub qmp: PathBuf,
    pub backdoor_qmp: PathBuf,
    pub console: PathBuf,
}

impl Places {
    pub fn below(folder: PathBuf) -> Self {
        Self {
            agent: folder.join("agent"),
            control: folder.join("control"),
            qmp: folder.join("qmp"),
            backdoor_qmp: folder.join("qmp-backdoor"),
            console: folder.join("console"),
            folder,
        }
    }
}

/// QEMU's arguments. A tap passed by descriptor is expected as descriptor 0: a child's standard input is the one
/// descriptor that std hands over without leaking it into every other child.
pub(super) fn arguments(spec: &VmSpec, places: &Places, accel: Accel) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
    add("-name", spec.name.clone());
    add("-machine", "q35,memory-backend=ram".into());
    add("-accel", accel.argument().into());
    if spec.counted {
        add("-icount", "shift=1".into());
    }
    add("-cpu", spec.cpu_model.clone());
    add("-smp", spec.cpus.to_string());
    add("-m", format!("{}M", spec.memory_mib));
    add("-object", ram(spec));
    add("-kernel", spec.vmlinuz.display().to_string());
    add("-initrd", spec.initramfs.display().to_string());
    add("-append", kernel_parameters(spec));
    add("-display", "none".into());
    add("-serial", format!("file:{}", places.console.display()));
    for socket in [&places.qmp, &places.backdoor_qmp] {
        add("-qmp", format!("unix:{},server=on,wait=off", socket.display()));
    }
    add("-device", "virtio-serial-pci".into());
    for (id, socket, port) in
        [("agent", &places.agent, control::agent::PORT_NAME), ("control", &places.control, CONTROL_PORT)]
    {
        add("-chardev", format!("socket,id={id},path={},server=on,wait=off", socket.display()));
        add("-device", format!("virtserialport,chardev={id},name={port}"));
    }
    if let Some(tap) = &spec.tap {
        let end = match tap {
            Tap::Fd(_) => "fd=0".to_owned(),
            Tap::Name(name) => format!("ifname={name},script=no,downscript=no"),
        };
        add("-netdev", format!("tap,id={NETDEV},{end}"));
        // No boot from the network, so no option ROM, which Debian packages apart.
        let mac = &spec.mac;
        add("-device", format!("virtio-net-pci,netdev={NETDEV},mac={mac},romfile=,{WHOLE_BUFFERS}"));
    }
    if let Some(Card { tap, mac, mtu, .. }) = &spec.second {
        add("-netdev", format!("tap,id={SECOND_NETDEV},ifname={tap},script=no,downscript=no"));
        let device = format!("virtio-net-pci,netdev={SECOND_NETDEV},mac={mac},romfile=,host_mtu={mtu},{WHOLE_BUFFERS}");
        add("-device", device);
    }
    for share in &spec.shares {
        let readonly = if share.writable { "off" } else { "on" };
        let Share { tag, on_host, .. } = share;
        let on_host = on_host.display();
        add("-fsdev", format!("local,id={tag},path={on_host},security_model=none,readonly={readonly}"));
        add("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    if let Some(file) = &spec.swap {
        // Nobody reads it again once the machine is gone, so nothing of it has to be safe.
        add("-drive", format!("if=none,id=swap,format=raw,cache=unsafe,file={}", file.display()));
        add("-device", "virtio-blk-pci,drive=swap".into());
    }
    if let Some(saved) = &spec.saved {
        add("-incoming", format!("exec:cat {}", saved.display()));
    }
    all.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    if !spec.reboots {
        all.push("-no-reboot".to_owned());
    }
    all
}

fn ram(spec: &VmSpec) -> String {
    let size = spec.memory_mib;
    match &spec.ram {
        Ram::Memfd => format!("memory-backend-memfd,id=ram,size={size}M,share=on"),
        Ram::File(path) => format!("memory-backend-file,id=ram,size={size}M,mem-path={},share=on", path.display()),
    }
}

/// `panic=0` keeps a panicked kernel where it is: its memory is what everything is about. `no_timer_check`: a kernel
/// that boots counts timer interrupts and panics at too few, and the host may let an emulated processor wait just then;
/// under KVM a kernel sets it by itself.
fn kernel_parameters(spec: &VmSpec) -> String {
    let at_boot = spec.shares.iter().filter(|share| share.at_boot);
    let shares: Vec<String> = at_boot.map(|share| format!("{}:{}", share.tag, share.in_guest)).collect();
    let mut parameters = ["console=ttyS0", "panic=0", "no_timer_check"].map(str::to_owned).to_vec();
    parameters.push(format!("backdoors.hostname={}", spec.name));
    let swap: Vec<String> = spec.swap.iter().map(|_| SWAP_IN_GUEST.to_owned()).collect();
    let second: Vec<String> = spec.second.iter().map(|card| card.address.clone()).collect();
    let (addresses, rxe) = (&spec.addresses, &spec.soft_roce);
    let lists = [("addresses", addresses), ("second", &second), ("rxe", rxe), ("shares", &shares), ("swap", &swap)];
    for (name, values) in lists {
        if !values.is_empty() {
            parameters.push(format!("backdoors.{name}={}", values.join(",")));
        }
    }
    parameters.extend(spec.append.iter().cloned());
    parameters.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut VmSpec)) -> String {
        let mut spec = VmSpec::new("target", Path::new("vmlinuz"), Path::new("image"));
        change(&mut spec);
        arguments(&spec, &Places::below("/run/x".into()), Accel::Tcg).join(" ")
    }

    #[test]
    fn ram_is_always_shared_with_other_processes() {
        assert!(line(|_| {}).contains("memory-backend-memfd,id=ram,size=256M,share=on"));
        let file = line(|spec| spec.ram = Ram::File("/dev/shm/x".into()));
        assert!(file.contains("memory-backend-file,id=ram,size=256M,mem-path=/dev/shm/x,share=on"));
    }

    #[test]
    fn a_tap_passed_by_descriptor_is_standard_input() {
        let tap = std::fs::File::open("/dev/null").unwrap().into();
        assert!(line(|spec| spec.tap = Some(Tap::Fd(tap))).contains("-netdev tap,id=net0,fd=0"));
        assert!(!line(|_| {}).contains("netdev"));
    }

    #[test]
    fn addresses_and_shares_reach_init_through_kernel_parameters() {
        let line = line(|spec| {
            spec.addresses = vec!["10.77.0.10/24".into(), "fd77::10/64".into()];
            let share = Share {
                tag: "data".into(),
                on_host: "/a".into(),
                in_guest: "/srv".into(),
                at_boot: true,
                writable: false,
            };
            spec.shares = vec![Share { tag: "later".into(), at_boot: false, ..share.clone() }, share];
        });
        assert!(line.contains("backdoors.addresses=10.77.0.10/24,fd77::10/64 backdoors.shares=data:/srv"));
        assert!(line.contains("local,id=data,path=/a,security_model=none,readonly=on"));
    }

    #[test]
    fn a_second_card_comes_behind_the_first_with_frames_of_its_own_size() {
        let card =
            Card { tap: "tap-b".into(), mac: "52:54:00:bd:01:20".into(), address: "10.78.0.20/24".into(), mtu: 9000 };
        let line = line(|spec| {
            spec.tap = Some(Tap::Name("tap-a".into()));
            spec.second = Some(card);
        });
        let (first, second) = (line.find("ifname=tap-a").unwrap(), line.find("ifname=tap-b").unwrap());
        assert!(first < second && line.contains("host_mtu=9000"), "{line}");
        assert!(line.contains("backdoors.second=10.78.0.20/24"), "{line}");
    }

    #[test]
    fn a_guest_s_clock_counts_instructions_only_if_it_is_told() {
        assert!(line(|spec| spec.counted = true).contains("-accel tcg -icount shift=1"));
        assert!(!line(|_| {}).contains("icount"));
    }

    #[test]
    fn a_guest_swaps_to_a_disk_only_if_it_has_one() {
        let with = line(|spec| spec.swap = Some("/dev/shm/swap".into()));
        assert!(with.contains("backdoors.swap=/dev/vda") && with.contains("file=/dev/shm/swap"), "{with}");
        assert!(!line(|_| {}).contains("swap"));
    }
}
