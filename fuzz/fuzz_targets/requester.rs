//! libFuzzer in front of the target `requester`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("requester").expect("a target of that name").run)(input);
});
