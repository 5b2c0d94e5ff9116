#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| interceptor_core_fuzz::dns(data));
