//! libFuzzer in front of the target `frame`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("frame").expect("a target of that name").run)(input);
});
