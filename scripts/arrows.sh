#!/usr/bin/env bash
# Fails when a crate knows what it must not: another crate of Stead, a foreign one, or a part of the standard library.
# What is allowed is listed below, one line each; ARCHITECTURE.md says why. Checks as well that each listed line is still needed.
set -euo pipefail
# The last part of a pipe counts in this shell.
shopt -s lastpipe
cd "$(dirname "$0")/.."
export LC_ALL=C
failed=0

# report WHAT HINT: prints each line of the input as a violation.
report() {
    while IFS= read -r line; do
        printf '%s: %s; %s\n' "$1" "$line" "$2" >&2
        failed=1
    done
}

# All direct dependencies of the workspace's crates, with every feature.
direct() {
    cargo tree --locked --workspace --all-features --depth 1 --no-dedupe --prefix depth --format ' {p}' -e "$1" |
        awk '$1 == 0 { from = $2 } $1 == 1 { print from " -> " $2 }' | sort -u
}
normal=$(direct normal)

# Arrows between the crates of Stead. There is none from store to node, from node to stead, from stead to sim or to gateway.
arrows='stead-store -> stead-core
stead-cluster -> stead-control
stead-cluster -> stead-core
stead-cluster -> stead-net
stead-cluster -> stead-node
stead-cluster -> stead-store
stead-control -> stead-core
stead-control -> stead-store
stead-net -> stead-core
stead-node -> stead-core
stead-node -> stead-net
stead-node -> stead-store
stead-sim -> stead-core
stead-sim -> stead-net
stead-sim -> stead-node
stead-sim -> stead-store
stead -> stead-cluster
stead -> stead-core
stead -> stead-net
stead -> stead-node
stead -> stead-store
stead-gateway -> stead
stead-local -> stead-net
stead-testkit -> stead
stead-testkit -> stead-core
stead-testkit -> stead-sim
stead-flights -> stead
stead-flights -> stead-core
stead-flights -> stead-local
stead-flights -> stead-store
stead-cli -> stead
stead-cli -> stead-flights
stead-cli -> stead-gateway
stead-cli -> stead-local
stead-chaos -> stead
stead-chaos -> stead-flights
stead-chaos -> stead-gateway
stead-chaos -> stead-local'
found=$(grep -E -- '-> stead(-|$)' <<<"$normal" || true)
comm -13 <(sort <<<"$arrows") <(sort <<<"$found") |
    report 'forbidden arrow' 'remove the dependency, or list it in scripts/arrows.sh and say why in ARCHITECTURE.md'
comm -23 <(sort <<<"$arrows") <(sort <<<"$found") |
    report 'an arrow that is gone' 'remove it from the list in scripts/arrows.sh'

# Foreign crates that may stand in these crates only.
homes='axum stead-gateway
http-body-util stead-gateway
hyper stead-gateway
hyper-util stead-gateway
mio stead-net
openraft stead-control
prometheus-client stead-gateway
tracing-subscriber stead-gateway
utoipa stead-gateway
utoipa-axum stead-gateway
schemars stead
toml stead
object_store stead-store
reqwest stead-store
rustls stead-store
clap stead-cli
clap stead-chaos
clap stead-sim
tokio stead
tokio stead-cli
tokio stead-control
tokio stead-gateway
tokio stead-store'
while read -r foreign; do
    allowed=$(awk -v foreign="$foreign" '$1 == foreign { print $2 " -> " foreign }' <<<"$homes")
    { grep -E -- "-> $foreign\$" <<<"$normal" || true; } | comm -13 <(sort <<<"$allowed") - |
        report 'foreign crate outside its home' 'keep it in its crate, or list the home in scripts/arrows.sh'
done < <(awk '{ print $1 }' <<<"$homes" | sort -u)

# Nothing below the gateway reaches HTTP by way of another crate. (S3, behind its feature, brings an HTTP client.)
below=$(cargo tree --locked -p stead -p stead-testkit --features stead/schemars -e normal --prefix none --format '{p}' |
    awk '{ print $1 }' | sort -u)
{ grep -xE 'axum|hyper|utoipa|tower|http' <<<"$below" || true; } |
    report 'HTTP below the gateway' "find it with 'cargo tree -p stead -i CRATE'"

# The core is pure: none of these does I/O, waits, or draws random numbers.
pure='^(stead-core|castaway|cfg-if|compact_str|itoa|rustversion|ryu|zmij|static_assertions|foldhash|hashbrown|minicbor|minicbor-derive|serde|serde_core|serde_derive|smallvec|thiserror|thiserror-impl|xxhash-rust|proc-macro2|quote|syn|unicode-ident)$'
{ cargo tree --locked -p stead-core -e normal --prefix none --format '{p}' | awk '{ print $1 }' | sort -u |
    grep -vE "$pure" || true; } | report 'stead-core must stay pure, but depends on' 'see ARCHITECTURE.md'
# Its clippy.toml forbids the calls of clocks; this, the modules.
{ grep -rnE 'std::(fs|net|env|process|thread)\b|std::\{|use std( as|;)' crates/core/src || true; } |
    report 'stead-core must stay pure, but names a module of std that is not' 'the shell does I/O'

# Modules of the library, the lowest first: each uses only those before it.
modules='service config descriptors embedded error log_view offline client node'
lib=crates/stead/src/lib.rs
comm -3 <(tr ' ' '\n' <<<"$modules" | sort) <(sed -nE 's/^(pub )?mod ([a-z_]+);$/\2/p' "$lib" | sort) | tr -d '\t' |
    report 'module of stead without a place' "list all of $lib in scripts/arrows.sh, and no other"
below=''
for module in $modules; do
    below="$below $module"
    files=$(find crates/stead/src -path "crates/stead/src/$module.rs" -o -path "crates/stead/src/$module/*.rs")
    [ -n "$files" ] || continue
    # Comments may link anywhere.
    { sed -E 's:^ *//.*::' $files | grep -oE 'crate::[A-Za-z_]+' || true; } | sort -u | sed 's/crate:://' |
        comm -23 - <(tr ' ' '\n' <<<"$below" | sort) |
        report "module $module of stead uses one above it" 'move what both need below them'
done

exit "$failed"
