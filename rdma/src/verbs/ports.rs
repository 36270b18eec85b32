//! Which port of which adapter: found by the address it speaks RoCEv2 from.
//!
//! The kernel shows adapters below /sys/class/infiniband: devices, their ports, and for each port a table of GIDs, of
//! which one has the type RoCE v2 and the IPv4-mapped form of the wanted address. So the address that a configuration
//! names anyway is the choice; a device's name, and its port, only narrow it. Reading files needs neither the library
//! nor an adapter, which is why the listing of an error can be tested anywhere.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::VerbsError;

/// Where the kernel shows adapters. Source: Documentation/ABI/stable/sysfs-class-infiniband.
pub const CLASS: &str = "/sys/class/infiniband";

/// What the kernel calls the GIDs of RoCEv2, as opposed to `IB/RoCE v1`.
const ROCE_V2: &str = "RoCE v2";

/// Entries of a GID table that are looked at: mlx5 has 256, rxe 512 and more of them empty.
const GIDS_MAX: u32 = 1024;

/// What is wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The address to speak from.
    pub local: Ipv4Addr,
    /// Name of the adapter, as `rdma link` shows it; any if absent.
    pub device: Option<String>,
    /// Its port, from 1; any if absent.
    pub port: Option<u8>,
}

impl Choice {
    /// Any adapter with the address `local`.
    pub fn at(local: Ipv4Addr) -> Self {
        Self { local, device: None, port: None }
    }

    fn permits(&self, port: &Port) -> bool {
        self.device.as_ref().is_none_or(|name| *name == port.device) && self.port.is_none_or(|own| own == port.number)
    }
}

/// A port of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The adapter.
    pub device: String,
    /// From 1.
    pub number: u8,
    /// As the kernel says it: `ACTIVE`, `DOWN`.
    pub state: String,
    /// The network interface, where there is one.
    pub interface: Option<String>,
    /// Index and address of each GID for RoCEv2 over IPv4.
    pub addresses: Vec<(u8, Ipv4Addr)>,
}

/// A port, and the entry of its GID table to speak from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The adapter.
    pub device: String,
    /// Its port.
    pub port: u8,
    /// The entry.
    pub gid_index: u8,
    /// The address.
    pub local: Ipv4Addr,
}

/// The port that `choice` means, among those below the folder `class`.
///
/// # Errors
/// [`VerbsError::NoPort`] or [`VerbsError::Ambiguous`], both with a list of what there is.
pub fn choose(class: &Path, choice: &Choice) -> Result<Chosen, VerbsError> {
    let ports = list(class);
    let local = choice.local;
    let fits = |port: &&Port| choice.permits(port) && port.addresses.iter().any(|(_, address)| *address == local);
    let mut fitting = ports.iter().filter(fits);
    let Some(port) = fitting.next() else {
        let asked = match (&choice.device, choice.port) {
            (Some(device), Some(port)) => format!(" {device} port {port}"),
            (Some(device), None) => format!(" {device}"),
            (None, Some(port)) => format!(" (port {port})"),
            (None, None) => String::new(),
        };
        return Err(VerbsError::NoPort { asked, local, found: describe(&ports) });
    };
    if fitting.next().is_some() {
        return Err(VerbsError::Ambiguous { local, found: describe(&ports) });
    }
    let (gid_index, _) = *port.addresses.iter().find(|(_, address)| *address == local).expect("it was just found");
    Ok(Chosen { device: port.device.clone(), port: port.number, gid_index, local })
}

/// All ports below the folder `class`, by name and number. What cannot be read is not there.
pub fn list(class: &Path) -> Vec<Port> {
    let mut ports = Vec::new();
    for device in names(class) {
        for number in names(&class.join(&device).join("ports")) {
            if let Ok(number) = number.parse() {
                ports.push(look(class, &device, number));
            }
        }
    }
    ports.sort_by(|a, b| (&a.device, a.number).cmp(&(&b.device, b.number)));
    ports
}

/// What there is, in words.
pub fn describe(ports: &[Port]) -> String {
    if ports.is_empty() {
        return "there is no adapter (software: `rdma link add rxe0 type rxe netdev eth0`)".to_owned();
    }
    let mut text = String::from("there is:");
    for (index, port) in ports.iter().enumerate() {
        let separator = if index == 0 { "" } else { ";" };
        let interface = port.interface.as_deref().unwrap_or("no interface");
        let _ = write!(text, "{separator} {} port {} {} on {interface}", port.device, port.number, port.state);
        match port.addresses.as_slice() {
            [] => text.push_str(" without an IPv4 address"),
            some => some.iter().for_each(|(_, address)| text.push_str(&format!(" {address}"))),
        }
    }
    text
}

