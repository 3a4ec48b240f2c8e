#!/bin/sh
# Makes certificates and tokens for deploy/compose.yaml in deploy/secrets:
#
#   sh deploy/compose/secrets.sh [NAME…]
#
# The certificate is for mixserve-1, mixserve-2 and localhost. A NAME is one more by which trainers connect, such as
# DNS:data.example or IP:192.0.2.7. Called again, it makes a new certificate by the same authority, and leaves the tokens.
# ENGINE=podman uses podman in place of docker; the image `mixserve` must be there.
#
#   authority/ca.key                             signs certificates; no container needs it
#   ca.pem                                       for every client
#   server/server.pem, server.key, tokens.yaml   mounted at /secrets of both servers
#   trainer/ca.pem, token                        mounted at /secrets of the trainer
set -eu
umask 077
cd "$(dirname "$0")/.."
names=DNS:mixserve-1,DNS:mixserve-2,DNS:localhost,IP:127.0.0.1
for name in "$@"; do names=$names,$name; done
mkdir -p secrets/authority
cd secrets

# put FOLDER FILE…: containers run as user 10001. Only root gives files away, and that of a container does. No health
# check: Podman without systemd would print errors about it.
put() {
  # shellcheck disable=SC2016  # the container's shell expands them
  "${ENGINE:-docker}" run --rm --no-healthcheck --network none --user 0:0 --volume "$PWD:/secrets" \
    --workdir /secrets --entrypoint sh "${MIXSERVE_IMAGE:-mixserve}" -euc '
      folder=$1; shift
      install -d -o 10001 -g 10001 -m 0700 "$folder"
      install -o 10001 -g 10001 -m 0600 "$@" "$folder"' put "$@"
}
new_key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
is_new=false
if [ ! -e ca.pem ]; then
  is_new=true
  # shellcheck disable=SC2086  # several words
  openssl req -x509 $new_key -days 3650 -subj "/CN=mixserve authority" -keyout authority/ca.key -out ca.pem 2>/dev/null
elif [ ! -e authority/ca.key ]; then
  echo "$PWD/authority/ca.key is not there: bring it back, or remove $PWD to begin again" >&2
  exit 2
fi
# shellcheck disable=SC2086
openssl req -new $new_key -subj "/CN=mixserve" -keyout authority/server.key -out authority/server.csr 2>/dev/null
echo "subjectAltName=$names" >authority/names
openssl x509 -req -in authority/server.csr -CA ca.pem -CAkey authority/ca.key -CAserial authority/serial -CAcreateserial \
  -days 90 -extfile authority/names -out authority/server.pem 2>/dev/null
put server authority/server.key authority/server.pem
if $is_new; then
  sh ../compose/token.sh reader trainer >authority/token
  put trainer authority/token ca.pem
fi
rm -f authority/server.* authority/token authority/names
echo "made a certificate for $names in $PWD"
