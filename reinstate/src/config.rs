//! The configuration file of a spare. `reinstate.example.toml` shows every key; unknown keys are errors, and every
//! error names file, line and key.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use contbox::Geometry;
use link::Carrier;
use serde::Deserialize;
use service::config::Source;

pub use service::config::ConfigError;

use crate::probe::Patience;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this spare in others' logs.
    pub name: String,
    /// Address of the control plane, and the one from which this spare reads targets' memory.
    pub listen: Ipv4Addr,
    /// TCP port of the control plane.
    #[serde(default = "control_port")]
    pub control_port: u16,
    /// UDP port of RoCEv2.
    #[serde(default = "roce_port")]
    pub roce_port: u16,
    /// TCP port for Prometheus; none by default.
    #[serde(default)]
    pub metrics_port: Option<u16>,
    /// Addresses that may use the control plane; all if empty.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
    /// The box service's Unix socket, where applications register.
    #[serde(default = "box_socket")]
    pub box_socket: PathBuf,
    /// Where service addresses will be; by default the interface through which they are reached now.
    #[serde(default)]
    pub interface: Option<String>,
    /// Routing table for the copy of the main table with a raised initial window.
    #[serde(default = "route_table")]
    pub route_table: u32,
    /// How long the application may take to accept its sessions, in milliseconds.
    #[serde(default = "application_ms")]
    pub application_ms: u64,
    /// How long to wait for clients.
    #[serde(default)]
    pub probe: Probe,
    /// The boxes that resumed sessions get here.
    #[serde(default)]
    pub boxes: Boxes,
    /// Targets that are read in another way than by RoCEv2 over UDP.
    #[serde(default)]
    pub target: Vec<Reached>,
}

/// How one target is read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    /// Its name.
    pub name: String,
    /// By what.
    #[serde(default)]
    pub carrier: CarrierName,
    /// Name of this machine's RDMA adapter, where several have the address.
    #[serde(default)]
    pub device: Option<String>,
    /// Port of the adapter, where it has several.
    #[serde(default)]
    pub device_port: Option<u8>,
}

/// A carrier, as the file names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CarrierName {
    /// RoCEv2 over UDP.
    #[default]
    Soft,
    /// An RDMA adapter.
    Verbs,
}

impl Reached {
    fn carrier(&self) -> Result<Carrier, (&'static str, &'static str)> {
        Carrier::configured(self.carrier == CarrierName::Verbs, self.device.clone(), self.device_port)
    }
}

/// How long to wait for clients' answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// In all, in milliseconds.
    pub most_ms: u64,
    /// After the last client that answered, in milliseconds.
    pub after_answer_ms: u64,
}

impl Default for Probe {
    fn default() -> Self {
        Self { most_ms: 10, after_answer_ms: 3 }
    }
}

impl Probe {
    /// The same as durations.
    pub fn patience(&self) -> Patience {
        let ms = Duration::from_millis;
        Patience { most: ms(self.most_ms), after_answer: ms(self.after_answer_ms) }
    }
}

/// The pool of this spare.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boxes {
    /// Sessions that can be protected at the same time.
    pub slots: u32,
    /// Longest snapshot of an application, in bytes. Not less than on the targets.
    pub lws_bytes: u32,
    /// Bytes of input that may be read between two exports. Not less than on the targets.
    pub log_bytes: u32,
}

impl Default for Boxes {
    fn default() -> Self {
        let standard = Geometry::standard(1024);
        Self { slots: standard.slots, lws_bytes: standard.lws_bytes, log_bytes: standard.log_bytes }
    }
}

impl Boxes {
    /// The pool's geometry.
    pub fn geometry(&self) -> Geometry {
        Geometry::with(self.slots, self.lws_bytes, self.log_bytes)
    }
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or [`Config::parse`]'s.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &service::config::read(path)?)
    }

    /// Checks the text of a configuration file.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { file, text };
        let config: Self = source.parse()?;
        source.check_name("name", &config.name)?;
        source.check_address("listen", config.listen)?;
        source.check_daemon_ports(config.control_port, config.metrics_port, config.roce_port)?;
        config.check_limits(&source)?;
        config.check_targets(&source)?;
        Ok(config)
    }

    /// By what the target called `name` is read.
    pub fn carrier(&self, name: &str) -> Carrier {
        let reached = self.target.iter().find(|target| target.name == name);
        reached.and_then(|target| target.carrier().ok()).unwrap_or_default()
    }

    fn check_targets(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        for (index, target) in self.target.iter().enumerate() {
            source.check_name("target.name", &target.name)?;
            if self.target[..index].iter().any(|other| other.name == target.name) {
                return Err(source.error_at("target", format!("{} is there twice; join the two", target.name)));
            }
            let wrong = |(key, what)| source.error_at(&format!("target.{key}"), format!("{}: {what}", target.name));
            target.carrier().map_err(wrong)?;
        }
        Ok(())
    }

    fn check_limits(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        if self.box_socket.as_os_str().is_empty() {
            return Err(source.error_at("box_socket", "empty; name a file"));
        }
        if self.interface.as_ref().is_some_and(|name| name.is_empty() || name.len() > INTERFACE_BYTES_MAX) {
            return Err(source.error_at("interface", "no interface's name; `ip link` shows them"));
        }
        if RESERVED_TABLES.contains(&self.route_table) {
            let what = format!("the kernel uses table {} itself; name one that nobody else uses", self.route_table);
            return Err(source.error_at("route_table", what));
        }
        let (application, most, after) = (self.application_ms, self.probe.most_ms, self.probe.after_answer_ms);
        for (key, ms) in [("application_ms", application), ("probe.most_ms", most), ("probe.after_answer_ms", after)] {
            let least = u64::from(key == "application_ms");
            if !(least..=PATIENCE_MS_MAX).contains(&ms) {
                let what = format!("{ms} ms is no time to wait in an evacuation; {least} to {PATIENCE_MS_MAX} is");
                return Err(source.error_at(key, what));
            }
        }
        let geometry = self.boxes.geometry();
        if !geometry.is_sound() {
            return Err(source.error_at("boxes", format!("asks for an impossible pool: {geometry:?}")));
        }
        Ok(())
    }
}

