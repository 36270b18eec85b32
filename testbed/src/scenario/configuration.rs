//! The configurations of an installation, as an operator would write them. Each daemon's example file explains the
//! keys.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
};

use monitor::kernel::recipe::READY_MADE;

use super::relay::Relay;
use crate::{
    guest::Service,
    topology::{
        FILE_PORT, HYPERVISOR, MONITOR, SECOND_SPARE, SERVICE, SERVICE_INTERFACE, SPARE, rdma_v4, service_v4,
        service_v6,
    },
    vm::Vm,
};

/// Name of the guest in every configuration.
pub(super) const TARGET: &str = "guest";

/// Where a guest's agent offers boxes.
pub(super) const GUEST_BOXES: &str = "/run/backdoors/box.sock";

/// Where a backdoor listens for monitors and spares.
pub const BACKDOOR_CONTROL: SocketAddr = on_rdma_network(HYPERVISOR, control::backdoor::PORT);

/// Control plane of the spare.
pub(super) const SPARE_CONTROL: SocketAddr = on_rdma_network(SPARE, control::reinstate::PORT);

/// Where the monitor says what it counted.
pub(super) const MONITOR_METRICS: SocketAddr = on_rdma_network(MONITOR, 9464);

pub(super) const fn on_rdma_network(number: u8, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, number), port))
}

pub(super) fn backdoor(vm: &Vm) -> String {
    backdoor_of(TARGET, HYPERVISOR, vm)
}

/// The backdoor of `target`, at the hypervisor's address with this number.
pub(super) fn backdoor_of(target: &str, number: u8, vm: &Vm) -> String {
    format!(
        "target = \"{target}\"\nlisten = \"{}\"\n\n[vm]\nqmp = \"{}\"\nagent_port = \"{}\"\nram = \"{}\"\n",
        rdma_v4(number),
        vm.backdoor_qmp_socket().display(),
        vm.agent_socket().display(),
        vm.ram_path().display(),
    )
}

pub(super) fn monitor(journal: &Path, deadline_ms: u64, agent: bool) -> String {
    let sensors = if agent { String::new() } else { kernel_sensors() };
    let watched = Watched {
        target: TARGET,
        backdoor: BACKDOOR_CONTROL,
        spare: ("spare", SPARE_CONTROL),
        services: vec![(service_v4(SERVICE).into(), FILE_PORT), (service_v6(SERVICE).into(), FILE_PORT)],
    };
    rules(journal, deadline_ms, agent) + &watched.table(&sensors)
}

/// What a monitor goes by, whomever it watches.
pub(super) fn rules(journal: &Path, deadline_ms: u64, agent: bool) -> String {
    let [ticks, switches] = if agent { ["tick", "switches"] } else { ["TICKS", "SWITCHES"] };
    format!(
        r#"[monitor]
name = "monitor"
local = "{local}"
journal = "{journal}"
metrics = "{MONITOR_METRICS}"

[sampling]
period_ms = {period_ms}

# An interrupt-level tick on every CPU: stops in a panic, a hard lock-up, and when the virtual CPUs stop.
[[rule]]
sensors = "{ticks}.cpu*"
deadline_ms = {deadline_ms}
quorum = "any"
raises = "hang"

# Context switches: stop in a soft lock-up, which leaves the ticks running.
[[rule]]
sensors = "{switches}.cpu*"
deadline_ms = {switch_deadline_ms}
quorum = "all"
raises = "hang"
"#,
        local = rdma_v4(MONITOR),
        switch_deadline_ms = SWITCH_DEADLINE_MS.max(deadline_ms),
        journal = journal.display(),
        period_ms = (deadline_ms as f64 / SAMPLES_PER_DEADLINE).clamp(0.5, 1.5),
    )
}

/// A target, and who takes over for it.
pub(super) struct Watched<'a> {
    pub(super) target: &'a str,
    pub(super) backdoor: SocketAddr,
    /// Its name and its control plane.
    pub(super) spare: (&'a str, SocketAddr),
    /// Addresses that move, each with its port.
    pub(super) services: Vec<(IpAddr, u16)>,
}

impl Watched<'_> {
    /// Its table in the monitor's file, with `more` lines of its own.
    pub(super) fn table(&self, more: &str) -> String {
        let Self { target, backdoor, spare: (spare, control), services } = self;
        let services = services
            .iter()
            .map(|(address, port)| format!("\n[[target.service]]\naddress = \"{address}\"\nports = [{port}]\n"));
        format!(
            "\n[[target]]\nname = \"{target}\"\nbackdoor = \"{backdoor}\"\non_hang = \"evacuate\"\n{more}\n\
             [[target.spare]]\nname = \"{spare}\"\ncontrol = \"{control}\"\n{}",
            services.collect::<String>()
        )
    }
}

/// Nothing of ours runs in the guest: all that the monitor can see of it is its kernel.
fn kernel_sensors() -> String {
    let names: Vec<_> = READY_MADE.iter().map(|name| format!("{{ name = \"{name}\" }}")).collect();
    format!("agent = false\nkernel_sensor = [{}]\n", names.join(", "))
}

