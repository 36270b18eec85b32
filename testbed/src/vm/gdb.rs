//! A machine's debugger port: stops the virtual processor before a chosen instruction, and goes on one by one.
//!
//! The GDB remote serial protocol as far as that needs it (`$packet#sum`, answered by `+` and a packet). QEMU opens the
//! port on request, so a machine that is never debugged has none. While QEMU steps it holds back interrupts and timers
//! (its `sstep` default), so a stepped function runs as if nothing else happened. Meant for one virtual processor: with
//! more, all of them run during each step.
//! Sources: GDB manual, "Remote Protocol"; QEMU, docs/system/gdb.rst.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Vm;

/// QEMU answers at once unless the host is starved.
const PATIENCE: Duration = Duration::from_secs(60);

/// A packet is at most the registers or the memory asked for, in hexadecimal digits.
const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Where `rsp` and `rip` are among the 64-bit registers of a `g` answer (rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, …).
const RSP: usize = 7;
const RIP: usize = 16;

/// A connection to the debugger port. The machine is stopped from the moment it is made.
#[derive(Debug)]
pub struct Gdb {
    stream: UnixStream,
    ahead: Vec<u8>,
}

/// The registers a stop is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Address of the next instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
}

impl Gdb {
    /// Opens the port of a running machine and stops it.
    ///
    /// # Errors
    /// If QEMU opens none.
    pub fn attach(vm: &mut Vm) -> Result<Self> {
        let socket = vm.folder().join("gdb");
        let line = format!("gdbserver unix:{},server=on,wait=off", socket.display());
        let said = vm.qmp().execute("human-monitor-command", json!({ "command-line": line }))?;
        let stream = UnixStream::connect(&socket).with_context(|| format!("no debugger port: {said}"))?;
        let mut gdb = Self { stream, ahead: Vec::new() };
        let stopped = gdb.ask("?")?;
        ensure!(stopped.starts_with(['T', 'S']), "the machine did not stop for its debugger: {stopped}");
        Ok(gdb)
    }

