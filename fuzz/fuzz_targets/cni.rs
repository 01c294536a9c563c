#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwire_fuzz::cni::run(data));
