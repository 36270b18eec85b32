//! The configuration file as it is written: what TOML can check, with the place of every value.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use introspect::linux::contain::Means;
use serde::Deserialize;
use toml::Spanned;

use crate::detect::{Class, Quorum, Raises};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub monitor: Monitor,
    pub partner: Option<Spanned<Partner>>,
    #[serde(default)]
    pub sampling: Sampling,
    #[serde(default)]
    pub rule: Vec<Spanned<Rule>>,
    #[serde(default)]
    pub target: Vec<Spanned<Target>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Monitor {
    pub name: Spanned<String>,
    pub local: Ipv4Addr,
    pub journal: PathBuf,
    pub metrics: Option<SocketAddr>,
    pub cpu: Option<usize>,
    pub threads: Option<Spanned<usize>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Partner {
    pub listen: Option<SocketAddr>,
    pub first: Option<SocketAddr>,
    pub silence_ms: Option<Spanned<f64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sampling {
    pub period_ms: Option<Spanned<f64>>,
    pub missed_probability: Option<Spanned<f64>>,
    pub lost_probability: Option<Spanned<f64>>,
    pub path_deadline_ms: Option<Spanned<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub sensors: Spanned<String>,
    pub deadline_ms: Option<Spanned<f64>>,
    pub limit: Option<u64>,
    pub window_ms: Option<Spanned<f64>>,
    pub quorum: Option<Quorum>,
    pub raises: Option<Raises>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub name: Spanned<String>,
    pub backdoor: Spanned<SocketAddr>,
    pub on_hang: Spanned<super::OnHang>,
    #[serde(default)]
    pub rule: Vec<Spanned<Rule>>,
    pub share: Option<Spanned<bool>>,
    #[serde(default)]
    pub spare: Vec<Spare>,
    #[serde(default)]
    pub service: Vec<Spanned<Service>>,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    pub prepare_every_s: Option<Spanned<f64>>,
    pub evacuation_patience_s: Option<Spanned<f64>>,
    pub after: Option<After>,
    pub repair: Option<Spanned<Repair>>,
    pub agent: Option<Spanned<bool>>,
    #[serde(default)]
    pub carrier: Carrier,
    pub device: Option<Spanned<String>>,
    pub device_port: Option<Spanned<u8>>,
    #[serde(default)]
    pub kernel_sensor: Vec<Spanned<KernelSensor>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Carrier {
    #[default]
    Soft,
    Verbs,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KernelSensor {
    pub name: Spanned<String>,
    pub class: Option<Spanned<Class>>,
    pub variable: Option<Spanned<String>>,
    pub floor: Option<Spanned<bool>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repair {
    pub act: Option<bool>,
    #[serde(default)]
    pub hook: super::Hook,
    pub contain: Option<Spanned<Vec<Means>>>,
    pub spare_uids: Option<Vec<u32>>,
    pub spare_comms: Option<Vec<String>>,
    pub blast_cap: Option<Spanned<usize>>,
    pub again_s: Option<Spanned<f64>>,
    pub escalate: Option<bool>,
    #[serde(default)]
    pub module: Vec<Spanned<Module>>,
}

/// What else stands there are the policies of the module, which refuses those that it does not know.
#[derive(Debug, Deserialize)]
pub(super) struct Module {
    #[serde(rename = "use")]
    pub name: Option<Spanned<String>>,
    pub command: Option<Spanned<Vec<String>>>,
    pub sensors: Spanned<Vec<String>>,
    #[serde(flatten)]
    pub policies: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    pub reset: Option<Spanned<Reset>>,
    pub reset_after_s: Option<Spanned<f64>>,
    pub address: Option<super::Address>,
    pub settle_s: Option<Spanned<f64>>,
    pub drain_s: Option<Spanned<f64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reset {
    Never,
    Ask,
    After,
    Drained,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spare {
    pub name: Spanned<String>,
    pub control: Spanned<SocketAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub address: IpAddr,
    pub ports: Spanned<Vec<u16>>,
}
