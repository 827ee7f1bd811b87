#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stead_fuzz::run(stead_fuzz::control, data));
