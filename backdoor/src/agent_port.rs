//! The host's end of the virtio-serial port over which the agent in the target registers its boxes.
//!
//! The other side is a machine we do not trust, on a byte stream that neither QEMU nor the guest's reboot resets: a
//! message may stop in the middle and another one begin. [`deframer`] finds the next proper message after anything.
//! An agent says everything again when it starts, when it sees the port closed and opened anew, and now and then: that
//! changes nothing. What it said before and leaves out this time is no hook any more once it falls silent.

pub mod deframer;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use control::agent::{FromAgent, ToAgent};
use control::{Channel, FrameError, VERSION};

use crate::target::Target;
use deframer::Deframer;

/// How long a message may stop in the middle before it is taken for a torso. Also the time in which a request to stop
/// is noticed.
const STALL: Duration = Duration::from_millis(500);

/// How long an answer may wait for a guest that does not read. Then the port is closed, which tells the guest.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How often a port that is not there is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Serves the port at `path` until `stop` is set.
pub fn serve(path: &Path, target: &Target, stop: &AtomicBool) {
    let mut said = String::new();
    while !stop.load(Ordering::Relaxed) {
        let trouble = match UnixStream::connect(path) {
            Ok(stream) => {
                tracing::info!(port = %path.display(), "agent port open");
                converse(&stream, target, stop).err().map_or(String::new(), |error| error.to_string())
            }
            Err(error) => error.to_string(),
        };
        if trouble != said && !trouble.is_empty() {
            tracing::warn!(port = %path.display(), %trouble, "agent port not open");
        }
        said = trouble;
        thread::sleep(LOOK_EVERY);
    }
}

fn converse(stream: &UnixStream, target: &Target, stop: &AtomicBool) -> Result<(), FrameError> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
    let mut answers = Channel::new(stream);
    let mut deframer = Deframer::default();
    let mut chunk = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let mut source = stream;
        match source.read(&mut chunk) {
            Ok(0) => return Err(FrameError::Closed),
            Ok(len) => deframer.push(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                deframer.stalled();
                target.agent_settles();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(message) = deframer.next() {
            answers.send(&answer(target, message))?;
        }
    }
    Ok(())
}

/// Carries out what the agent says.
fn answer(target: &Target, message: FromAgent) -> ToAgent {
    match message {
        FromAgent::Hello(hello) if hello.version != VERSION => {
            let why = format!("this backdoor speaks version {VERSION}, the agent version {}", hello.version);
            tracing::warn!(%why, "agent turned away");
            ToAgent::Refused { why }
        }
        FromAgent::Hello(_) => {
            tracing::debug!(target = target.name(), "agent says hello");
            target.agent_greets();
            ToAgent::Welcome { version: VERSION }
        }
        FromAgent::Register(wanted) => match target.register(&wanted) {
            Ok(changed) => {
                if changed {
                    tracing::info!(region = wanted.name, bytes = wanted.len, writable = wanted.writable, "registered");
                }
                ToAgent::Registered { name: wanted.name }
            }
            Err(error) => {
                tracing::warn!(region = ?wanted.name, %error, "registration refused");
                ToAgent::Refused { why: error.to_string() }
            }
        },
    }
}
