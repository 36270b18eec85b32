//! The configuration file of a spare. `reinstate.example.toml` shows every key; unknown keys are errors, and every
//! error names file, line and key.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use contbox::Geometry;
use serde::Deserialize;

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

/// Why a configuration cannot be used: the writer's fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not say what it must.
    #[error("{path}: {source}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
    /// The boxes are too many or too large.
    #[error("{path}: [boxes] asks for an impossible pool: {geometry:?}")]
    Boxes {
        /// Which.
        path: PathBuf,
        /// What it asks for.
        geometry: Geometry,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        let content = |source| ConfigError::Content { path: path.to_owned(), source: Box::new(source) };
        let config: Self = toml::from_str(&text).map_err(content)?;
        let geometry = config.boxes.geometry();
        if geometry.is_sound() { Ok(config) } else { Err(ConfigError::Boxes { path: path.to_owned(), geometry }) }
    }
}

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
        let text = fs::read_to_string(path).unwrap();
        for key in ["control_port", "roce_port", "metrics_port", "peers", "box_socket", "interface", "route_table"] {
            assert!(text.contains(&format!("{key} =")), "{key} is not shown");
        }
    }

    #[test]
    fn errors_name_line_and_key() {
        let error =
            toml::from_str::<Config>("name = \"a\"\nlisten = \"10.0.0.1\"\nlissten = 3\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("lissten"), "{error}");
        let error = toml::from_str::<Config>("name = \"a\"\n").unwrap_err().to_string();
        assert!(error.contains("listen"), "{error}");
    }
}
