#!/bin/sh
# Installs the S3 server that the tests of stead-store start, into target/s3-venv. Needs python3 with venv.
set -eu
cd "$(dirname "$0")/.."
venv="${CARGO_TARGET_DIR:-target}/s3-venv"
[ -x "$venv/bin/moto_server" ] && exit 0
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet 'moto[server]>=5.1,<6'
