//! libFuzzer in front of the target `walk`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("walk").expect("a target of that name").run)(input);
});
