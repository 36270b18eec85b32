//! What a monitor says to the `reinstate` daemon of a spare, over TCP. One request, one reply, in order.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{Hello, backdoor::FenceToken};

/// The default TCP port of a spare's control plane.
pub const PORT: u16 = 4792;

/// A request to a spare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Opens the conversation; answered by [`Reply::Welcome`].
    Hello(Hello),
    /// Asks the spare to get ready for a target while it is healthy: connect to its backdoor, learn its kernel, check
    /// that the service runs here. Idempotent; answered by [`Reply::Ready`] or [`Reply::NotReady`].
    Prepare(Assignment),
    /// Hands over a fenced target; answered by [`Reply::Evacuated`] when every session is live or given up.
    Evacuate(Evacuation),
    /// Takes an order back whose answer was lost, so that another spare can have it. Answered by [`Reply::Evacuated`]
    /// if it was carried out here, else by [`Reply::Withdrawn`]; an order under way is brought to its end first.
    Withdraw(Evacuation),
    /// Ends the service here, after a time to drain: the address can then go back to its target; answered by
    /// [`Reply::GivenBack`]. Idempotent: a spare that serves for nobody has nothing to give back.
    GiveBack(GiveBack),
    /// Asks which connections are left of a service that was taken over; answered by [`Reply::Draining`].
    Sessions {
        /// Name of the target whose service it is.
        target: String,
    },
}

/// A target a spare stands by for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Name of the target.
    pub target: String,
    /// Control address of the target's backdoor.
    pub backdoor: SocketAddr,
    /// The addresses that move, with the ports that are served there.
    pub services: Vec<Service>,
}

/// One address and its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The address clients connect to.
    pub address: IpAddr,
    /// The TCP ports to carry over.
    pub ports: Vec<u16>,
}

/// Orders a spare to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuation {
    /// Proof that the target is fenced.
    pub token: FenceToken,
    /// Upper bound of the time since the target last showed life, in milliseconds.
    pub silent_ms: u64,
    /// What was assigned (again, so that a restarted spare can act).
    pub assignment: Assignment,
    /// The part this spare takes when several share the work; all of it if absent.
    #[serde(default)]
    pub share: Option<Share>,
    /// Where machines spoke from that were fenced a moment ago, too: no client there can answer or ever will.
    #[serde(default)]
    pub absent: Vec<IpAddr>,
}

/// One part of an evacuation that several spares carry out, each with another index under the same token.
///
/// Shared are **service addresses**, not clients: of the assignment's distinct addresses in ascending order, a spare
/// takes those whose place modulo `of` is `index`. An address is never on two machines. A part may be empty: its report
/// is then empty too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Share {
    /// Which part, from 0.
    pub index: u32,
    /// How many parts there are.
    pub of: u32,
}

impl Share {
    /// Whether it names a part at all.
    pub fn is_sound(self) -> bool {
        self.index < self.of
    }

    /// The addresses of `assignment` that belong to this part, ascending.
    pub fn addresses(self, assignment: &Assignment) -> Vec<IpAddr> {
        let all: BTreeSet<IpAddr> = assignment.services.iter().map(|service| service.address).collect();
        let (index, of) = (self.index as usize, self.of as usize);
        all.into_iter().enumerate().filter(|(place, _)| of > 0 && place % of == index).map(|(_, it)| it).collect()
    }
}

/// Orders a spare to end the service it took over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBack {
    /// Name of the target whose service it is.
    pub target: String,
    /// How long sessions may go on before those that are left are reset, in milliseconds.
    pub drain_ms: u64,
    /// How long to wait for the answer, if not for as long as sessions may go on: [`Reply::Draining`] comes then, and
    /// the service goes on as before.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The conversation is open.
    Welcome {
        /// See [`crate::VERSION`].
        version: u32,
    },
    /// Everything that can be done beforehand is done.
    Ready {
        /// The target's kernel release, as its memory says.
        kernel: String,
    },
    /// What stands in the way.
    NotReady {
        /// A sentence for people.
        why: String,
    },
    /// The evacuation has ended.
    Evacuated(Report),
    /// The order has not been carried out here and never will be; nothing of an earlier life of this spare is left.
    Withdrawn,
    /// The spare no longer has the target's addresses.
    GivenBack {
        /// Connections that were left when the time was over: their clients were reset.
        aborted: u64,
    },
    /// The service goes on here: these connections are left.
    Draining {
        /// Sessions that were carried over.
        recovered: u64,
        /// Connections of clients that came since.
        others: u64,
    },
    /// Nothing was taken over, or nothing given back, and why.
    Refused {
        /// A sentence for people.
        why: String,
    },
}

/// How an evacuation went. Times are counted from the moment the order arrived, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Every session that was found, live or not.
    pub sessions: Vec<Session>,
    /// Stages in the order in which they began.
    pub stages: Vec<Stage>,
    /// What was wrong in the target's memory, in words; bounded.
    pub damage: Vec<String>,
}

/// A stretch of an evacuation: `extract`, `probe`, `rebuild`, `address`, `resume`, ….
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Begin, in microseconds since the order.
    pub begin_us: u64,
    /// End, in microseconds since the order.
    pub end_us: u64,
}

/// One client connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The service's end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
    /// What became of it.
    pub outcome: Outcome,
    /// Bytes put back into the receive log and the send queue.
    pub bytes: u64,
    /// When it was live again, in microseconds since the order.
    pub live_us: Option<u64>,
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The client will not notice: the application has the session, or had closed it already and the spare's kernel
    /// brings it to its end.
    Resumed,
    /// It cannot be resumed; the client was reset.
    Lost {
        /// Why, in a sentence for people.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_belongs_to_exactly_one_part() {
        let service = |address: &str| Service { address: address.parse().unwrap(), ports: vec![80] };
        let services = ["fd77::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"].map(service).to_vec();
        let assignment = Assignment { target: "a".into(), backdoor: "127.0.0.1:1".parse().unwrap(), services };
        let part = |index, of| Share { index, of }.addresses(&assignment).iter().map(ToString::to_string).collect();
        let parts: [Vec<String>; 2] = [part(0, 2), part(1, 2)];
        assert_eq!(parts, [vec!["10.0.0.1", "fd77::1"], vec!["10.0.0.2"]]);
        let parts: [Vec<String>; 2] = [part(0, 1), part(3, 4)];
        assert_eq!(parts, [vec!["10.0.0.1", "10.0.0.2", "fd77::1"], vec![]]);
        assert!(!Share { index: 2, of: 2 }.is_sound() && !Share { index: 0, of: 0 }.is_sound());
    }

    #[test]
    fn an_order_without_a_share_is_for_the_whole() {
        let token = r#"{"target":"a","epoch":1,"ram_key":2,"secret":3}"#;
        let assignment = r#"{"target":"a","backdoor":"127.0.0.1:1","services":[]}"#;
        let text = format!(r#"{{"ask":"evacuate","token":{token},"silent_ms":1,"assignment":{assignment}}}"#);
        let Ok(Request::Evacuate(order)) = serde_json::from_str(&text) else { panic!("{text}") };
        assert_eq!(order.share, None);
    }
}