/// More than detection asks for: a verdict is late by up to one period, and a sample costs the guest nothing.
const SAMPLES_PER_DEADLINE: f64 = 25.0;

/// The agent's heartbeat wakes a CPU five times a second: three of them may fail to come. Where ticks may be late for
/// longer, so may these.
const SWITCH_DEADLINE_MS: u64 = 800;

pub(super) fn reinstate(name: &str, number: u8, boxes: &Path, slots: u32) -> String {
    reinstate_at(name, number, SERVICE_INTERFACE, boxes, slots)
}

/// The same, where the service network's interface has another name.
pub(super) fn reinstate_at(name: &str, number: u8, interface: &str, boxes: &Path, slots: u32) -> String {
    format!(
        "name = \"{name}\"\nlisten = \"{}\"\ninterface = \"{interface}\"\nbox_socket = \"{}\"\n\n\
         [boxes]\nslots = {slots}\n",
        rdma_v4(number),
        boxes.display(),
    )
}

/// Control plane of the second spare.
pub(super) const SECOND_CONTROL: SocketAddr = on_rdma_network(SECOND_SPARE, control::reinstate::PORT);

/// Said to a monitor after everything else: there is a second spare.
pub(super) fn second_spare() -> String {
    another_spare("spare-b", SECOND_CONTROL)
}

/// Said behind a target's table: it has one more spare.
pub(super) fn another_spare(name: &str, control: SocketAddr) -> String {
    format!("\n[[target.spare]]\nname = \"{name}\"\ncontrol = \"{control}\"\n")
}

/// Where the guest mounts the files; see [`super::installation`] for the folder on the host.
pub(super) const GUEST_FILES: &str = "/srv/files";

/// Arguments of the file server on the spare.
pub(super) fn file_server(boxes: &Path, files: &Path) -> Vec<String> {
    file_server_arguments(&boxes.display().to_string(), &files.display().to_string())
}

/// What runs in the guest from its boot on.
pub(super) fn guest_services(pool_slots: u32, mirrored: bool) -> Vec<Service> {
    let mirror = match mirrored {
        true => format!(" --mirror-port {FILE_PORT} --mirror-slots 128 --send-log-kib 256"),
        false => String::new(),
    };
    vec![Service {
        name: "target-agent".to_owned(),
        command: format!("/bin/target-agent --box-socket {GUEST_BOXES} --pool-slots {pool_slots}{mirror}"),
        ready_path: Some(GUEST_BOXES.to_owned()),
    }]
}

/// Arguments of a relay that serves, and of one that stands by for what others served.
pub(super) fn relay(relay: Relay, boxes: &str) -> [Vec<String>; 2] {
    let listen = format!("[::]:{FILE_PORT}");
    let kind = if relay.socket { "socket" } else { "pipes" };
    let stamps = relay.stamps.then_some("--stamps");
    let with = |more: &[&str]| more.iter().chain(&["--boxes", boxes]).chain(&stamps).map(ToString::to_string).collect();
    [with(&["--listen", &listen, "--kind", kind]), with(&["--standby"])]
}

/// The shell line by which a guest's relay begins to serve.
pub(super) fn guest_relay(of: Relay) -> String {
    let ([serving, _], log) = (relay(of, GUEST_BOXES), "/var/log/relay");
    format!(
        "(exec /bin/relay {} >>{log} 2>&1 </dev/null) & \
         until grep -q serving {log} 2>/dev/null; do sleep 0.02; [ -d /proc/$! ] || exit 1; done",
        serving.join(" ")
    )
}

/// Connections and files the guest's server may have open; a kernel's own limit is 4096.
pub(super) const GUEST_DESCRIPTORS: u32 = 32_768;

/// Tag of the folder of files.
pub(super) const FILES_TAG: &str = "files";

/// The shell line by which the guest begins to serve; it ends when the server listens. Not at boot, so that a guest can
/// be saved before: with the folder mounted it cannot.
pub(super) fn guest_serve(connections_max: Option<usize>) -> String {
    let limit = connections_max.map(|most| format!(" --connections-max {most}")).unwrap_or_default();
    let server = file_server_arguments(GUEST_BOXES, GUEST_FILES).join(" ");
    let log = "/var/log/file-server";
    format!(
        "mkdir -p {GUEST_FILES}; ulimit -n {GUEST_DESCRIPTORS} || exit 1; \
         mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none {FILES_TAG} {GUEST_FILES} || exit 1; \
         (exec /bin/file-server {server}{limit} >>{log} 2>&1 </dev/null) & \
         until grep -q serving {log} 2>/dev/null; do sleep 0.02; [ -d /proc/$! ] || exit 1; done"
    )
}

fn file_server_arguments(boxes: &str, files: &str) -> Vec<String> {
    let listen = format!("[::]:{FILE_PORT}");
    ["--listen", &listen, "--root", files, "--box-socket", boxes].map(str::to_owned).to_vec()
}
