#!/usr/bin/env bash
#SBATCH --job-name=zray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@60
#
# Runs a zray program on the nodes of a Slurm allocation.
#
#   sbatch --nodes 4 --cpus-per-task 8 scripts/deploy/slurm.sh train.py --epochs 3
#   sbatch --nodes 4 scripts/deploy/slurm.sh -m package.module
#
# The first node is the head and runs the program; the others join it. When the program ends,
# however it ends, all of them stop. `zray-node` must be on PATH on every node, and the folder that
# sbatch is called in must be one that all nodes see: the keys of this job lie there while it runs.
# See docs/how-to/deploy-slurm.md.
set -euo pipefail

START_TIMEOUT_S=120

if [ $# -eq 0 ]; then
  sed -n '/^# Runs/,/^# See/{s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
# Short, since sockets lie in it, and on each node's own disk.
dir="${TMPDIR:-/tmp}/zray-$SLURM_JOB_ID"
# Jobs may share a host. Below the range that the kernel takes ports from by itself.
port=$((20000 + SLURM_JOB_ID % 12000))
keys=$(mktemp -d "$SLURM_SUBMIT_DIR/.zray-keys.XXXXXX") # 0700
driver=""
steps=()

# on HOST,HOST… COMMAND…: runs the command once on each of these hosts. The step sees all CPUs of
# the job there and shares them with the steps beside it.
on() {
  local list=$1 commas
  shift
  commas=${list//[^,]/}
  srun --nodelist="$list" --nodes=$((${#commas} + 1)) --ntasks-per-node=1 \
    --overlap --cpu-bind=none --kill-on-bad-exit=0 "$@"
}

joined() { local IFS=,; printf '%s' "$*"; }

finish() {
  local status=$?
  trap - EXIT
  trap '' TERM INT # What follows must not be cut short; Slurm's SIGKILL comes after its KillWait.
  if [ -n "$driver" ] && kill -TERM "$driver" 2>/dev/null; then
    wait "$driver" || true
  fi
  # shellcheck disable=SC2016  # $1 is for the shell on each node.
  on "$(joined "${hosts[@]}")" \
    bash -c 'zray-node stop --dir "$1" && rm -rf -- "$1"' stop "$dir" >&2 || true
  if [ ${#steps[@]} -gt 0 ]; then
    wait "${steps[@]}" || true
  fi
  rm -rf -- "$keys"
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# nodes_there: prints how many nodes the head knows, itself included.
nodes_there() {
  zray-node status --dir "$dir" --json 2>/dev/null |
    python3 -c 'import json, sys; print(len(json.load(sys.stdin)["nodes"]))' 2>/dev/null || echo 0
}

# await COUNT STEP: waits until so many nodes are there; fails at once where the step has ended.
await() {
  local deadline=$((SECONDS + START_TIMEOUT_S))
  until [ "$(nodes_there)" -ge "$1" ]; do
    if ! kill -0 "$2" 2>/dev/null; then
      echo "slurm.sh: a node did not start; its words are above" >&2
      return 1
    fi
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "slurm.sh: $(nodes_there) of $1 nodes after $START_TIMEOUT_S s" >&2
      return 1
    fi
    sleep 0.2
  done
}

zray-node keygen --dir "$keys" >&2

# --block: Slurm ends whatever a step leaves behind, so each node lives in a step that stays.
# shellcheck disable=SC2016  # $0 and $@ are for the shell on each node, which knows its own name.
start='exec zray-node start --block --advertise "$SLURMD_NODENAME" "$@"'
options=(--host 0.0.0.0 --port "$port" --keys "$keys" --dir "$dir")

on "$head" bash -c "$start" start --head "${options[@]}" >&2 &
steps+=($!)
await 1 "$!"
if [ ${#hosts[@]} -gt 1 ]; then
  on "$(joined "${hosts[@]:1}")" bash -c "$start" start --join "$head:$port" "${options[@]}" >&2 &
  steps+=($!)
  await "${#hosts[@]}" "$!"
fi

# In the background, because bash heeds a signal only between commands, or in wait.
zray-node run --dir "$dir" "$@" &
driver=$!
status=0
wait "$driver" || status=$?
driver=""
exit "$status"
