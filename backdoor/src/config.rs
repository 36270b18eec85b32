//! The configuration file: one target, where its machine is, and where to listen.
//!
//! `backdoor.example.toml` shows every key. Unknown keys are errors; every error names file, line and key.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
pub use service::config::ConfigError;
use service::config::Source;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the target, as monitors know it.
    pub target: String,
    /// Address at which memory and control are served.
    pub listen: Ipv4Addr,
    /// TCP port of the control plane.
    #[serde(default = "control_port")]
    pub control_port: u16,
    /// UDP port of RoCEv2. Others than 4791 are for tests: real NICs know no other.
    #[serde(default = "roce_port")]
    pub roce_port: u16,
    /// TCP port for Prometheus; none by default.
    #[serde(default)]
    pub metrics_port: Option<u16>,
    /// Addresses that may use the control plane; all if empty.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
    /// Processor to which the thread that serves memory is bound; none by default.
    #[serde(default)]
    pub cpu: Option<usize>,
    /// The file that remembers a standing fence when the daemon is started anew; none by default.
    #[serde(default)]
    pub fence_record: Option<PathBuf>,
    /// The machine.
    pub vm: Vm,
}

/// Where the target's machine is found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// QEMU's monitor socket. It must be this daemon's alone: QEMU serves one client at a time.
    pub qmp: PathBuf,
    /// The socket of the agent's virtio-serial port; without it there are no boxes, only `ram`.
    #[serde(default)]
    pub agent_port: Option<PathBuf>,
    /// The file that holds the memory. By default QEMU is asked.
    #[serde(default)]
    pub ram: Ram,
    /// A file with QEMU's process number. By default the monitor socket tells it.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
}

/// Where the memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub enum Ram {
    /// QEMU is asked, and its open files are searched.
    #[default]
    Auto,
    /// In this file.
    File(PathBuf),
}

impl Ram {
    /// The file, if it was named.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Auto => None,
            Self::File(path) => Some(path.clone()),
        }
    }
}

impl From<PathBuf> for Ram {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::File(path) }
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
        source.check_name("target", &config.target)?;
        source.check_address("listen", config.listen)?;
        source.check_daemon_ports(config.control_port, config.metrics_port, config.roce_port)?;
        config.cpu.map_or(Ok(()), |cpu| source.check_cpu("cpu", cpu))?;
        for (key, path) in [
            ("vm.qmp", Some(&config.vm.qmp)),
            ("vm.agent_port", config.vm.agent_port.as_ref()),
            ("fence_record", config.fence_record.as_ref()),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(source.error_at(key, "empty; name a file"));
            }
        }
        Ok(config)
    }
}

fn control_port() -> u16 {
    control::backdoor::PORT
}

fn roce_port() -> u16 {
    rdma::soft::PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "target = \"a\"\nlisten = \"10.0.0.1\"\n[vm]\nqmp = \"q\"\n";

    fn parsed(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("b.toml"), text)
    }

    /// The good file with `old` replaced by `new` is refused with `expected`.
    fn check(old: &str, new: &str, expected: &str) {
        match parsed(&GOOD.replacen(old, new, 1)) {
            Err(error) => assert_eq!(error.to_string(), expected),
            Ok(_) => panic!("{new:?} was accepted"),
        }
    }

    #[test]
    fn the_example_is_a_configuration_and_shows_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("backdoor.example.toml");
        let config = Config::read(&path).unwrap();
        assert_eq!((config.control_port, config.roce_port), (4790, 4791));
        assert_eq!(config.vm.ram, Ram::Auto);
        let text = std::fs::read_to_string(path).unwrap();
        for key in ["peers", "metrics_port", "cpu", "agent_port", "pid_file", "fence_record"] {
            assert!(text.contains(key), "{key}");
        }
    }

    #[test]
    fn malformed_configuration_is_refused_by_file_line_and_key() {
        parsed(GOOD).unwrap();
        check("10.0.0.1", "10.0.0", "b.toml:2: listen: invalid IPv4 address syntax");
        check("qmp", "qnp", &format!("b.toml:4: vm.qnp: unknown field `qnp`, expected one of {VM_KEYS}"));
        check("\"q\"", "7", "b.toml:4: vm.qmp: invalid type: integer `7`, expected path string");
        check("listen = \"10.0.0.1\"\n", "", "b.toml: missing field `listen`");
        let port = "b.toml:1: metrics_port: invalid value: integer `70000`, expected u16";
        check("target", "metrics_port = 70000\ntarget", port);
        check("[vm]", "peers = [\"10.0.0.2\", \"host\"]\n[vm]", "b.toml:3: peers: invalid IP address syntax");
    }

    const VM_KEYS: &str = "`qmp`, `agent_port`, `ram`, `pid_file`";

    #[test]
    fn impossible_configuration_is_refused_by_file_line_and_key() {
        let no_name = "\"a b\" is no name; 1 to 64 letters, digits, `-`, `_` and `.` are";
        check("\"a\"", "\"a b\"", &format!("b.toml:1: target: {no_name}"));
        let no_address = "0.0.0.0 is no address of one interface; name the one that the others reach";
        check("10.0.0.1", "0.0.0.0", &format!("b.toml:2: listen: {no_address}"));
        let twice = "b.toml:3: metrics_port: 4790 is control_port already; give each its own";
        check("[vm]", "metrics_port = 4790\n[vm]", twice);
        let zero = "0 is no port that anybody could find; name one from 1 to 65535";
        check("[vm]", "control_port = 0\n[vm]", &format!("b.toml:3: control_port: {zero}"));
        check("[vm]", "roce_port = 0\n[vm]", &format!("b.toml:3: roce_port: {zero}"));
        check("\"q\"", "\"\"", "b.toml:4: vm.qmp: empty; name a file");
        check("[vm]", "fence_record = \"\"\n[vm]", "b.toml:3: fence_record: empty; name a file");
        let error = parsed(&GOOD.replace("[vm]", "cpu = 100000\n[vm]")).unwrap_err().to_string();
        assert!(error.starts_with("b.toml:3: cpu: this machine has CPUs 0 to "), "{error}");
    }
}
