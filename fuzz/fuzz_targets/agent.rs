//! libFuzzer in front of the target `agent`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("agent").expect("a target of that name").run)(input);
});
