//! libFuzzer in front of the target `processes`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("processes").expect("a target of that name").run)(input);
});
