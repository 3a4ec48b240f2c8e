#!/usr/bin/env bash
# A Node.js client that uses only the .proto reads the same bytes as ours, also over TLS with a token. PYTHON is an interpreter with mixserve.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

for tool in node npm; do
  if ! command -v "$tool" >/dev/null; then
    echo "test-node: $tool is missing; install Node.js 18 or newer with npm" >&2
    exit 1
  fi
done

ready=tests/node/node_modules/.ready
if [[ tests/node/package.json -nt $ready ]]; then
  npm install --prefix tests/node --loglevel=error --no-audit --no-fund >/dev/null
  touch "$ready"
fi
"$python" -m tests.node.compare
