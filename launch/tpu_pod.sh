#!/usr/bin/env bash
# A Cloud TPU VM of any size, one process per worker:
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE --type=TYPE [options] -- --config=FILE.py --workdir=DIR [--config.NAME=VALUE ...]
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE [--queued] --delete
# options:
#   --type=v4-32          accelerator type          --version=NAME   runtime version (default: that of the type)
#   --queued              through a queued resource  --spot           at the spot price; preempted ones are made anew
#   --project=ID          Google Cloud project       --setup=COMMAND  run on every worker first, e.g. to mount DIR
#   --attempts=N          starts at most (default 20)
# Makes the TPU VM or takes the one of that name, installs this commit on every worker, runs, and shows worker 0's output. DIR
# is gs://BUCKET/FOLDER, or a folder that all workers see, such as Filestore. After a preemption the same command goes on from
# what is saved. The TPU VM stays until --delete.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/arguments.sh
source "$root/launch/arguments.sh"

# The workers get the last commit; what else they have is not known here.
# shellcheck disable=SC2329
is_file() { [[ "$1" == [/~]* ]] || git -C "$root" cat-file -e "HEAD:$1" 2> /dev/null; }

dry_run='' name='' zone='' type='' version='' queued='' spot='' project='' setup='' attempts=20 delete=''
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit ;;
    --dry-run) dry_run=1 ;;
    --queued) queued=1 ;;
    --spot) spot=1 ;;
    --delete) delete=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --attempts=*) attempts=${1#*=} ;;
    --) shift; break ;;
    *) refuse "$1 is not understood; what belongs to selftrain comes after --" ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$delete$type" ]; then usage >&2; exit 2; fi
check name "$name" '[a-z]([a-z0-9-]*[a-z0-9])?'
check zone "$zone" '[a-z0-9-]+'
check type "$type" '[a-z0-9-]+'
check version "$version" '[A-Za-z0-9._-]+'
check project "$project" '[a-z0-9.:-]+'
check attempts "$attempts" '[1-9][0-9]*'
if [ -z "$delete" ]; then check_run "$@"; fi
where=(--zone="$zone")
if [ -n "$project" ]; then where+=(--project="$project"); fi
if [ -z "$version" ]; then
  case "$type" in
    v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    '') ;;
    *) echo "the runtime version of $type is not known here: name it with --version" >&2; exit 2 ;;
  esac
fi
log=$(mktemp)
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$log" "$archive"' EXIT

# Runs a command, or prints it.
step() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"; echo
  else
    "$@"
  fi
}

# The TPU VM's state; empty when there is none.
state() {
  if [ -z "$dry_run" ]; then
    gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2> /dev/null || true
  fi
}

remove() {
  if [ -n "$queued" ]; then
    step gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    step gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

create() {
  local price=()
  if [ -n "$spot" ]; then price=(--spot); fi
  if [ -n "$queued" ]; then
    step gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
      --accelerator-type="$type" --runtime-version="$version" "${price[@]}"
    until [ -n "$dry_run" ] || [ "$(state)" = READY ]; do
      case "$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)')" in
        FAILED | SUSPENDED) echo "the queued resource $name failed; see gcloud compute tpus queued-resources describe" >&2; exit 1 ;;
      esac
      sleep "${SELFTRAIN_POLL_SECONDS:-30}"
    done
  else
    step gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type="$type" --version="$version" "${price[@]}"
  fi
}

on_all() {
  step gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# Called where a failure does not end the script by itself.
prepare() {
  case "$(state)" in
    READY) ;;
    '') create || return ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      until [ "$(state)" = READY ]; do sleep "${SELFTRAIN_POLL_SECONDS:-30}"; done ;;
    *) { remove && create; } || return ;; # preempted, stopped or broken
  esac
  git -C "$root" archive --format=tar.gz -o "$archive" HEAD || return
  step gcloud compute tpus tpu-vm scp "$archive" "$name:selftrain.tar.gz" "${where[@]}" --worker=all || return
  # The runtime's own Python is too old; uv brings one.
  on_all 'mkdir -p selftrain && tar -xzf selftrain.tar.gz -C selftrain && cd selftrain && python3 -m pip install -q --user uv && { [ -d .venv ] || python3 -m uv venv -q --python 3.12; } && python3 -m uv pip install -q -c constraints.txt -e ".[tpu,gcs]"' || return
  if [ -n "$setup" ]; then on_all "$setup"; fi
}

if [ -n "$delete" ]; then remove; exit 0; fi

arguments=$(printf ' %q' "$@")
# What an earlier connection left behind would hold the chips. Every worker keeps a log; worker 0's is shown.
remote="cd selftrain; : > run.log; if [ -f run.pid ]; then kill \$(cat run.pid) 2> /dev/null; fi
(.venv/bin/python -P -u -m selftrain_jax run$arguments & echo \$! > run.pid; wait \$!) >> run.log 2>&1 & job=\$!
case \$(hostname) in *-w-0) tail -f --pid=\$job run.log ;; esac; wait \$job"

for ((attempt = 1; attempt <= attempts; attempt++)); do
  if prepare && on_all "$remote" 2>&1 | tee "$log"; then exit 0; fi
  if grep -Eq '^selftrain( [a-z]+)?: error:' "$log"; then exit 2; fi
  echo "attempt $attempt of $attempts ended early (the TPU VM is $(state)); starting again" >&2
  sleep "${SELFTRAIN_POLL_SECONDS:-30}"
done
exit 1
