//! Errors of a configuration file: which file, which line, which key, what is wrong and how it is put right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

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

/// The text of a configuration file, to turn byte spans into lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
}

impl Source<'_> {
    /// An error at `span`, about `key`.
    pub fn error(&self, span: Range<usize>, key: impl Into<String>, what: impl Into<String>) -> ConfigError {
        let (key, what) = (key.into(), what.into());
        ConfigError { file: self.file.to_owned(), line: Some(self.line_of(span.start)), key, what }
    }

    /// The parser's own complaint; the key is the one that stands on its line.
    pub fn parse_error(&self, error: &toml::de::Error) -> ConfigError {
        let what = error.message().trim_end().replace('\n', ", ");
        match error.span() {
            Some(span) => {
                let line = self.text.lines().nth(self.line_of(span.start) - 1).unwrap_or_default();
                let key = line.split(['=', '#']).next().unwrap_or_default().trim();
                self.error(span, key, what)
            }
            None => ConfigError { file: self.file.to_owned(), line: None, key: String::new(), what },
        }
    }

    fn line_of(&self, at: usize) -> usize {
        self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
    }
}
