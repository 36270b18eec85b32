//! libFuzzer in front of the target `tcp_segment`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("tcp_segment").expect("a target of that name").run)(input);
});
