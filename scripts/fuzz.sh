#!/usr/bin/env bash
# scripts/fuzz.sh [SECONDS_PER_TARGET] [TARGET]...: fuzzes each decoder, or the named ones, for that long (default 10 s).
#
# Coverage-guided, with libFuzzer, on the stable toolchain: it needs a C++ compiler. Without one, blind mutations of the
# seeds. Inputs that fail are left in fuzz/artifacts/TARGET/; once mended, move them to fuzz/regressions/TARGET/:
# each run begins with those and the seeds.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-10}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(ls seeds)
fi
# A backtrace takes more memory than a target may, and one that can't be made hangs.
export RUST_BACKTRACE=0
jobs=${FUZZ_JOBS:-$(nproc)}
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$PWD/target}

host=$(rustc -vV | sed -n 's/^host: //p')
cxx=${CXX:-c++}
if ! command -v "$cxx" >/dev/null; then
    echo "no C++ compiler: blind mutations instead of coverage-guided ones"
    cargo test --locked --release --no-default-features --quiet
    exec cargo run --locked --release --quiet --no-default-features --features blind --bin mutate -- \
        "$seconds" "${FUZZ_SEED:-$RANDOM$RANDOM}" "${targets[@]}"
fi

# What cargo-fuzz sets for `--sanitizer none`, which needs no nightly toolchain. `--target` keeps it out of build scripts.
coverage='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing'
RUSTFLAGS="${RUSTFLAGS:-} $coverage" cargo build --locked --release --target "$host" --bin each

fuzz() {
    local target=$1
    local dirs=("corpus/$target" "seeds/$target")
    mkdir -p "corpus/$target" "artifacts/$target"
    if [ -d "regressions/$target" ]; then
        dirs+=("regressions/$target")
    fi
    # The seeds and what was found before come first, so that they are replayed on each run.
    if STEAD_FUZZ_TARGET=$target "$CARGO_TARGET_DIR/$host/release/each" "${dirs[@]}" \
        -max_total_time="$seconds" -artifact_prefix="artifacts/$target/" -timeout=10 -rss_limit_mb=2048 \
        -max_len=8192 -print_final_stats=1 ${FUZZ_SEED:+-seed="$FUZZ_SEED"} \
        >"artifacts/$target.log" 2>&1; then
        printf '%-14s %s runs, corpus %s\n' "$target" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "artifacts/$target.log")" \
            "$(find "corpus/$target" -type f | wc -l)"
    else
        printf '%-14s FAILED, seed %s\n' "$target" "$(sed -n 's/^INFO: Seed: //p' "artifacts/$target.log")"
        tail -n 60 "artifacts/$target.log"
        return 1
    fi
}

failed=0
running=0
for target in "${targets[@]}"; do
    fuzz "$target" &
    running=$((running + 1))
    if [ "$running" -ge "$jobs" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
done
while [ "$running" -gt 0 ]; do
    wait -n || failed=1
    running=$((running - 1))
done
exit "$failed"
