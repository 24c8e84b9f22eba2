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

configs=$(cd "$(dirname "${BASH_SOURCE[0]}")/../configs" && pwd) # those that a name alone means

is_file() { # PATH: whether the run will find this config; a script whose run looks elsewhere has its own
  [ -f "${1/#\~/${HOME:-}}" ]
}

check_run() { # ARGUMENT...: what `selftrain run` gets
  local config='' workdir='' kept
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
  if [ -n "$workdir" ] && [ -z "$config" ]; then # a folder keeps its settings
    for kept in config.json study.json; do if is_file "$workdir/$kept"; then return; fi; done
    refuse "--workdir=$workdir: no settings are seen in it from here: name a config with --config=FILE.py"
  fi
  if [ -z "$workdir" ]; then usage >&2; exit 2; fi
  local file=${config%%:*}
  if [[ "$file" != *[/.]* && -f "$configs/$file.py" ]]; then return; fi
  is_file "$file" || refuse "--config=$config: there is no such file where the run would look for it"
}
