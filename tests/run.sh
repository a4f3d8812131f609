#!/usr/bin/env bash
# Installs mmjax with its test extras and runs the tests: the quick ones (default), --slow, or --all.
# PYTHON chooses the interpreter; everything else on the command line goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

which=(-m "not slow")
case "${1:-}" in
  --all) which=(); shift ;;
  --slow) which=(-m slow); shift ;;
esac

source launch/environment.sh
environment .venv-test test
exec python -m pytest -q -n "${TEST_PROCESSES:-2}" --dist worksteal --durations=40 "${which[@]}" "$@"
