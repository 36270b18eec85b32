//! libFuzzer in front of the target `sensorbox`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("sensorbox").expect("a target of that name").run)(input);
});
