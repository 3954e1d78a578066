#!/bin/sh
# Runs every test, after installing what they start. Debian 12, as root. Arguments go to `cargo test`.
# Long rounds are seeded and short; FOREBAY_FULL=1 runs them in full.
set -eu
cd "$(dirname "$0")/.."
tests/install.sh
exec cargo test --locked --no-fail-fast "$@"
