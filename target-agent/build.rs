//! Compiles the eBPF programs. Which sensor has which record is said once, in `src/records.rs`, and reaches C as
//! definitions.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

#[path = "src/records.rs"]
#[allow(dead_code)]
mod records;

const SOURCE: &str = "src/bpf/sensors.bpf.c";
const SENSORBOX_INCLUDE: &str = "../sensorbox/include";

fn main() {
    for input in [SOURCE, "src/records.rs", "../sensorbox/include/sensorbox.h"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("sensors.bpf.o");
    let mut arguments = vec!["-I".to_owned(), SENSORBOX_INCLUDE.to_owned(), "-Wall".to_owned(), "-Werror".to_owned()];
    arguments.extend(records::ALL.map(|(name, value)| format!("-D{name}={value}")));
    SkeletonBuilder::new()
        .source(SOURCE)
        .obj(&object)
        .clang_args(arguments)
        .build()
        .expect("clang compiles the eBPF programs (scripts/setup installs it)");
}
