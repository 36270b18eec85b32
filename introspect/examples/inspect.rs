//! Prints what a machine's RAM file tells: kernel release, tasks, connections.
//!
//! `cargo run -p introspect --example inspect -- RAM_FILE [PORT…]`, for a guest without a hole in its RAM (below 2 GiB
//! on QEMU's q35, where guest-physical address and file offset are the same).

mod ram_file;

use std::env;
use std::time::Instant;

use anyhow::Context;
use introspect::Kernel;
use introspect::linux::{task, tcp};
use ram_file::RamFile;
use remote_memory::RemoteKey;
use remote_memory::trace::Trace;

/// Walks timed after the first, which pays for fresh memory.
const REPEATS: usize = 10;

fn main() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().context("usage: inspect RAM_FILE [PORT…]")?;
    let ports = arguments.map(|port| port.parse()).collect::<Result<Vec<u16>, _>>().context("a port is a number")?;
    let ram = RamFile::open(&path)?;
    let extents = [ram.extent()];
    let mut ram = Trace::new(ram);
    let key = RemoteKey::new(0);

    let start = Instant::now();
    let kernel = Kernel::discover(&mut ram, key, &extents)?;
    println!("kernel {}, {}-level paging", kernel.release, kernel.paging_levels());
    report("discovery", start, &mut ram, 0);

    let (start, before) = (Instant::now(), ram.rounds());
    let (tasks, damage) = task::walk(&kernel, &mut ram, key)?;
    report("tasks", start, &mut ram, before);
    println!("{:>7} {:>7} {:>7} {:>6} {:>5} comm", "pid", "tgid", "parent", "uid", "state");
    for task in &tasks {
        let uid = task.uid.map_or("?".into(), |uid| uid.to_string());
        println!("{:>7} {:>7} {:>7} {uid:>6} {:>5x} {}", task.pid, task.tgid, task.parent, task.state, task.comm);
    }
    damage.iter().for_each(|damage| println!("damage: {damage}"));

    let (start, before) = (Instant::now(), ram.rounds());
    let (sockets, damage) =
        tcp::walk(&kernel, &mut ram, key, &tcp::TcpFilter { ports: ports.clone(), ..Default::default() })?;
    report("connections", start, &mut ram, before);
    let again = (0..REPEATS).map(|_| {
        let start = Instant::now();
        let filter = tcp::TcpFilter { ports: ports.clone(), ..Default::default() };
        tcp::walk(&kernel, &mut ram, key, &filter).map(|_| start.elapsed())
    });
    let best = again.collect::<Result<Vec<_>, _>>()?.into_iter().min().unwrap_or_default();
    println!("best of {REPEATS} more: {:.2} ms", best.as_secs_f64() * 1e3);
    for socket in &sockets {
        print_socket(socket);
    }
    damage.iter().for_each(|damage| println!("damage: {damage}"));
    Ok(())
}

fn report(what: &str, start: Instant, ram: &mut Trace<RamFile>, before: usize) {
    println!("{what}: {:.2} ms, {} rounds", start.elapsed().as_secs_f64() * 1e3, ram.rounds() - before);
}

fn print_socket(socket: &tcp::TcpSocket) {
    let sent: usize = socket.send_queue.iter().filter(|segment| segment.sent).map(|segment| segment.bytes.len()).sum();
    let queued: usize = socket.send_queue.iter().map(|segment| segment.bytes.len()).sum();
    println!(
        "{} <- {} {:?}{}{}{} send {} ({sent} sent, {} segments) receive {} read {} written {}{}",
        socket.local,
        socket.peer,
        socket.state,
        if socket.accepted { "" } else { " not accepted" },
        if socket.orphaned { " orphaned" } else { "" },
        if socket.lock_held { " lock held" } else { "" },
        queued,
        socket.send_queue.len(),
        socket.receive_queue.len(),
        socket.read_offset(),
        socket.written_offset(),
        if socket.usable() { "" } else { " NOT USABLE" },
    );
    socket.damage.iter().for_each(|damage| println!("    damage: {damage}"));
}
