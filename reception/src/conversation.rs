//! The conversation with one peer, from its greeting to its end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::backdoor::{Reply, Request};
use control::{Channel, FrameError, VERSION};

use super::stream::Patient;
use super::{NOTICE, Reception};

/// How long a peer may take to greet.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// What is kept for one peer, from the moment it connected. Dropped when the conversation is over, and with it all that
/// the peer was given.
pub trait Guest {
    /// The answer to a greeting.
    fn welcome(&self) -> Reply;

    /// Whether what this peer was told when it came is of the past: its conversation then ends, so that it dials anew
    /// and is told what there is now.
    fn is_stale(&self) -> bool;

    /// The answer to a request that is no greeting.
    ///
    /// # Errors
    /// A sentence for people, with which the peer is refused.
    fn answer(&mut self, speaker: &Speaker<'_>, request: Request) -> Result<Reply, String>;
}

/// Who speaks, for logs.
#[derive(Clone, Copy, Debug)]
pub struct Speaker<'a> {
    /// Its address.
    pub from: IpAddr,
    /// What it calls itself.
    pub name: &'a str,
}

/// Answers a peer until one side ends it.
pub(crate) fn hold(reception: &Reception, stream: Patient, from: IpAddr, guest: impl Guest) {
    let mut conversation = Conversation { reception, from, name: None, guest };
    match conversation.serve(&mut Channel::new(stream)) {
        Ok(()) | Err(FrameError::Closed) => {}
        Err(error) => tracing::warn!(%from, peer = ?conversation.name, %error, "control connection ended"),
    }
}

struct Conversation<'a, G> {
    reception: &'a Reception,
    from: IpAddr,
    /// The peer's name, once it has greeted.
    name: Option<String>,
    guest: G,
}

impl<G: Guest> Conversation<'_, G> {
    fn serve(&mut self, channel: &mut Channel<Patient>) -> Result<(), FrameError> {
        let accepted = Instant::now();
        loop {
            while !channel.stream().begins(NOTICE)? {
                let rude = self.name.is_none() && accepted.elapsed() > GREETING_PATIENCE;
                if rude || self.reception.is_stopping() || self.guest.is_stale() {
                    return Ok(());
                }
            }
            let request = channel.receive()?;
            if self.guest.is_stale() {
                return Ok(()); // the peer dials anew and is told what there is now
            }
            let reply = self.answer(request);
            channel.stream().allow_message();
            channel.send(&reply)?;
            if self.name.is_none() {
                return Ok(()); // it did not greet as it should
            }
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        let outcome = match (request, &self.name) {
            (Request::Hello(hello), _) => {
                // One of another version is told ours, so that it can say so, and then nothing more: it has no name.
                if hello.version == VERSION {
                    self.name = Some(hello.name.chars().take(64).collect());
                } else {
                    tracing::warn!(from = %self.from, theirs = hello.version, ours = VERSION, "another version");
                }
                Ok(self.guest.welcome())
            }
            (_, None) => Err("say hello first".to_owned()),
            (request, Some(name)) => self.guest.answer(&Speaker { from: self.from, name }, request),
        };
        outcome.unwrap_or_else(|why| {
            tracing::info!(from = %self.from, peer = ?self.name, why, "refused");
            Reply::Refused { why }
        })
    }
}
