//! What a run of `bench` came to: machine, commit and lines; as a table for people, as JSON for programs.

use std::{fmt, fs, process::Command, time::SystemTime};

use serde::Serialize;

use super::line::Line;
use crate::scenario::Host;

/// Everything that was measured, and where.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// The machine.
    pub host: Host,
    /// Its processor's name.
    pub processor: String,
    /// Mean number of running processes over the minute before: what else the machine was doing.
    pub load: f64,
    /// What git calls the state of the sources.
    pub commit: String,
    /// Whether the compiler optimised.
    pub optimised: bool,
    /// When it began, in seconds since 1970.
    pub began_unix_s: u64,
    /// How long it took, in seconds.
    pub took_s: f64,
    /// The lines.
    pub lines: Vec<Line>,
}

impl BenchResult {
    /// Of this machine, without lines.
    pub fn begin() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            host: Host::here(),
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            load: load(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            commit: commit(),
            optimised: !cfg!(debug_assertions),
            began_unix_s: since.as_secs(),
            took_s: 0.0,
            lines: Vec::new(),
        }
    }

    /// Goals that were met, and goals in all.
    pub fn goals(&self) -> (usize, usize) {
        let goals = self.lines.iter().filter_map(|line| line.met);
        (goals.clone().filter(|met| *met).count(), goals.count())
    }
}

/// The table.
impl fmt::Display for BenchResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { kernel, cpus, accelerator } = &self.host;
        let Self { processor, load, commit, .. } = self;
        writeln!(f, "machine  {processor}, {cpus} CPUs, Linux {kernel}, guests by {accelerator}, load {load:.2}")?;
        let slow = if self.optimised { "" } else { ", a debug build: use `make bench`" };
        writeln!(f, "commit   {commit}{slow}\n")?;
        let (ours, worst, paper, limit) = ("ours", "worst", "paper", "limit");
        writeln!(f, "{:32}{ours:>10}{worst:>10}{paper:>8}{limit:>10}         ratio  goal", "")?;
        for line in &self.lines {
            self.row(f, line)?;
        }
        let (met, all) = self.goals();
        writeln!(
            f,
            "\n{met} of {all} goals met, in {:.0} s. The limit is what the same path costs without us:",
            self.took_s
        )?;
        let mut said: Vec<&str> = Vec::new();
        for line in &self.lines {
            let (name, is) = (&line.name, line.limit_is);
            if !said.contains(&is) {
                writeln!(f, "  {name:34}{is}")?;
                said.push(is);
            }
        }
        Ok(())
    }
}

impl BenchResult {
    fn row(&self, f: &mut fmt::Formatter<'_>, line: &Line) -> fmt::Result {
        let Line { name, unit, ratio, .. } = line;
        let (ours, worst, limit) = (digits(line.ours), digits(line.worst), digits(line.limit));
        let paper = line.paper.map_or_else(|| "-".to_owned(), digits);
        let goal = line.goal.map_or_else(|| "-".to_owned(), |goal| goal.to_string());
        let met = match line.met {
            Some(true) => "  met",
            Some(false) => "  MISSED",
            None => "",
        };
        let row = format!("{name:32}{ours:>10}{worst:>10}{paper:>8}{limit:>10} {unit:6}{ratio:>7.2}  {goal:14}{met}");
        writeln!(f, "{}", row.trim_end())
    }
}

/// Three digits that count, as few as the value needs.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

fn load(loadavg: &str) -> f64 {
    loadavg.split(' ').next().and_then(|minute| minute.parse().ok()).unwrap_or_default()
}

fn commit() -> String {
    let asked = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if said.is_empty() { "unknown".to_owned() } else { said }
}

#[cfg(test)]
mod tests {
    use super::super::line::{Goal, Group, Sample, Unit};
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_line_and_says_which_goal_was_missed() {
        let ours = Sample { median: 9.0, worst: 12.0, samples: 5 };
        let line = |name: &str| Line::new(Group::Read, name.into(), Unit::Micros, &ours, 6.0, "a bare echo");
        let mut result = BenchResult::begin();
        result.lines = vec![
            line("good").goal(Goal::RatioAtMost(1.5)).paper(11.0),
            line("bad").goal(Goal::AtMost(8.0)),
            line("plain"),
        ];
        let table = result.to_string();
        let row = |name: &str| {
            let found = table.lines().find(|row| row.starts_with(name));
            found.unwrap_or_else(|| panic!("no row {name}:\n{table}")).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row("good"), "good 9.00 12.0 11.0 6.00 us 1.50 ratio <= 1.5 met");
        assert_eq!(row("bad"), "bad 9.00 12.0 - 6.00 us 1.50 <= 8 MISSED");
        assert_eq!(row("plain"), "plain 9.00 12.0 - 6.00 us 1.50 -");
        assert!(table.contains("1 of 2 goals met") && table.matches("a bare echo").count() == 1, "{table}");
        assert!(table.lines().all(|row| row.len() <= 120), "{table}");
    }

    #[test]
    fn the_machine_is_read_from_proc() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: Some CPU\n"), "Some CPU");
        assert_eq!(load("0.52 0.58 0.59 1/1 2\n"), 0.52);
    }
}
