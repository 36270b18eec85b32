//! libFuzzer in front of the target `config`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("config").expect("a target of that name").run)(input);
});
