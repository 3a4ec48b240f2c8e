#!/usr/bin/env bash
# One trainer: `srun` of train.sbatch starts it. It waits for the servers' addresses, and becomes the command with
# MIXSERVE_ADDRESS in its environment: the server of its own node, or all of the servers that have nodes of their own.
set -euo pipefail
shopt -s nullglob

# server.sh writes to NAME.new, and renames it.
found() {
  if [ "$MIXSERVE_WHERE" = beside ]; then
    files=("$MIXSERVE_RUN/addresses/$SLURMD_NODENAME")
    [ -e "${files[0]}" ]
  else
    files=("$MIXSERVE_RUN"/addresses/*)
    [ "${#files[@]}" -ge "$MIXSERVE_SERVERS" ] && [[ "${files[*]}" != *.new* ]]
  fi
}
until found; do sleep 0.2; done
MIXSERVE_ADDRESS=$(cat "${files[@]}" | paste -s -d ,)
export MIXSERVE_ADDRESS
echo "$SLURM_STEP_ID" >"$MIXSERVE_RUN/steps/trainers"
exec "$@"
