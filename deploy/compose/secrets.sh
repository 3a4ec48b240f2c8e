#!/bin/sh
# Makes certificates and tokens for deploy/compose.yaml in deploy/secrets:
#
#   sh deploy/compose/secrets.sh [NAME…]
#
# The certificate is for mixserve-1, mixserve-2 and localhost. A NAME is one more by which trainers connect, such as
# DNS:data.example or IP:192.0.2.7. ENGINE=podman uses podman in place of docker; the image `mixserve` must be there.
#
#   authority/ca.key                             signs certificates; no container needs it: keep it elsewhere
#   ca.pem                                       for every client
#   server/server.pem, server.key, tokens.yaml   mounted at /secrets of both servers
#   trainer/ca.pem, token                        mounted at /secrets of the trainer
set -eu
umask 077
cd "$(dirname "$0")/.."
names=DNS:mixserve-1,DNS:mixserve-2,DNS:localhost,IP:127.0.0.1
for name in "$@"; do names=$names,$name; done
[ ! -e secrets ] || { echo "$PWD/secrets is there already: remove it first, if you want new ones" >&2; exit 2; }

mkdir -p secrets/authority secrets/server secrets/trainer
cd secrets
new_key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
# shellcheck disable=SC2086  # several words
openssl req -x509 $new_key -days 3650 -subj "/CN=mixserve authority" -keyout authority/ca.key -out ca.pem 2>/dev/null
# shellcheck disable=SC2086
openssl req -new $new_key -subj "/CN=mixserve" -keyout server/server.key -out authority/server.csr 2>/dev/null
echo "subjectAltName=$names" >authority/names
openssl x509 -req -in authority/server.csr -CA ca.pem -CAkey authority/ca.key -CAcreateserial -days 90 \
  -extfile authority/names -out server/server.pem 2>/dev/null
cp ca.pem trainer/ca.pem

# The containers' user is 10001, and only root gives files away: that of a container does.
give() {
  "${ENGINE:-docker}" run --rm --network none --user 0:0 --entrypoint chown --volume "$PWD/$1:/secrets" \
    "${MIXSERVE_IMAGE:-mixserve}" -R 10001:10001 /secrets
}
give server
sh ../compose/token.sh reader trainer >trainer/token
give trainer
echo "made $PWD for $names"