    /// Stops the machine whenever it is about to execute the instruction at `address`.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn break_at(&mut self, address: u64) -> Result<()> {
        self.order(&format!("Z0,{address:x},1"))
    }

    /// Takes a breakpoint back.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn clear(&mut self, address: u64) -> Result<()> {
        self.order(&format!("z0,{address:x},1"))
    }

    /// Stops the machine whenever it has written to one of `len` bytes from `address` on.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn watch(&mut self, address: u64, len: u64) -> Result<()> {
        self.order(&format!("Z2,{address:x},{len:x}"))
    }

    /// Takes a watch back.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn unwatch(&mut self, address: u64, len: u64) -> Result<()> {
        self.order(&format!("z2,{address:x},{len:x}"))
    }

    /// Lets the machine run; [`Gdb::stopped_within`] tells when it stopped again.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn resume(&mut self) -> Result<()> {
        self.send("c")
    }

    /// Whether the machine came to a stop within `bound`.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn stopped_within(&mut self, bound: Duration) -> Result<bool> {
        match self.answer(bound)? {
            None => Ok(false),
            Some(reason) => {
                ensure!(reason.starts_with(['T', 'S']), "the machine ended instead of stopping: {reason}");
                Ok(true)
            }
        }
    }

    /// Stops the machine wherever it is.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn interrupt(&mut self) -> Result<()> {
        self.stream.write_all(&[3]).context("debugger port")?;
        ensure!(self.stopped_within(PATIENCE)?, "the machine does not stop");
        Ok(())
    }

    /// Executes one instruction, and does not look where that led; one round of a repeated string instruction.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn nudge(&mut self) -> Result<()> {
        self.send("s")?;
        ensure!(self.stopped_within(PATIENCE)?, "the machine does not stop after a step");
        Ok(())
    }

    /// Executes one instruction; a repeated string instruction counts as one.
    ///
    /// # Errors
    /// If the port is gone.
    pub fn step(&mut self, at: u64) -> Result<Registers> {
        self.send("s")?;
        ensure!(self.stopped_within(PATIENCE)?, "the machine does not stop after a step");
        let registers = self.registers()?;
        if registers.rip != at {
            return Ok(registers);
        }
        let code = self.memory(at, 3)?;
        let after = match code[..] {
            [0xf3, 0xa4 | 0xa5 | 0xaa | 0xab, _] => at + 2,
            [0xf3, 0x48, 0xa5 | 0xab] => at + 3,
            _ => return Ok(registers),
        };
        self.break_at(after)?;
        self.resume()?;
        ensure!(self.stopped_within(PATIENCE)?, "a string instruction does not end");
        self.clear(after)?;
        self.registers()
    }

    /// The registers of the stopped processor.
    ///
    /// # Errors
    /// If QEMU answers something else.
    pub fn registers(&mut self) -> Result<Registers> {
        let bytes = self.hex("g")?;
        let register = |number: usize| {
            let word = bytes.get(number * 8..number * 8 + 8).and_then(|word| word.try_into().ok());
            word.map(u64::from_le_bytes).context("QEMU did not answer with 64-bit registers")
        };
        Ok(Registers { rip: register(RIP)?, rsp: register(RSP)? })
    }

    /// Memory as the stopped processor sees it.
    ///
    /// # Errors
    /// If it is not mapped.
    pub fn memory(&mut self, address: u64, len: usize) -> Result<Vec<u8>> {
        let bytes = self.hex(&format!("m{address:x},{len:x}"))?;
        ensure!(bytes.len() == len, "only {} of {len} bytes at {address:#x}", bytes.len());
        Ok(bytes)
    }

    fn hex(&mut self, request: &str) -> Result<Vec<u8>> {
        let answer = self.ask(request)?;
        let pairs = answer.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
        let bytes: Option<Vec<u8>> = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect();
        bytes.with_context(|| format!("QEMU refused `{request}`: {answer}"))
    }

    fn order(&mut self, request: &str) -> Result<()> {
        let answer = self.ask(request)?;
        ensure!(answer == "OK", "QEMU refused `{request}`: {answer}");
        Ok(())
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        self.send(request)?;
        loop {
            let answer = self.answer(PATIENCE)?.with_context(|| format!("QEMU does not answer `{request}`"))?;
            // QEMU reports the stop at attaching by itself, too.
            if request == "?" || !answer.starts_with('T') {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        self.stream.write_all(frame(packet).as_bytes()).context("debugger port")
    }

    /// The next packet, or `None` if none came in time.
    fn answer(&mut self, bound: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + bound;
        let mut chunk = [0; 4096];
        loop {
            if let Some(packet) = unframe(&mut self.ahead) {
                self.stream.write_all(b"+").context("debugger port")?;
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU closed the debugger port"),
                Ok(read) => self.ahead.extend_from_slice(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => thread::yield_now(),
                Err(error) => return Err(error).context("debugger port"),
            }
            ensure!(self.ahead.len() <= PACKET_BYTES_MAX, "a packet from the debugger port does not end");
        }
    }
}

fn frame(packet: &str) -> String {
    let sum = packet.bytes().fold(0u8, u8::wrapping_add);
    format!("${packet}#{sum:02x}")
}

/// Takes the first whole packet out of `ahead`, with the acknowledgements before it. A socket loses nothing, so sums
/// are not looked at.
fn unframe(ahead: &mut Vec<u8>) -> Option<String> {
    let start = ahead.iter().position(|byte| *byte == b'$')?;
    let end = start + ahead[start..].iter().position(|byte| *byte == b'#')?;
    (ahead.len() >= end + 3).then_some(())?;
    let packet = String::from_utf8_lossy(&ahead[start + 1..end]).into_owned();
    ahead.drain(..end + 3);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_carry_the_sum_of_their_bytes() {
        assert_eq!(frame("g"), "$g#67");
        assert_eq!(frame("Z0,ffffffff81000000,1"), "$Z0,ffffffff81000000,1#cc");
    }

    #[test]
    fn packets_are_taken_whole_and_in_order() {
        let mut ahead = b"+$OK#9a+$T05".to_vec();
        assert_eq!(unframe(&mut ahead).as_deref(), Some("OK"));
        assert_eq!(unframe(&mut ahead), None);
        ahead.extend(b"thread:01;#0");
        assert_eq!(unframe(&mut ahead), None);
        ahead.extend(b"7");
        assert_eq!(unframe(&mut ahead).as_deref(), Some("T05thread:01;"));
        assert!(ahead.is_empty());
    }
}
