#!/usr/bin/env bash
# scripts/long.sh: the tests that take minutes, which CI leaves out, for before a release. STEAD_SEEDS is the number of seeds of the first.
set -euo pipefail
cd "$(dirname "$0")/.."

long() {
    local package=$1 binary=$2 name=$3
    cargo test --locked --release --all-features -p "$package" --test "$binary" -- --ignored --exact "$name" --nocapture
}

long stead-core replication replicas_keep_every_answer_for_long
long stead-sim it every_planted_bug_is_caught
long stead-testkit it runs::the_documented_service_holds_over_thousands_of_seeds
long stead it memory::eight_thousand_messages_of_a_quarter_of_a_mib_stay_below_600_mib
