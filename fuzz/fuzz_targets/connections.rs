//! libFuzzer in front of the target `connections`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("connections").expect("a target of that name").run)(input);
});
