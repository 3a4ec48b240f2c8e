#!/bin/sh
# Prints a new token for the servers of deploy/compose.yaml, which know it within a second:
#
#   sh deploy/compose/token.sh reader|trainer|admin NAME
#
# The servers get its hash alone. ENGINE=podman uses podman in place of docker.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 reader|trainer|admin NAME" >&2; exit 2; }
secrets=$(cd "$(dirname "$0")/../secrets" && pwd)
# The image's user owns the folder: a token file that somebody else wrote could not be read.
# No health check: Podman without systemd would print errors about it.
exec "${ENGINE:-docker}" run --rm --no-healthcheck --network none --volume "$secrets/server:/secrets" \
  "${MIXSERVE_IMAGE:-mixserve}" token new "$1" --name "$2" --mixture train --file /secrets/tokens.yaml
