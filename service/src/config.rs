//! Configuration files: how they are read, and errors that name file, line, key, what is wrong and how it is put right.
//!
//! What a file must say is each daemon's own: a type for serde that denies unknown fields, and checks of what that
//! type cannot tell. Both kinds of error come out of here as the same [`ConfigError`].

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest name of a target, a spare or a monitor, in bytes: it stands in every log line.
const NAME_BYTES_MAX: usize = 64;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; `None` if the file as a whole is at fault.
    pub line: Option<usize>,
    /// The key, as a path from the top of the file.
    pub key: String,
    /// What is wrong, and the fix.
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.what)
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file at `path`, for [`Source`].
///
/// # Errors
/// It cannot be read, or is no text.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let unread = |error| Source { file: path, text: "" }.whole("", format!("cannot be read: {error}"));
    std::fs::read_to_string(path).map_err(unread)
}

/// The text of a configuration file, which knows the place of everything in it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name, for errors.
    pub file: &'a Path,
    /// What it says.
    pub text: &'a str,
}

impl Source<'_> {
    /// The file as a `T`.
    ///
    /// # Errors
    /// The parser's own complaint, with its place.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        toml::from_str(self.text).map_err(|error| self.parse_error(&error))
    }

    /// An error at `span`, about `key`.
    pub fn error(&self, span: Range<usize>, key: impl Into<String>, what: impl Into<String>) -> ConfigError {
        ConfigError { line: Some(self.line_of(span.start)), ..self.whole(key, what) }
    }

    /// An error about `key`, such as `vm.qmp`, at the line where it stands, if it does.
    pub fn error_at(&self, key: &str, what: impl Into<String>) -> ConfigError {
        let line = self.place_of(key).map(|span| self.line_of(span.start));
        ConfigError { line, ..self.whole(key, what) }
    }

    /// An error of the file as a whole.
    pub fn whole(&self, key: impl Into<String>, what: impl Into<String>) -> ConfigError {
        ConfigError { file: self.file.to_owned(), line: None, key: key.into(), what: what.into() }
    }

    fn parse_error(&self, error: &toml::de::Error) -> ConfigError {
        let what = error.message().trim_end().replace('\n', ", ");
        match error.span() {
            // A field that is missing at the top has no place.
            Some(span) if !span.is_empty() || span.start > 0 => self.error(span.clone(), self.key_at(span.start), what),
            _ => self.whole("", what),
        }
    }

    fn place_of(&self, key: &str) -> Option<Range<usize>> {
        let all = DeTable::parse(self.text).ok()?;
        let (mut table, mut place) = (all.get_ref(), None);
        for name in key.split('.') {
            let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
            place = Some(key.span());
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        place
    }

    /// The path of the key whose name or value is at `place`; of a file that is no TOML, what its line begins with.
    fn key_at(&self, place: usize) -> String {
        if let Ok(all) = DeTable::parse(self.text) {
            return path_in(all.get_ref(), place).unwrap_or_default();
        }
        let line = self.text.lines().nth(self.line_of(place) - 1).unwrap_or_default();
        line.split(['=', '#']).next().unwrap_or_default().trim().to_owned()
    }

    fn line_of(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }
}

/// A table's own span is its header, so what stands under it is looked at first.
fn path_in(table: &DeTable<'_>, place: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let inner = below(value, place).map(|inner| format!("{}.{inner}", key.get_ref()));
        let here = key.span().contains(&place) || spans(value, place);
        inner.or_else(|| here.then(|| key.get_ref().to_string()))
    })
}

fn below(value: &Spanned<DeValue<'_>>, place: usize) -> Option<String> {
    match value.get_ref() {
        DeValue::Table(table) => path_in(table, place),
        DeValue::Array(values) => values.iter().find_map(|value| below(value, place)),
        _ => None,
    }
}

fn spans(value: &Spanned<DeValue<'_>>, place: usize) -> bool {
    let inside = |value: &Spanned<DeValue<'_>>| value.span().contains(&place);
    inside(value) || value.get_ref().as_array().is_some_and(|values| values.iter().any(inside))
}

