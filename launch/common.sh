# shellcheck shell=bash
# What the launch scripts share: flags, dry run, quoting. Sourced, not run.

dry_run='' # yes: print the commands, run none
rest=()    # what follows --
extra=()   # values of --extra

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# The comment at the top of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# Reads --key=value into the variable "key", dashes as underscores. $flags lists the keys that take
# a value, $switches those that take none.
# shellcheck disable=SC2154 # each script sets both
parse() {
  local key
  while (($#)); do
    key=${1%%=*} key=${key#--}
    case $1 in
      --help) usage && exit 0 ;;
      --dry-run) dry_run=yes ;;
      --extra=*) extra+=("${1#*=}") ;;
      --) rest=("${@:2}") && return ;;
      --*=*)
        [[ " $flags " == *" $key "* ]] || die "unknown flag --$key; see --help"
        printf -v "${key//-/_}" '%s' "${1#*=}"
        ;;
      --*)
        [[ " $flags " != *" $key "* ]] || die "--$key takes a value: --$key=VALUE"
        [[ " $switches " == *" $key "* ]] || die "unknown flag --$key; see --help"
        printf -v "${key//-/_}" yes
        ;;
      *) die "unknown argument $1; flags are --key=value, and nepa-jax's own follow --" ;;
    esac
    shift
  done
}

# Ends with one error that lists the flags without a value.
need() {
  local key variable missing=''
  for key; do
    variable=${key//-/_}
    [[ -n ${!variable} ]] || missing+=" --$key=..."
  done
  [[ -z $missing ]] || die "missing$missing; see --help"
}

# The words as one line that a shell reads back as these words.
quoted() {
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Runs a command after showing it; with --dry-run only shows it.
run() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
    return
  fi
  printf '+ %s\n' "$(quoted "$@")" >&2
  "$@"
}

# The value of --workdir among nepa-jax's arguments.
workdir_of() {
  local word
  for word; do
    [[ $word == --workdir=* ]] && printf '%s' "${word#*=}" && return
  done
  die 'no --workdir=DIR after --'
}
