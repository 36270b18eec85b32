//! The first monitor's side: says what it does to whoever listens, and never waits for them.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use control::Channel;

use super::{TargetWord, Word};

/// Between two signs of life.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// Monitors that may listen at the same time.
const LISTENERS_MAX: usize = 4;

/// How long one of them may hold a word up: its receive buffer is full then, so it has not read for long.
const SEND_PATIENCE: Duration = Duration::from_millis(5);

/// Speaks to the second monitor.
#[derive(Clone, Debug)]
pub struct Herald {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

#[derive(Debug)]
struct State {
    monitor: String,
    targets: BTreeMap<String, TargetWord>,
    listeners: Vec<Channel<TcpStream>>,
}

impl Herald {
    /// Listens at `address` for the life of the process.
    ///
    /// # Errors
    /// Those of binding the address.
    pub fn listen(monitor: &str, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let state = State { monitor: monitor.to_owned(), targets: BTreeMap::new(), listeners: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let (welcoming, beating) = (Arc::clone(&state), Arc::clone(&state));
        thread::Builder::new().name("partner".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = locked(&welcoming).welcome(stream) {
                    tracing::warn!(%error, "a second monitor could not be welcomed");
                }
            }
        })?;
        thread::Builder::new().name("heartbeat".into()).spawn(move || {
            loop {
                locked(&beating).say(Vec::new());
                thread::sleep(HEARTBEAT);
            }
        })?;
        Ok(Self { state, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says what is new of one target. When this returns the word is on its way, whatever becomes of this process.
    pub fn tell(&self, word: TargetWord) {
        let mut state = locked(&self.state);
        state.targets.insert(word.target.clone(), word.clone());
        state.say(vec![word]);
    }
}

impl State {
    fn welcome(&mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(SEND_PATIENCE))?;
        if self.listeners.len() == LISTENERS_MAX {
            self.listeners.remove(0); // the oldest is the likeliest to be gone
        }
        let mut listener = Channel::new(stream);
        listener.send(&self.word(self.targets.values().cloned().collect())).map_err(io::Error::other)?;
        self.listeners.push(listener);
        Ok(())
    }

    fn say(&mut self, targets: Vec<TargetWord>) {
        let word = self.word(targets);
        self.listeners.retain_mut(|listener| listener.send(&word).is_ok());
    }

    fn word(&self, targets: Vec<TargetWord>) -> Word {
        Word { version: control::VERSION, monitor: self.monitor.clone(), targets }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