/// `IFNAMSIZ` with its final zero, in bytes.
const INTERFACE_BYTES_MAX: usize = 15;

/// Unspecified, default, main and local: see rtnetlink(7).
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// A minute: clients have given up long before.
const PATIENCE_MS_MAX: u64 = 60_000;

fn control_port() -> u16 {
    control::reinstate::PORT
}

fn roce_port() -> u16 {
    link::Options::new("").port
}

fn box_socket() -> PathBuf {
    "/run/backdoors/box.sock".into()
}

fn route_table() -> u32 {
    crate::routes::TABLE
}

fn application_ms() -> u64 {
    1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_configuration_and_shows_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reinstate.example.toml");
        let config = Config::read(&path).unwrap();
        assert_eq!(config.listen, Ipv4Addr::new(10, 77, 0, 2));
        let text = std::fs::read_to_string(path).unwrap();
        for key in [
            "control_port",
            "roce_port",
            "metrics_port",
            "peers",
            "box_socket",
            "interface",
            "route_table",
            "carrier",
            "device",
        ] {
            assert!(text.contains(&format!("{key} =")), "{key} is not shown");
        }
    }

    const GOOD: &str = "name = \"a\"\nlisten = \"10.0.0.1\"\n";

    /// The good file with `more` behind it is refused with `expected`.
    fn check(more: &str, expected: &str) {
        match Config::parse(Path::new("r.toml"), &format!("{GOOD}{more}\n")) {
            Err(error) => assert_eq!(error.to_string(), expected),
            Ok(_) => panic!("{more:?} was accepted"),
        }
    }

    #[test]
    fn malformed_configuration_is_refused_by_file_line_and_key() {
        Config::parse(Path::new("r.toml"), GOOD).unwrap();
        let probe_keys = "expected `most_ms` or `after_answer_ms`";
        check("[probe]\nmost = 3", &format!("r.toml:4: probe.most: unknown field `most`, {probe_keys}"));
        check("peers = [\"spare\"]", "r.toml:3: peers: invalid IP address syntax");
        check("[boxes]\nslots = -1", "r.toml:4: boxes.slots: invalid value: integer `-1`, expected u32");
        let error = Config::parse(Path::new("r.toml"), "name = \"a\"\n").unwrap_err().to_string();
        assert_eq!(error, "r.toml: missing field `listen`");
        let error = Config::parse(Path::new("r.toml"), &format!("{GOOD}lissten = 3\n")).unwrap_err().to_string();
        assert!(error.starts_with("r.toml:3: lissten: unknown field `lissten`, expected one of `name`"), "{error}");
    }

    #[test]
    fn impossible_configuration_is_refused_by_file_line_and_key() {
        let twice = "r.toml:3: metrics_port: 4792 is control_port already; give each its own";
        check("metrics_port = 4792", twice);
        check(
            "interface = \"a-name-beyond-all-measure\"",
            "r.toml:3: interface: no interface's name; `ip link` shows them",
        );
        let table = "the kernel uses table 254 itself; name one that nobody else uses";
        check("route_table = 254", &format!("r.toml:3: route_table: {table}"));
        check("box_socket = \"\"", "r.toml:3: box_socket: empty; name a file");
        let wait = "0 ms is no time to wait in an evacuation; 1 to 60000 is";
        check("application_ms = 0", &format!("r.toml:3: application_ms: {wait}"));
        let wait = "70000 ms is no time to wait in an evacuation; 0 to 60000 is";
        check("[probe]\nmost_ms = 70000", &format!("r.toml:4: probe.most_ms: {wait}"));
        let error = Config::parse(Path::new("r.toml"), &format!("{GOOD}[boxes]\nslots = 0\n")).unwrap_err();
        assert!(error.to_string().starts_with("r.toml:3: boxes: asks for an impossible pool: "), "{error}");
        for (old, new, key) in [("\"a\"", "\"\"", "1: name"), ("10.0.0.1", "0.0.0.0", "2: listen")] {
            let error = Config::parse(Path::new("r.toml"), &GOOD.replace(old, new)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("r.toml:{key}: ")), "{error}");
        }
    }
}
