#!/usr/bin/env bash
# One host, all its GPUs: launch/gpu.sh --config=configs/pythia.py:410m --workdir=runs/pythia-410m [--config.NAME=VALUE ...]
# Started again, the same command goes on where the run stopped. --dry-run first prints the command and does nothing.
set -euo pipefail

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -lt 2 ]; then sed -n '2,3s/^# //p' "$0" >&2; exit 2; fi

# JAX would take three quarters of the memory at once; runs that share a host want what they need.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
command=(python -m selftrain_jax run "$@")
if [ -n "$dry_run" ]; then
  printf 'XLA_PYTHON_CLIENT_MEM_FRACTION=%s' "$XLA_PYTHON_CLIENT_MEM_FRACTION"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
python -c 'import jax, sys; d = jax.devices(); print(f"{len(d)} x {d[0].device_kind}"); sys.exit(d[0].platform != "gpu")' ||
  { echo "no GPU seen by jax: pip install -c constraints.txt -e '.[cuda]'" >&2; exit 1; }
exec "${command[@]}"
