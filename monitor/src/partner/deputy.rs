//! The second monitor's side: listens to the first, and knows whose turn it is.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use control::{Channel, FrameError};

use super::{Duty, TargetWord, Word};

/// How long connecting may take, and the pause after it failed.
const DIAL: Duration = Duration::from_millis(200);

/// Listens to the first monitor.
#[derive(Clone, Debug)]
pub struct Deputy {
    state: Arc<Mutex<State>>,
    silence: Duration,
}

#[derive(Debug)]
struct State {
    /// The last word, or the beginning of listening.
    heard: Instant,
    first: Option<String>,
    targets: HashMap<String, TargetWord>,
}

impl Deputy {
    /// Listens to the monitor at `first` for the life of the process; without a word for `silence` it counts as dead.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn follow(first: SocketAddr, silence: Duration) -> std::io::Result<Self> {
        let state = State { heard: Instant::now(), first: None, targets: HashMap::new() };
        let deputy = Self { state: Arc::new(Mutex::new(state)), silence };
        let listening = deputy.clone();
        thread::Builder::new().name("partner".into()).spawn(move || {
            loop {
                match listening.listen(first) {
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "the first monitor cannot be heard"),
                }
                thread::sleep(DIAL);
            }
        })?;
        Ok(deputy)
    }

    fn listen(&self, first: SocketAddr) -> Result<(), FrameError> {
        let stream = TcpStream::connect_timeout(&first, DIAL)?;
        stream.set_read_timeout(Some(self.silence))?;
        let mut channel = Channel::new(stream);
        loop {
            let word: Word = channel.receive()?;
            if word.version != control::VERSION {
                tracing::error!(theirs = word.version, ours = control::VERSION, "the first monitor needs our version");
                return Ok(());
            }
            locked(&self.state).take(word);
        }
    }

    /// Whether the first monitor has been silent for too long.
    pub fn is_first_silent(&self) -> bool {
        locked(&self.state).heard.elapsed() >= self.silence
    }

    /// What is to be done about `target`, which has been found hung here.
    pub fn duty(&self, target: &str) -> Duty {
        let state = locked(&self.state);
        let word = state.targets.get(target);
        let incident = word.and_then(|word| word.incident.clone());
        let name = state.first.as_deref().unwrap_or("the first monitor");
        if incident.as_ref().is_some_and(|incident| incident.is_done) {
            return Duty::Done;
        }
        if state.heard.elapsed() >= self.silence {
            let why = format!("{name} has been silent for {:?}", self.silence);
            return Duty::StandIn { why, claim: word.map(|word| word.claim), incident };
        }
        match word {
            Some(word) if word.is_path_lost && incident.is_none() => {
                Duty::StandIn { why: format!("{name} has lost its path"), claim: None, incident: None }
            }
            Some(_) if incident.is_some() => Duty::Hold { why: format!("{name} has fenced it") },
            _ => Duty::Hold { why: format!("{name} watches it") },
        }
    }
}

impl State {
    fn take(&mut self, word: Word) {
        self.heard = Instant::now();
        self.first = Some(word.monitor);
        self.targets.extend(word.targets.into_iter().map(|one| (one.target.clone(), one)));
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use control::backdoor::FenceToken;

    use super::super::{Herald, IncidentWord, Partner};
    use super::*;

    const SILENCE: Duration = Duration::from_secs(20);

    fn word(is_path_lost: bool, incident: Option<IncidentWord>) -> TargetWord {
        TargetWord { target: "web".into(), claim: 77, is_path_lost, incident }
    }

    fn incident(is_done: bool) -> Option<IncidentWord> {
        let token = FenceToken { target: "web".into(), epoch: 1, ram_key: 2, secret: 3 };
        Some(IncidentWord { token, holders: [(0, "a".to_owned())].into(), is_done })
    }

    /// Waits until the deputy says so; the words travel over TCP.
    fn comes(deputy: &Deputy, expected: impl Fn(&Duty) -> bool) {
        let begin = Instant::now();
        loop {
            let duty = deputy.duty("web");
            if expected(&duty) {
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "it stays {duty:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_second_holds_while_the_first_speaks_and_stands_in_when_its_path_is_lost() {
        let herald = Herald::listen("m1", "127.0.0.1:0".parse().unwrap()).unwrap();
        let deputy = Deputy::follow(herald.address(), SILENCE).unwrap();
        let first = Partner::First(herald);
        first.tell(word(false, None));
        comes(&deputy, |duty| matches!(duty, Duty::Hold { why } if why == "m1 watches it"));
        assert!(!deputy.duty("web").lets_repair(), "the first does");
        first.tell(word(true, None));
        comes(&deputy, |duty| matches!(duty, Duty::StandIn { claim: None, incident: None, .. }));
        assert!(deputy.duty("web").lets_repair(), "the first cannot");
        first.tell(word(true, incident(false)));
        comes(&deputy, |duty| matches!(duty, Duty::Hold { why } if why == "m1 has fenced it"));
        assert!(!deputy.duty("web").lets_repair());
        first.tell(word(true, incident(true)));
        comes(&deputy, |duty| *duty == Duty::Done);
        assert!(!deputy.duty("web").lets_repair(), "it is dead");
        assert_eq!(first.duty("web"), Duty::Act, "the first waits for nobody");
        assert!(first.duty("web").lets_repair());
    }

    #[test]
    fn a_first_monitor_that_falls_silent_leaves_its_claim_its_token_and_the_spare() {
        let herald = Herald::listen("m1", "127.0.0.1:0".parse().unwrap()).unwrap();
        // Shorter than a heartbeat: between two of them the first counts as silent.
        let deputy = Deputy::follow(herald.address(), Duration::from_millis(20)).unwrap();
        herald.tell(word(false, incident(false)));
        let left = incident(false);
        comes(&deputy, |duty| matches!(duty, Duty::StandIn { claim: Some(77), incident, .. } if *incident == left));
        assert!(!Duty::StandIn { why: String::new(), claim: Some(77), incident: left }.lets_repair(), "it is fenced");
    }

    #[test]
    fn a_first_monitor_that_was_never_heard_has_no_claim_to_leave() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let deputy = Deputy::follow(nobody, Duration::from_millis(50)).unwrap();
        assert!(matches!(deputy.duty("web"), Duty::Hold { .. }), "not before the silence is over");
        comes(&deputy, |duty| matches!(duty, Duty::StandIn { claim: None, incident: None, .. }));
    }
}
