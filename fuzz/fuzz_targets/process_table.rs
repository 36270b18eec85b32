//! libFuzzer in front of the target `process_table`; see `hostile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (hostile::target("process_table").expect("a target of that name").run)(input);
});
