//! The end that serves its memory and does nothing else. Queue pairs go with the conversation that asked for them.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64},
    thread,
};

use anyhow::{Context, Result, bail};
use control::Channel;
use rdma::{
    QpAttributes,
    soft::{self, Server, ServerHandle},
    verbs::{self, Choice, Registered, VerbsServer},
};
use remote_memory::{RemoteKey, Rights};

use super::{
    Carrier, PORT,
    conversation::{Answer, Ask},
    words::{self, Served},
};

/// Key of the memory where our responder serves it.
const KEY: RemoteKey = RemoteKey::new(0x1e70);

/// What has the queue pairs.
enum End {
    Soft(ServerHandle),
    Verbs { server: VerbsServer, memory: Registered },
}

/// Serves at `address`, and talks at `talk`; ends only with an error.
///
/// # Errors
/// When there is no adapter or no socket.
pub fn serve(carrier: Carrier, address: Ipv4Addr, talk: Ipv4Addr) -> Result<()> {
    let words = words::region();
    let end = match carrier {
        Carrier::Soft => soft_end(words, address)?,
        Carrier::Verbs => {
            let server = VerbsServer::open(&Choice::at(address), verbs::Options::default())?;
            End::Verbs { memory: server.register(words, Rights::ALL)?, server }
        }
    };
    let listener = TcpListener::bind((talk, PORT)).with_context(|| format!("listening at {talk}:{PORT}"))?;
    loop {
        let (stream, _) = listener.accept().context("waiting for the active end")?;
        let mut numbers = Vec::new();
        // A peer that hangs up is no failure; what it asked for goes with it.
        let _ = converse(stream, words, &end, &mut numbers);
        numbers.into_iter().for_each(|number| end.remove(number));
    }
}

fn soft_end(words: &'static [AtomicU64], address: Ipv4Addr) -> Result<End> {
    let served = Served { words, key: KEY };
    let mut server = Server::bind(address, soft::PORT, served, soft::Options::default())?;
    let handle = server.handle();
    thread::Builder::new().name("responder".to_owned()).spawn(move || {
        // Only a socket that fails ends it; the active end then sees a silent peer.
        if let Err(error) = server.run(&AtomicBool::new(false)) {
            eprintln!("the responder ended: {error}");
        }
    })?;
    Ok(End::Soft(handle))
}

fn converse(stream: TcpStream, words: &[AtomicU64], end: &End, numbers: &mut Vec<u32>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut channel = Channel::new(stream);
    loop {
        let answer = answer(channel.receive()?, words, end, numbers);
        channel.send(&answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))))?;
    }
}

fn answer(ask: Ask, words: &[AtomicU64], end: &End, numbers: &mut Vec<u32>) -> Result<Answer> {
    match ask {
        Ask::Fill { seed, len } => {
            words::fill(&words[..words.len().min(len as usize / size_of::<u64>())], seed);
            let (base, key) = end.place();
            Ok(Answer::Filled { base, key })
        }
        Ask::Connect(theirs) => {
            let ours = end.accept(theirs.into())?;
            numbers.push(ours.number);
            Ok(Answer::Connected(ours.into()))
        }
        Ask::Sum { offset, len } => {
            if offset.checked_add(len).is_none_or(|end| end > size_of_val(words) as u64) {
                bail!("{len} bytes at {offset} are not all in the memory");
            }
            Ok(Answer::Sum(words::sum(words, offset as usize, len as usize)))
        }
    }
}

impl End {
    /// Address and key of the memory.
    fn place(&self) -> (u64, u32) {
        match self {
            Self::Soft(_) => (0, KEY.raw()),
            Self::Verbs { memory, .. } => (memory.base(), memory.remote_key()),
        }
    }

    fn accept(&self, theirs: QpAttributes) -> Result<QpAttributes> {
        match self {
            Self::Soft(handle) => Ok(handle.add(theirs)?),
            Self::Verbs { server, .. } => Ok(server.accept(&theirs)?),
        }
    }

    fn remove(&self, number: u32) {
        match self {
            Self::Soft(handle) => drop(handle.remove(number)),
            Self::Verbs { server, .. } => drop(server.remove(number)),
        }
    }
}
