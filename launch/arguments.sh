# Sourced by the launch scripts: what would fail later, on machines that are paid for, is refused here.

usage() { # the comment that the script begins with
  sed -n '2,/^set /s/^# //p' "$0"
}

refuse() {
  echo "$1" >&2
  exit 2
}

check() { # NAME VALUE PATTERN: an option, which may be empty; other characters would mean something where it is put in
  [[ -z "$2" || "$2" =~ ^($3)$ ]] || refuse "--$1=$(printf %q "$2") is not understood: it must match $3"
}

is_file() { # PATH: whether the run will find this config; a script whose run looks elsewhere has its own
  [ -f "${1/#\~/${HOME:-}}" ]
}

check_run() { # ARGUMENT...: what `selftrain run` gets
  local config='' workdir=''
  while [ $# -gt 0 ]; do
    if [[ "$1" == *[[:cntrl:]]* ]]; then refuse "$(printf %q "$1") holds a control character"; fi
    case "$1" in
      --config=*) config=${1#*=} ;;
      --config) config=${2:-} ;;
      --workdir=*) workdir=${1#*=} ;;
      --workdir) workdir=${2:-} ;;
    esac
    shift
  done
  if [ -z "$config" ] || [ -z "$workdir" ]; then usage >&2; exit 2; fi
  is_file "${config%%:*}" || refuse "--config=$config: there is no such file where the run would look for it"
}