/// Checks that several daemons make. Each says what is wrong and how it is put right.
impl Source<'_> {
    /// A name that may stand in logs, metrics and file names.
    ///
    /// # Errors
    /// Empty, too long, or with other letters.
    pub fn check_name(&self, key: &str, name: &str) -> Result<(), ConfigError> {
        let proper = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(proper) {
            let what = format!("{name:?} is no name; 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.` are");
            return Err(self.error_at(key, what));
        }
        Ok(())
    }

    /// An address of one interface: RoCEv2's check sums cover it, so it cannot be "any".
    ///
    /// # Errors
    /// The address is no machine's own.
    pub fn check_address(&self, key: &str, address: Ipv4Addr) -> Result<(), ConfigError> {
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            let what = format!("{address} is no address of one interface; name the one that the others reach");
            return Err(self.error_at(key, what));
        }
        Ok(())
    }

    /// The ports of a daemon that is spoken to over RoCEv2 and a control connection, under their usual keys.
    ///
    /// # Errors
    /// See [`Self::check_ports`]; RoCEv2 has UDP's ports for itself.
    pub fn check_daemon_ports(&self, control: u16, metrics: Option<u16>, roce: u16) -> Result<(), ConfigError> {
        match metrics {
            Some(metrics) => self.check_ports(&[("control_port", control), ("metrics_port", metrics)])?,
            None => self.check_ports(&[("control_port", control)])?,
        }
        self.check_ports(&[("roce_port", roce)])
    }

    /// TCP ports of one daemon, with their keys.
    ///
    /// # Errors
    /// One is 0, or two are the same.
    pub fn check_ports(&self, ports: &[(&str, u16)]) -> Result<(), ConfigError> {
        for (index, (key, port)) in ports.iter().enumerate() {
            if *port == 0 {
                return Err(self.error_at(key, "0 is no port that anybody could find; name one from 1 to 65535"));
            }
            if let Some((other, _)) = ports[..index].iter().find(|(_, other)| other == port) {
                return Err(self.error_at(key, format!("{port} is {other} already; give each its own")));
            }
        }
        Ok(())
    }

    /// A processor of this machine.
    ///
    /// # Errors
    /// There are fewer.
    pub fn check_cpu(&self, key: &str, cpu: usize) -> Result<(), ConfigError> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        if cpu >= count {
            let what = format!("this machine has CPUs 0 to {}; name one of them or leave the key out", count - 1);
            return Err(self.error_at(key, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)] // only what is wrong with it is looked at
    struct File {
        listen: Ipv4Addr,
        vm: Vm,
        #[serde(default)]
        target: Vec<Target>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Vm {
        qmp: String,
        ports: Option<Vec<u16>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Target {
        name: String,
    }

    const GOOD: &str =
        "listen = \"10.0.0.1\"\n\n[vm]\nqmp = \"q\" # where\nports = [\n  1,\n]\n\n[[target]]\nname = \"a\"\n";

    fn source(text: &str) -> Source<'_> {
        Source { file: Path::new("d.toml"), text }
    }

    fn check(old: &str, new: &str, expected: &str) {
        assert!(GOOD.contains(old), "{old:?} is not in the file");
        let error = source(&GOOD.replacen(old, new, 1)).parse::<File>().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn every_complaint_of_the_parser_has_file_line_and_the_path_of_its_key() {
        source(GOOD).parse::<File>().unwrap();
        check("10.0.0.1", "10.0.0", "d.toml:1: listen: invalid IPv4 address syntax");
        check("qmp", "qnp", "d.toml:4: vm.qnp: unknown field `qnp`, expected `qmp` or `ports`");
        check("\"q\"", "7", "d.toml:4: vm.qmp: invalid type: integer `7`, expected a string");
        check("  1,", "  70000,", "d.toml:6: vm.ports: invalid value: integer `70000`, expected u16");
        check("name = \"a\"", "nom = 1", "d.toml:10: target.nom: unknown field `nom`, expected `name`");
        check("qmp = \"q\" # where\n", "", "d.toml:3: vm: missing field `qmp`");
        check("listen = \"10.0.0.1\"\n", "", "d.toml: missing field `listen`");
    }

    #[test]
    fn what_is_no_toml_has_its_place_too() {
        let place = |old: &str, new: &str| {
            let error = source(&GOOD.replacen(old, new, 1)).parse::<File>().unwrap_err();
            assert!(!error.what.is_empty());
            (error.line, error.key)
        };
        assert_eq!(place("qmp = \"q\"", "qmp = \"q"), (Some(4), "qmp".to_owned()));
        assert_eq!(place("[vm]", "[vm"), (Some(3), "[vm".to_owned()));
        assert_eq!(place("qmp = \"q\" # where", "qmp = \"q\"\nqmp = \"r\""), (Some(5), "qmp".to_owned()));
        assert_eq!(place("\n[vm]", "\n\u{7f}[vm]").0, Some(3));
    }

    #[test]
    fn a_check_finds_the_line_of_its_key_or_says_that_there_is_none() {
        let source = source(GOOD);
        let said = |key| source.error_at(key, "no").to_string();
        assert_eq!(said("vm.ports"), "d.toml:5: vm.ports: no");
        assert_eq!(said("vm.port"), "d.toml: vm.port: no");
        assert_eq!(said("target.name"), "d.toml:9: target.name: no");
    }

    #[test]
    fn names_addresses_ports_and_processors_that_cannot_be_are_refused() {
        let source = source(GOOD);
        let check = |outcome: Result<(), ConfigError>, expected: &str| match outcome {
            Err(error) => assert_eq!(error.to_string(), expected),
            Ok(()) => panic!("accepted, not refused with {expected:?}"),
        };
        source.check_name("listen", "web-1.a_b").unwrap();
        let no_name = "is no name; 1 to 64 letters, digits, `-`, `_` and `.` are";
        for name in ["", "a b", "a\nb", &"a".repeat(65)] {
            check(source.check_name("listen", name), &format!("d.toml:1: listen: {name:?} {no_name}"));
        }
        source.check_address("listen", Ipv4Addr::LOCALHOST).unwrap();
        let no_address = "is no address of one interface; name the one that the others reach";
        for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
            check(source.check_address("listen", address), &format!("d.toml:1: listen: {address} {no_address}"));
        }
        source.check_ports(&[("a", 1), ("b", 2)]).unwrap();
        check(source.check_ports(&[("a", 1), ("b", 1)]), "d.toml: b: 1 is a already; give each its own");
        let zero = "d.toml: a: 0 is no port that anybody could find; name one from 1 to 65535";
        check(source.check_ports(&[("a", 0)]), zero);
        source.check_cpu("vm.ports", 0).unwrap();
        let error = source.check_cpu("vm.ports", 1 << 20).unwrap_err().to_string();
        assert!(error.starts_with("d.toml:5: vm.ports: this machine has CPUs 0 to "), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read(Path::new("/nowhere/d.toml")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/d.toml: cannot be read: No such file or directory (os error 2)");
    }
}
