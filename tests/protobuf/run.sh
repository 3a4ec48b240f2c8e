#!/usr/bin/env bash
# The client's wire under protobuf 5, 6 and 7, each in its own environment, which holds only the client.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT

# Built from a copy: setuptools leaves a build folder next to the sources, and would copy stale files from an old one.
mkdir "$built/client"
cp -r client/pyproject.toml client/README.md client/mixserve_client "$built/client"
grep -v '^protobuf==' constraints.txt >"$built/constraints.txt"
"$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$built" "$built/client"

for major in 5 6 7; do
  venv=.venv-protobuf$major
  lowest=$([[ $major == 5 ]] && echo 5.28 || echo "$major") # as in client/pyproject.toml
  install=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
  if [[ ! -e $venv/.ready || constraints.txt -nt $venv/.ready || client/pyproject.toml -nt $venv/.ready ]]; then
    "$python" -m venv --clear "$venv"
    "${install[@]}" --constraint "$built/constraints.txt" "protobuf>=$lowest,<$((major + 1))" "$built"/*.whl
    touch "$venv/.ready"
  fi
  "${install[@]}" --no-deps --force-reinstall "$built"/*.whl
  "$venv/bin/python" -m pip --disable-pip-version-check check >"$built/check" || { cat "$built/check" >&2; exit 1; }
  "$venv/bin/python" -I -W error tests/protobuf/check_client.py "$major"
done
