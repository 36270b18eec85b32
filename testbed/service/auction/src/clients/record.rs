//! What clients were told of their trades: the check's other half. One JSON line for each trade.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::operation::{Receipt, Refusal, Trade};

/// A trade that was asked for, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was asked for.
    pub trade: Trade,
    /// What the client was told.
    pub told: Told,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// It was done: it must be there.
    Done(Receipt),
    /// It was not done: it must not be there.
    Refused(Refusal),
    /// Nothing, or nothing that is certain: it may be there once.
    Nothing,
}

/// Leaves a record.
///
/// # Errors
/// When the file cannot be written.
pub fn write(attempts: &[Attempt], to: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(to).with_context(|| format!("cannot make {}", to.display()))?);
    for attempt in attempts {
        serde_json::to_writer(&mut file, attempt)?;
        file.write_all(b"\n")?;
    }
    file.flush().with_context(|| format!("cannot write {}", to.display()))
}

/// Reads it again.
///
/// # Errors
/// When the file cannot be read, or a line is none of a record.
pub fn read(from: &Path) -> Result<Vec<Attempt>> {
    let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let lines = BufReader::new(file).lines().enumerate();
    let attempts = lines.map(|(number, line)| {
        serde_json::from_str(&line?).with_context(|| format!("{}:{}: no attempt", from.display(), number + 1))
    });
    attempts.collect()
}
