#!/bin/sh
# Checks /openapi.json of a live server with openapi-spec-validator, and that the server does what it says with schemathesis.
# Installs both into target/openapi-venv; needs python3 with venv. Arguments: the stead binary, target/debug/stead by default.
set -eu
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
stead="${1:-$target/debug/stead}"
venv="$target/openapi-venv"
if ! [ -x "$venv/bin/schemathesis" ]; then
    if ! { python3 -m venv "$venv" \
        && "$venv/bin/pip" install --quiet 'openapi-spec-validator>=0.9,<1' 'schemathesis>=4.32,<5'; }; then
        rm -rf "$venv"
        echo 'skipped: openapi-spec-validator and schemathesis cannot be installed here'
        exit 0
    fi
fi

dir=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
"$stead" start --data "$dir/data" --listen 127.0.0.1:0 --json --supervise=false >"$dir/ready" 2>"$dir/stderr" &
server=$!
for _ in $(seq 300); do
    [ -s "$dir/ready" ] && break
    kill -0 "$server" || { cat "$dir/stderr"; exit 1; }
    sleep 0.1
done
address=$(sed -n 's/.*"address":"\([^"]*\)".*/\1/p' "$dir/ready")
"$venv/bin/python" - "http://$address/openapi.json" "$dir/openapi.json" <<'PYTHON'
import sys, urllib.request
open(sys.argv[2], "wb").write(urllib.request.urlopen(sys.argv[1], timeout=10).read())
PYTHON
"$venv/bin/openapi-spec-validator" "$dir/openapi.json"
# A copy would write wherever its address says. What schemathesis keeps of a run goes with the directory.
root=$(pwd)
case $venv in /*) ;; *) venv="$root/$venv" ;; esac
(cd "$dir" && PYTHONPATH="$root/scripts" PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS=schemathesis_hooks \
    "$venv/bin/schemathesis" --config-file "$root/scripts/schemathesis.toml" run openapi.json --url "http://$address" \
    --exclude-path-regex '/copy$' --no-color)
kill -0 "$server" || { echo 'the server has ended'; cat "$dir/stderr"; exit 1; }
