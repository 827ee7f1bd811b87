#![no_main]

use std::sync::LazyLock;
use stead_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(stead_fuzz::named);

libfuzzer_sys::fuzz_target!(|data: &[u8]| stead_fuzz::run(*TARGET, data));
