//! Two guests with soft-RoCE: somebody else's programs read the memory of one from the other, on every kernel.

mod inside;

use std::path::Path;

use testbed::{
    guest::{ImageSpec, Kernel},
    pair::{DEVICE, RdmaGuest},
    topology::Topology,
};

/// Round trips of a measurement that is not one: what is shown is that it runs.
const ITERATIONS: u32 = 200;

#[test]
fn perftest_reads_from_one_guest_in_the_other() {
    if inside::ran("perftest_reads_from_one_guest_in_the_other") {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-images");
    for line in Kernel::lines().unwrap() {
        let topology = Topology::build().unwrap();
        let image = ImageSpec::new(Kernel::cached(&line).unwrap());
        let [mut target, mut monitor] = RdmaGuest::boot(&topology, image, &folder, |_| ()).unwrap();
        let latency = format!("ib_read_lat --ib-dev {DEVICE} --gid-index 1 --size 64 --iters {ITERATIONS} --mtu 4096");
        target.run(&format!("{latency} >/run/served 2>&1 </dev/null & sleep 1")).unwrap();
        let told = monitor.run(&format!("{latency} {}", target.address())).unwrap();
        assert_eq!(told.status, 0, "{}\nserver: {}", told.text(), target.run("cat /run/served").unwrap().text());
        // The last line but the ruler: size, iterations, then microseconds: least, most, typical, ...
        let told = told.text();
        let shown = told.lines().rev().map(str::trim).find(|line| line.starts_with("64 ")).unwrap_or_default();
        let figures: Vec<f64> = shown.split_whitespace().map_while(|word| word.parse().ok()).collect();
        assert_eq!(figures.get(1), Some(&f64::from(ITERATIONS)), "{told}");
        assert!(0.0 < figures[2] && figures[2] <= figures[4], "{told}");
        println!("Linux {line}: a READ of 64 bytes takes {} us, typically", figures[4]);
        let processes = [target.pid(), monitor.pid()].map(|pid| format!("/proc/{pid}"));
        drop((target, monitor));
        assert!(processes.iter().all(|process| !Path::new(process).exists()), "a guest outlives its owner");
    }
}
