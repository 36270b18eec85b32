//! libFuzzer in front of the target `responder`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("responder").expect("a target of that name").run)(input);
});
