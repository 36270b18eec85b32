//! Compiles the eBPF programs. Which sensor has which record is said once, in `src/records.rs`, and reaches C as
//! definitions.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

#[path = "src/records.rs"]
#[allow(dead_code)]
mod records;

const SOURCE: &str = "src/bpf/sensors.bpf.c";
const INCLUDES: [&str; 4] =
    ["../sensorbox/include", "../killtable/include", "../proctable/include", "../locktable/include"];

/// Instructions of Linux 5.12 and newer: an atomic that says what was there before.
const PROCESSOR: &str = "-mcpu=v3";

fn main() {
    for input in ["src/bpf", "src/records.rs"].iter().chain(&INCLUDES) {
        println!("cargo::rerun-if-changed={input}");
    }
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("sensors.bpf.o");
    let mut arguments = [PROCESSOR, "-Wall", "-Werror"].map(str::to_owned).to_vec();
    arguments.extend(INCLUDES.map(|folder| format!("-I{folder}")));
    arguments.extend(records::ALL.map(|(name, value)| format!("-D{name}={value}")));
    SkeletonBuilder::new()
        .source(SOURCE)
        .obj(&object)
        .clang_args(arguments)
        .build()
        .expect("clang compiles the eBPF programs (scripts/setup installs it)");
}