fn look(class: &Path, device: &str, number: u8) -> Port {
    let folder = class.join(device).join("ports").join(number.to_string());
    let mut port = Port {
        device: device.to_owned(),
        number,
        // "4: ACTIVE"
        state: line(&folder.join("state"))
            .and_then(|text| Some(text.split(": ").nth(1)?.to_owned()))
            .unwrap_or_default(),
        interface: None,
        addresses: Vec::new(),
    };
    let mut indices: Vec<u32> = names(&folder.join("gids")).iter().filter_map(|name| name.parse().ok()).collect();
    indices.sort_unstable();
    for index in indices.into_iter().take_while(|index| *index < GIDS_MAX) {
        // An empty entry has no type: reading it fails.
        let Some(kind) = line(&folder.join(format!("gid_attrs/types/{index}"))) else { continue };
        port.interface = port.interface.or_else(|| line(&folder.join(format!("gid_attrs/ndevs/{index}"))));
        let gid = line(&folder.join(format!("gids/{index}"))).and_then(|text| text.parse::<Ipv6Addr>().ok());
        let (Some(address), Ok(index)) = (gid.and_then(|gid| gid.to_ipv4_mapped()), u8::try_from(index)) else {
            continue;
        };
        if kind == ROCE_V2 {
            port.addresses.push((index, address));
        }
    }
    port
}

fn line(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    /// A folder like the kernel's.
    struct Class(PathBuf);

    impl Class {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("verbs-ports-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        /// A port, with type and GID of each entry of its table.
        fn port(self, device: &str, number: u8, state: &str, gids: &[(&str, &str)]) -> Self {
            let folder = self.0.join(device).join("ports").join(number.to_string());
            for inner in ["gids", "gid_attrs/types", "gid_attrs/ndevs"] {
                fs::create_dir_all(folder.join(inner)).unwrap();
            }
            fs::write(folder.join("state"), state).unwrap();
            for (index, (kind, gid)) in gids.iter().enumerate() {
                fs::write(folder.join(format!("gids/{index}")), gid).unwrap();
                fs::write(folder.join(format!("gid_attrs/types/{index}")), kind).unwrap();
                fs::write(folder.join(format!("gid_attrs/ndevs/{index}")), format!("eth-{device}\n")).unwrap();
            }
            self
        }
    }

    impl Drop for Class {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const LOCAL_LINK: (&str, &str) = ("RoCE v2\n", "fe80:0000:0000:0000:5054:00ff:fe12:3456\n");
    const A_V1: (&str, &str) = ("IB/RoCE v1\n", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    const A_V2: (&str, &str) = ("RoCE v2\n", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    const B_V2: (&str, &str) = ("RoCE v2\n", "0000:0000:0000:0000:0000:ffff:0a00:0002\n");

    #[test]
    fn the_gid_of_version_2_with_the_address_is_chosen() {
        let class = Class::new("chosen").port("mlx5_0", 1, "4: ACTIVE\n", &[LOCAL_LINK, A_V1, A_V2]).port(
            "mlx5_1",
            1,
            "1: DOWN\n",
            &[LOCAL_LINK, B_V2],
        );
        let chosen = choose(&class.0, &Choice::at(A)).unwrap();
        assert_eq!(chosen, Chosen { device: "mlx5_0".into(), port: 1, gid_index: 2, local: A });
        assert_eq!(choose(&class.0, &Choice::at(B)).unwrap().device, "mlx5_1");
    }

    #[test]
    fn an_address_on_two_ports_asks_for_a_name_and_one_is_enough() {
        let class = Class::new("two").port("rxe0", 1, "4: ACTIVE\n", &[A_V2]).port("rxe1", 1, "4: ACTIVE\n", &[A_V2]);
        let said = choose(&class.0, &Choice::at(A)).unwrap_err().to_string();
        assert_eq!(
            said,
            "several RDMA ports have the address 10.0.0.1: name the device, and the port if it has several; there is: \
             rxe0 port 1 ACTIVE on eth-rxe0 10.0.0.1; rxe1 port 1 ACTIVE on eth-rxe1 10.0.0.1"
        );
        let named = Choice { device: Some("rxe1".into()), ..Choice::at(A) };
        assert_eq!(choose(&class.0, &named).unwrap().device, "rxe1");
    }

    #[test]
    fn what_is_not_there_is_an_error_with_what_is() {
        let class = Class::new("absent").port("rxe0", 1, "4: ACTIVE\n", &[LOCAL_LINK, A_V1]);
        let said = |choice: &Choice| choose(&class.0, choice).unwrap_err().to_string();
        assert_eq!(
            said(&Choice::at(A)),
            "no RDMA adapter has the address 10.0.0.1 for RoCE v2; there is: rxe0 port 1 ACTIVE on eth-rxe0 without \
             an IPv4 address"
        );
        let elsewhere = Choice { local: B, device: Some("rxe7".into()), port: Some(2) };
        assert!(
            said(&elsewhere).starts_with("no RDMA adapter rxe7 port 2 has the address 10.0.0.2 for RoCE v2; there")
        );
        let nothing = choose(Path::new("/nowhere"), &Choice::at(A)).unwrap_err().to_string();
        assert_eq!(
            nothing,
            "no RDMA adapter has the address 10.0.0.1 for RoCE v2; there is no adapter (software: `rdma link add rxe0 \
             type rxe netdev eth0`)"
        );
    }
}
