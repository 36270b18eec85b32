//! libFuzzer in front of the target `contbox`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("contbox").expect("a target of that name").run)(input);
});
