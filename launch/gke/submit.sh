#!/usr/bin/env bash
# One TPU slice on GKE, as a JobSet:
#   launch/gke/submit.sh [--dry-run] --name=NAME --image=IMAGE --accelerator=tpu-v5p-slice --topology=2x2x4 --hosts=4 --chips=4 \
#     [--claim=PVC] -- --config=configs/FILE.py --workdir=gs://BUCKET/DIR [--config.NAME=VALUE ...]
# or, on a cluster that xpk made, through xpk:
#   launch/gke/submit.sh [--dry-run] --name=NAME --image=IMAGE --xpk=CLUSTER --zone=ZONE --type=v5p-32 -- --config=... --workdir=...
# IMAGE is built from launch/Dockerfile. CHIPS are those of one host. PVC, a volume that many pods may write, becomes /runs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/arguments.sh
source "$here/../arguments.sh"

# The image holds this folder's configs; what else another image holds is not known here.
is_file() { [[ "$1" == [/~]* || -f "$here/../../$1" ]]; }

dry_run='' name='' image='' accelerator='' topology='' hosts='' chips='' claim='' cluster='' zone='' type=''
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit ;;
    --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --xpk=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --) shift; break ;;
    *) refuse "$1 is not understood; what belongs to selftrain comes after --" ;;
  esac
  shift
done
if [ -n "$cluster" ]; then needed="$name|$image|$zone|$type|"; else needed="$name|$image|$accelerator|$topology|$hosts|$chips|"; fi
if [[ "|$needed" == *'||'* ]]; then usage >&2; exit 2; fi
check name "$name" '[a-z]([a-z0-9-]*[a-z0-9])?'
check image "$image" '[a-z0-9][A-Za-z0-9._/:@-]*'
check accelerator "$accelerator" '[a-z0-9-]+'
check topology "$topology" '[0-9]+(x[0-9]+)*'
check hosts "$hosts" '[1-9][0-9]*'
check chips "$chips" '[1-9][0-9]*'
check claim "$claim" '[a-z0-9]([a-z0-9.-]*[a-z0-9])?'
check xpk "$cluster" '[a-z]([a-z0-9-]*[a-z0-9])?'
check zone "$zone" '[a-z0-9-]+'
check type "$type" '[a-z0-9-]+'
check_run "$@"

if [ -z "$cluster$claim" ] && [[ " $*" != *' --workdir=gs://'* ]]; then
  refuse "the workdir would go with its pod: name --workdir=gs://BUCKET/DIR, or a volume with --claim"
fi

if [ -n "$cluster" ]; then
  command=(xpk workload create --workload="$name" --cluster="$cluster" --zone="$zone" --tpu-type="$type"
    --docker-image="$image" --command="selftrain run$(printf ' %q' "$@")" --max-restarts=20)
  if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; else "${command[@]}"; fi
  exit 0
fi

# The arguments as a JSON list. Kubernetes would put a variable's value in place of $(NAME); $$ stands for one $.
list='"run"'
for argument in "$@"; do
  argument=${argument//\$/\$\$}
  argument=${argument//\\/\\\\}
  list+=", \"${argument//\"/\\\"}\""
done
manifest=$(< "$here/jobset.yaml")
if [ -z "$claim" ]; then manifest=$(grep -v '# with --claim$' <<< "$manifest"); fi
# Quoted replacements: an & in them stands for itself.
manifest=${manifest//@NAME@/"$name"}
manifest=${manifest//@IMAGE@/"$image"}
manifest=${manifest//@ACCELERATOR@/"$accelerator"}
manifest=${manifest//@TOPOLOGY@/"$topology"}
manifest=${manifest//@HOSTS@/"$hosts"}
manifest=${manifest//@CHIPS@/"$chips"}
manifest=${manifest//@CLAIM@/"$claim"}
manifest=${manifest//@ARGUMENTS@/"[$list]"}
if [ -n "$dry_run" ]; then
  echo "kubectl apply -f - <<'EOF'"
  printf '%s\nEOF\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply -f -
fi
