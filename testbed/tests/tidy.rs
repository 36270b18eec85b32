//! Tidiness of the whole repository: what a reviewer would otherwise have to say again and again.
//!
//! Looks at the files git tracks. Each rule names what to do instead.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The longest line, in characters.
const LINE_CHARACTERS_MAX: usize = 120;

/// The longest Rust file, in lines: beyond it there are surely two ideas in it.
const RUST_LINES_MAX: usize = 600;

/// The largest file that is tracked, in bytes: saved images and captures do not belong into git.
const FILE_BYTES_MAX: u64 = 600_000;

/// What may lie at the top, besides folders.
const TOP_FILES: [&str; 13] = [
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "clippy.toml",
    "AGENTS.md",
];

/// Words that say that something is not finished, and calls with better ones. Written in halves, so that this file
/// passes.
fn banned() -> Vec<(String, &'static str)> {
    let join = |halves: [&str; 2], instead| (halves.concat(), instead);
    vec![
        join(["dbg", "!("], "remove it, or trace it"),
        join(["todo", "!("], "finish it, or return an error that says what is missing"),
        join(["unimplemented", "!("], "finish it, or return an error that says what is missing"),
        join(["#[ign", "ore"], "assert today's answer and say why it is wrong"),
        join(["FIX", "ME"], "finish it, or write an issue"),
        join(["XX", "X:"], "finish it, or write an issue"),
        join(["TO", "DO"], "finish it, or write an issue"),
        join(["thread_", "rng"], "use a seeded generator, so that a failure can be repeated"),
        join(["static ", "mut "], "use an atomic or a lock"),
    ]
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace is above this package")
}

fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git is installed");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("names are text");
    // A file being moved is still listed.
    names.split_terminator('\0').filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}

fn sources() -> Vec<(String, String)> {
    let ours = |name: &str| {
        let ends = [".rs", ".c", ".h", ".py", ".sh", ".toml", ".md"].iter().any(|end| name.ends_with(end));
        ends || ["Makefile", "Kbuild", ".ci/run"].iter().any(|end| name.ends_with(end)) || name.starts_with("scripts/")
    };
    let names = tracked().into_iter().filter(|name| ours(name));
    names.filter_map(|name| fs::read_to_string(root().join(&name)).ok().map(|text| (name, text))).collect()
}

fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} places are untidy:\n{}", wrong.len(), wrong.join("\n"));
}

fn lines<'a>(sources: &'a [(String, String)], ends: &'a [&str]) -> impl Iterator<Item = (String, &'a str)> {
    let wanted = sources.iter().filter(|(name, _)| ends.iter().any(|end| name.ends_with(end)));
    wanted.flat_map(|(name, text)| {
        text.lines().enumerate().map(move |(number, line)| (format!("{name}:{}", number + 1), line))
    })
}

#[test]
fn lines_are_short_enough_to_read() {
    let sources = sources();
    let long = lines(&sources, &[".rs", ".c", ".h", ".py", ".sh", ".toml"]).filter(|(_, line)| {
        // A link cannot be broken.
        line.chars().count() > LINE_CHARACTERS_MAX && !line.contains("https://")
    });
    report(long.map(|(place, _)| format!("{place}: longer than {LINE_CHARACTERS_MAX} characters")).collect());
}

#[test]
fn lines_end_without_blanks() {
    let sources = sources();
    let blank = lines(&sources, &[".rs", ".c", ".h", ".py", ".sh", ".toml", "Makefile"])
        .filter(|(_, line)| line.ends_with(' ') || line.ends_with('\t'));
    report(blank.map(|(place, _)| format!("{place}: blanks at the end")).collect());
}

#[test]
fn files_hold_one_idea() {
    let long = sources().into_iter().filter(|(name, _)| name.ends_with(".rs"));
    let long = long.map(|(name, text)| (name, text.lines().count())).filter(|(_, lines)| *lines > RUST_LINES_MAX);
    report(long.map(|(name, lines)| format!("{name}: {lines} lines; split it by idea")).collect());
}

#[test]
fn every_rust_file_says_what_it_is() {
    let headless = sources().into_iter().filter(|(name, _)| name.ends_with(".rs"));
    let headless = headless.filter(|(_, text)| !text.starts_with("//!") && !text.starts_with("// SPDX"));
    report(headless.map(|(name, _)| format!("{name}: begin with `//!`: what this is and why it exists")).collect());
}

#[test]
fn nothing_unfinished_and_no_banned_call() {
    let (sources, banned) = (sources(), banned());
    let mut wrong = Vec::new();
    for (place, line) in lines(&sources, &[".rs", ".c", ".h", ".py", ".sh"]) {
        for (word, instead) in banned.iter().filter(|(word, _)| line.contains(word.as_str())) {
            wrong.push(format!("{place}: {word:?}: {instead}"));
        }
    }
    report(wrong);
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    // Of this machine, and of anybody's: the checkout's own place and home folders.
    let places = [root().display().to_string(), ["/ho", "me/"].concat(), ["/ro", "ot/"].concat()];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                wrong.push(format!("{name}:{}: a path of one machine: {line}", number + 1));
            }
        }
    }
    report(wrong);
}

/// The tests that the table of bad days names are there, under these names, in these files.
#[test]
fn every_bad_day_has_its_test() {
    let table = fs::read_to_string(root().join("docs/bad-days.md")).expect("docs/bad-days.md");
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| case |"));
    let (mut wrong, mut named) = (Vec::new(), 0);
    for row in rows {
        let last = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap_or_default();
        let mut words = last.split('`').skip(1).step_by(2);
        let (Some(file), Some(name), None) = (words.next(), words.next(), words.next()) else {
            wrong.push(format!("{row}: its last column is `FILE`: `NAME OF A TEST`"));
            continue;
        };
        named += 1;
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        // A test, and not some function of that name: the attribute stands in one of the lines above.
        let lines: Vec<&str> = text.lines().collect();
        let place = lines.iter().position(|line| line.contains(&format!("fn {name}(")));
        let is_test = place.is_some_and(|place| {
            lines[place.saturating_sub(3)..place].iter().any(|line| line.contains("#[test]") || line.contains("::test"))
        });
        if !is_test {
            wrong.push(format!("{file}: no test {name}, which docs/bad-days.md names"));
        }
    }
    assert!(named > 50, "only {named} tests were found in the table");
    report(wrong);
}

#[test]
fn no_stray_files() {
    let mut wrong = Vec::new();
    for name in tracked() {
        if !name.contains('/') && !TOP_FILES.contains(&name.as_str()) {
            wrong.push(format!("{name}: does it belong at the top?"));
        }
        let refused = [".pcap", ".orig", ".rej", ".swp", ".log", ".ko", ".o", ".cpio", ".pyc", "~"];
        if let Some(end) = refused.iter().find(|end| name.ends_with(**end)) {
            wrong.push(format!("{name}: {end} files are made, not kept"));
        }
        let bytes = fs::metadata(root().join(&name)).map_or(0, |data| data.len());
        if bytes > FILE_BYTES_MAX {
            wrong.push(format!("{name}: {bytes} bytes; more than {FILE_BYTES_MAX} do not belong into git"));
        }
    }
    report(wrong);
}
