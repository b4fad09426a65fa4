#!/usr/bin/env bash
# Writes .env for compose.yaml, with secrets made now. Never overwrites one: losing the pepper makes all keys invalid.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -e .env ]]; then
    echo ".env is there already; nothing done." >&2
    exit 1
fi
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat >.env <<END
POSTGRES_PASSWORD=$(secret)
DESCANT_KEY_PEPPER=$(secret)
DESCANT_ADMIN_KEY=$(secret)
DESCANT_INTERNAL_KEY=$(secret)
END
echo "Wrote .env. Keep a copy of it in a safe place."
