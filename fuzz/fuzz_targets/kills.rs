//! libFuzzer in front of the target `kills`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("kills").expect("a target of that name").run)(input);
});
