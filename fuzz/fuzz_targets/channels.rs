//! libFuzzer in front of the target `channels`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("channels").expect("a target of that name").run)(input);
});
