#!/usr/bin/env bash
# Fails when the map in ARCHITECTURE.md is wrong: a row of "Where is X?" whose file does not exist or does not hold its name, or a
# folder of source code that the page does not name.
set -euo pipefail
cd "$(dirname "$0")/.."
map=ARCHITECTURE.md
failed=0
rows=0

while IFS='|' read -r _ what file name _; do
    file=$(sed 's/^ *`//; s/` *$//' <<<"$file")
    name=$(sed 's/^ *`//; s/` *$//' <<<"$name")
    rows=$((rows + 1))
    if ! grep -qF -- "$name" "$file" 2>/dev/null; then
        echo "$map:$what: there is no $name in $file; correct the row" >&2
        failed=1
    fi
done < <(sed -n '/^## Where is X?/,/^## D/p' "$map" | grep -E '^\| .*\| `.*\| `')
if [ "$rows" -lt 40 ]; then
    echo "$map has $rows rows of \"Where is X?\", not 40 or more" >&2
    failed=1
fi

# Each folder below the sources of a crate, as `folder/`, but those of a module's tests.
while read -r folder; do
    if ! grep -qF -- "\`$folder/" "$map"; then
        echo "$map does not name the folder $folder/ of source code; say what it holds" >&2
        failed=1
    fi
done < <(find crates/*/src -mindepth 1 -type d -not -name tests | sed -E 's:^crates/[a-z]+/src/::' | sort -u)

exit "$failed"
