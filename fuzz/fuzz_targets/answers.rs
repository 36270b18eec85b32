//! libFuzzer in front of the target `answers`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("answers").expect("a target of that name").run)(input);
});
