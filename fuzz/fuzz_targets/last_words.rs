//! libFuzzer in front of the target `last_words`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("last_words").expect("a target of that name").run)(input);
});
