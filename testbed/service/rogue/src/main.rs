//! What drowns a machine (a fork bomb, a memory hog), the useful work that suffers from it, and what a context switch
//! and a process cost, and those who must not suffer from a repair. Bombs and hogs run in guests only.

mod bomb;
mod forks;
mod hog;
mod stay;
mod switches;
mod work;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Be this user, who must not be root: what is done here is to be survived.
    #[arg(long)]
    uid: Option<u32>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Processes that make processes, and make those anew that die.
    Bomb(bomb::Bomb),
    /// A controller whose children take memory.
    Hog(hog::Hog),
    /// Processes that do no harm.
    Stay(stay::Stay),
    /// A useful program: does the same piece of work again and again, and says how long each took, in milliseconds.
    Work(work::Work),
    /// What a process costs that does nothing, in nanoseconds.
    Forks(forks::Forks),
    /// What a context switch costs on the machine as it is now, in nanoseconds.
    Switches(switches::Switches),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rogue: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(uid) = arguments.uid {
        return Err(as_user(uid));
    }
    match arguments.action {
        Action::Bomb(bomb) => bomb.run(),
        Action::Hog(hog) => hog.run(),
        Action::Stay(stay) => stay.run(),
        Action::Work(work) => work.run(),
        Action::Forks(forks) => forks.run(),
        Action::Switches(switches) => switches.run(),
    }
}

/// This program, with the same words but the user's: returns only if that fails.
fn as_user(uid: u32) -> anyhow::Error {
    let words = std::env::args_os().skip(1).scan(false, |is_value, word| {
        let is_ours = *is_value || word == "--uid";
        *is_value = word == "--uid";
        Some((!is_ours).then_some(word))
    });
    let words: Vec<_> = words.flatten().collect();
    match std::env::current_exe().context("who am I") {
        Ok(program) => Command::new(program).args(words).uid(uid).gid(uid).exec().into(),
        Err(error) => error,
    }
}

/// This program as a child, with other words; a machine that has no room for it is what it is for.
fn spawn(words: &[String]) -> Option<std::process::Child> {
    Command::new(std::env::current_exe().ok()?).args(words).spawn().ok()
}

/// Whether a child was made and has not ended.
fn lives(child: &mut Option<std::process::Child>) -> bool {
    child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
}
