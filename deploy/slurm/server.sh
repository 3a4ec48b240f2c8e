#!/usr/bin/env bash
# The server of one node: `srun` of train.sbatch starts it. It writes its address to $MIXSERVE_RUN/addresses/NODE, starts
# `mixserve serve` again when that dies, at the same port, and waits at SIGTERM until it has finished its calls.
set -euo pipefail

address_file=$MIXSERVE_RUN/addresses/$SLURMD_NODENAME
log=$MIXSERVE_RUN/server-$SLURMD_NODENAME.log
# Servers on nodes of their own must be reached by others, and need TLS and tokens in mixture.yaml, or --insecure.
if [ "$MIXSERVE_WHERE" = apart ]; then host=$SLURMD_NODENAME; else host=127.0.0.1; fi
# Split into words.
read -ra options <<<"${MIXSERVE_SERVE_OPTIONS:-}"

port=0 # a free one, since other jobs may be on this node
stopping=''
# Slurm signals all processes of a step, so the server has heard it too. A second SIGTERM would end it at once.
trap 'stopping=1' TERM INT

runs() { kill -0 "$1" 2>/dev/null; }

# The port that the server chose, from its log; other programs see the file only when it is whole.
tell_address() {
  local address
  address=$(sed -n 's/.*serving on \([^ "]*:[0-9]*\).*/\1/p' "$log" | tail -n 1)
  [ -n "$address" ] || return 1
  port=${address##*:}
  echo "$host:$port" >"$address_file.new"
  mv "$address_file.new" "$address_file"
}

echo "$SLURM_STEP_ID" >"$MIXSERVE_RUN/steps/servers"
: >"$log"
delay_s=1
while [ -z "$stopping" ]; do
  began=$SECONDS
  # Slurm kills 30 s after SIGTERM (KillWait), and replies have 2 s after these 20.
  mixserve serve "$MIXSERVE_MIXTURE" --host "$host" --port "$port" --grace-s 20 "${options[@]}" 2>>"$log" &
  server=$!
  [ -z "$stopping" ] || kill -TERM "$server" # the signal came before it was there
  until [ "$port" != 0 ] || tell_address || ! runs "$server"; do sleep 0.2 || true; done
  status=0
  wait "$server" || status=$?
  while runs "$server"; do # a signal had ended the wait
    status=0
    wait "$server" || status=$?
  done
  [ -z "$stopping" ] || exit 0
  # Something in the configuration or at this node is wrong. Once it has served, others go on without it meanwhile.
  if [ "$status" = 2 ] && [ "$port" = 0 ]; then
    echo "$SLURMD_NODENAME: mixserve cannot serve $MIXSERVE_MIXTURE:" >&2
    tail -n 3 "$log" >&2
    exit 2
  fi
  [ $((SECONDS - began)) -lt 60 ] || delay_s=1
  echo "$SLURMD_NODENAME: the server ended with $status, and starts again in $delay_s s" >&2
  sleep "$delay_s" &
  wait $! || true
  delay_s=$((delay_s < 16 ? delay_s * 2 : 30))
done
