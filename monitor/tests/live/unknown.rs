//! A target whose kernel cannot be read, made in `introspect/src/discover_tests.rs` without type information: what the
//! operator of a monitor is told about it, in the log, the metrics and by `inspect`. Whose fault it is, and what to do.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Stdio};

use introspect::{Extent, Kernel};
use remote_memory::PAGE_BYTES;
use remote_memory::image::Image;

use super::*;

const RAM: u64 = 32 << 20;

/// What an operator must be able to read wherever the target's kernel is spoken of.
const TOLD: [&str; 4] = [
    "the target's kernel cannot be read: Linux 6.9.0-made-here",
    "built without CONFIG_DEBUG_INFO_BTF",
    "boot the target with a kernel that has it",
    "its sensors are watched, but none of its sessions can be taken over",
];

fn image() -> Image {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../introspect/tests/images/made-without-btf.image.xz");
    let mut bytes = Vec::new();
    xz2::read::XzDecoder::new(File::open(kept).unwrap()).read_to_end(&mut bytes).unwrap();
    Image::load(&bytes[..]).unwrap()
}

/// RAM whose pages are zero unless the image has them.
struct Ram(Image);

impl Memory for Ram {
    fn check(&self, key: RemoteKey, addr: u64, len: u64, rights: Rights) -> Result<(), Refusal> {
        let inside = addr.checked_add(len).is_some_and(|end| end <= RAM);
        if key.raw() == KEY && inside && Rights::READ.covers(rights) { Ok(()) } else { Err(Refusal::Access) }
    }

    fn read(&self, key: RemoteKey, addr: u64, into: &mut [u8]) -> Result<(), Refusal> {
        self.check(key, addr, into.len() as u64, Rights::READ)?;
        let (mut at, mut rest) = (addr, into);
        while !rest.is_empty() {
            let here = rest.len().min((PAGE_BYTES - at % PAGE_BYTES) as usize);
            let (piece, later) = rest.split_at_mut(here);
            if self.0.copy_out(at, piece).is_none() {
                piece.fill(0);
            }
            (at, rest) = (at + here as u64, later);
        }
        Ok(())
    }
}

/// A control plane whose one region is the machine's RAM.
fn backdoor(server: ServerHandle) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut channel, server) = (Channel::new(stream.unwrap()), server.clone());
            while let Ok(request) = channel.receive::<Request>() {
                let rights = Rights::READ.bits();
                let ram = RegionEntry { name: "ram".into(), key: KEY, base: 0, len: RAM, rights, extents: Vec::new() };
                let reply = match request {
                    Request::Regions { .. } => Reply::Regions { epoch: 0, regions: vec![ram] },
                    other => answer(other, &server, &Mutex::default()),
                };
                if channel.send(&reply).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// A spare that has tried to read the target and says what came of it.
fn spare_that_says(why: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, why) = (listener.local_addr().unwrap(), why.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut channel = Channel::new(stream.unwrap());
            while let Ok(request) = channel.receive::<reinstate::Request>() {
                let reply = match request {
                    reinstate::Request::Hello(_) => reinstate::Reply::Welcome { version: VERSION },
                    _ => reinstate::Reply::NotReady { why: why.clone() },
                };
                if channel.send(&reply).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_told(text: &str) {
    for word in TOLD {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_kernel_that_cannot_be_read_is_told_to_the_operator_with_what_to_do() {
    let test = "unknown::a_kernel_that_cannot_be_read_is_told_to_the_operator_with_what_to_do";
    if !private_network(test) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("monitor-unknown-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("log");
    let server =
        Server::bind(Ipv4Addr::new(127, 0, 0, 77), rdma::soft::PORT, Ram(image()), Options::default()).unwrap();
    let (handle, stop) = (server.handle(), Arc::new(AtomicBool::new(false)));
    let serving = {
        let (stop, mut server) = (Arc::clone(&stop), server);
        std::thread::spawn(move || server.run(&stop).unwrap())
    };
    // What a spare says is what it read: `reinstate/src/source.rs` has the same words before it.
    let found = Kernel::discover(&mut image(), RemoteKey::new(KEY), &[Extent { start: 0, len: RAM }]);
    let why = format!("kernel of the target: {}", found.unwrap_err());
    let config = folder.join("monitor.toml");
    let text = format!(
        "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = {:?}\nmetrics = \"127.0.0.1:9790\"\n\
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 200\nraises = \"hang\"\n\
         [[target]]\nname = \"web\"\nbackdoor = \"{}\"\non_hang = \"evacuate\"\n\
         spare = [{{ name = \"a\", control = \"{}\" }}]\n\
         service = [{{ address = \"10.77.0.100\", ports = [8080] }}]\n",
        folder.join("journal"),
        backdoor(handle),
        spare_that_says(&why)
    );
    std::fs::write(&config, text).unwrap();

    // Asked for: `monitor inspect` reads the target itself.
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_monitor"));
    let said = inspect.args(["inspect", "web", "--config"]).arg(&config).output().unwrap();
    assert!(!said.status.success());
    assert_told(&String::from_utf8_lossy(&said.stderr));

    // Unasked: the daemon's log names the spare that cannot, with its reason.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_monitor"));
    watch.arg("--log-json").arg("--config").arg(&config).stderr(File::create(&log).unwrap());
    let daemon = Daemon(watch.stdout(Stdio::null()).spawn().unwrap());
    let begin = Instant::now();
    let warned = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if let Some(line) = text.lines().find(|line| line.contains("not ready")) {
            break line.to_owned();
        }
        assert!(begin.elapsed() < GENEROUS, "the log does not say it: {text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_told(&warned);
    let words = [r#""level":"WARN""#, r#""target_name":"web""#, r#""spare":"a""#];
    assert!(words.iter().all(|word| warned.contains(word)), "{warned}");
    drop(daemon);
    stop.store(true, Ordering::Relaxed);
    serving.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}
