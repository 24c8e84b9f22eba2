#!/usr/bin/env bash
# One host, all its GPUs: launch/gpu.sh --config=configs/pythia.py:410m --workdir=runs/pythia-410m [--config.NAME=VALUE ...]
# Started again, the same command goes on where the run stopped. --dry-run first prints the command and does nothing.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "$0")/arguments.sh"

dry_run=
case "${1:-}" in
  --help) usage; exit ;;
  --dry-run) dry_run=1; shift ;;
esac
check_run "$@"

# JAX would take three quarters of the memory at once; runs that share a host want what they need.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
command=(python -P -m selftrain_jax run "$@")
if [ -n "$dry_run" ]; then
  printf 'XLA_PYTHON_CLIENT_MEM_FRACTION=%s' "$XLA_PYTHON_CLIENT_MEM_FRACTION"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
python -P -c 'import jax, sys; d = jax.devices(); print(f"{len(d)} x {d[0].device_kind}"); sys.exit(d[0].platform != "gpu")' ||
  { echo "no GPU seen by jax: pip install -c constraints.txt -e '.[cuda]'" >&2; exit 1; }
exec "${command[@]}"
