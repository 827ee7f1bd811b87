#!/usr/bin/env bash
# Fails when a crate that does I/O, waits, or draws random numbers appears below stead-core. What the core's own code may
# not call is in crates/core/clippy.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
allowed='^(stead-core|castaway|cfg-if|compact_str|itoa|rustversion|ryu|zmij|static_assertions|foldhash|hashbrown|minicbor|minicbor-derive|serde|serde_core|serde_derive|smallvec|thiserror|thiserror-impl|xxhash-rust|proc-macro2|quote|syn|unicode-ident)$'
strangers=$(cargo tree --locked -p stead-core -e normal --prefix none --format '{p}' | awk '{print $1}' | sort -u | grep -vE "$allowed" || true)
if [ -n "$strangers" ]; then
    printf 'stead-core must stay pure, but depends on:\n%s\n' "$strangers" >&2
    exit 1
fi
