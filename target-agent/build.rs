//! Compiles the eBPF programs. Which sensor has which record is said once, in `src/records.rs`, and reaches C as
//! definitions.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

#[path = "src/records.rs"]
#[allow(dead_code)]
mod records;

/// Each becomes an object of its own name.
const SOURCES: [&str; 2] = ["sensors", "mirror"];
const INCLUDES: [&str; 5] = [
    "../sensorbox/include",
    "../killtable/include",
    "../proctable/include",
    "../locktable/include",
    "../tcptable/include",
];

/// Instructions of Linux 5.12 and newer: an atomic that says what was there before.
const PROCESSOR: &str = "-mcpu=v3";

fn main() {
    for input in ["src/bpf", "src/records.rs"].iter().chain(&INCLUDES) {
        println!("cargo::rerun-if-changed={input}");
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut arguments = [PROCESSOR, "-Wall", "-Werror"].map(str::to_owned).to_vec();
    arguments.extend(INCLUDES.map(|folder| format!("-I{folder}")));
    arguments.extend(records::ALL.map(|(name, value)| format!("-D{name}={value}")));
    for name in SOURCES {
        SkeletonBuilder::new()
            .source(format!("src/bpf/{name}.bpf.c"))
            .obj(folder.join(format!("{name}.bpf.o")))
            .clang_args(&arguments)
            .build()
            .expect("clang compiles the eBPF programs (scripts/setup installs it)");
    }
}
