//! libFuzzer in front of the target `packet`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("packet").expect("a target of that name").run)(input);
});
