//! `include/sensorbox.h` says the same as the Rust layout: the header's own assertions hold for the C compiler and
//! for the eBPF target, and a box written by C is read by Rust.

use std::process::Command;

use sensorbox::layout::{self, Description, State};
use sensorbox::{Class, Name};

const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// Prints the constants and the bytes of one record.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <string.h>
#include "sensorbox.h"
int main(void) {
    struct sensor_record r = { .state = SENSOR_CLAIMED, .id = 7, .class_code = SENSOR_LEVEL, .flags = SENSOR_FLAG_FLOOR,
        .cpu = SENSOR_NO_CPU, .limit = 3, .period_ns = 5, .name = "free" };
    unsigned char bytes[56];
    memcpy(bytes, &r, sizeof bytes);
    printf("%llx %x %x %x %x ", SENSORBOX_MAGIC, SENSORBOX_VERSION, SENSOR_LIVE, SENSOR_RETIRED, SENSOR_CLAIMED);
    for (unsigned i = 0; i < sizeof bytes; i++) printf("%02x", bytes[i]);
    return 0;
}
"#;

struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch() -> Scratch {
    let folder = std::env::temp_dir().join(format!("sensorbox-c-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    Scratch(folder)
}

#[test]
fn the_c_header_and_the_rust_layout_are_one() {
    let folder = scratch();
    let (source, program) = (folder.0.join("layout.c"), folder.0.join("layout"));
    std::fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-o"])
        .args([&program, &source])
        .status()
        .expect("a C compiler");
    assert!(built.success());
    let said = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();

    let name = Name::new("free").unwrap();
    let words = Description { name, class: Class::Level, cpu: None, limit: 3, period_ns: 5, floor: true }.words(7);
    let bytes: String =
        words[..7].iter().flat_map(|word| word.to_le_bytes()).map(|byte| format!("{byte:02x}")).collect();
    let (magic, version) = (layout::MAGIC, layout::VERSION);
    let (live, retired, claimed) = (State::LIVE, State::RETIRED, State::CLAIMED);
    assert_eq!(said, format!("{magic:x} {version:x} {live:x} {retired:x} {claimed:x} {bytes}"));

    let ebpf = Command::new("clang")
        .args(["-target", "bpf", "-Wall", "-Werror", "-fsyntax-only", "-I", INCLUDE, "-x", "c"])
        .arg(format!("{INCLUDE}/sensorbox.h"))
        .status()
        .expect("clang");
    assert!(ebpf.success());
}
