#!/usr/bin/env bash
# Tells the gateway of a running compose.yaml what its engine serves, and makes a team with a key. The key is shown this once.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${DESCANT_MODEL_NAME:-smollm2}
admin() { ${DESCANT_ADMIN:-docker compose exec -T gateway descant admin} "$@"; }

admin backend put local http://engine:8000
admin model put "$model" --backend local
for adapter in tickets sql polite; do
    admin model put "$adapter" --parent "$model"
done
admin team create demo
admin key create demo --name first
