# shellcheck shell=bash
# What the launch scripts share: flags and what they may be, dry run, quoting. Sourced, not run.

dry_run='' # yes: print the commands, run none
rest=()    # what follows --
extra=()   # values of --extra

# One line, whatever stands in it.
say() {
  local text=${*//$'\n'/ }
  printf '%s: %s\n' "${0##*/}" "${text//[[:cntrl:]]/?}" >&2
}

die() {
  say "error: $*"
  exit 2
}

# The comment at the top of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# Reads --key=value into the variable "key", dashes as underscores. $flags lists the keys that take
# a value, $switches those that take none.
parse() {
  local key given=' '
  while (($#)); do
    key=${1%%=*} key=${key#--}
    case $1 in
      --help) usage && exit 0 ;;
      --dry-run) dry_run=yes ;;
      --) rest=("${@:2}") && return ;;
      --*)
        [[ $key =~ ^[a-z][a-z-]*$ ]] || die "unknown flag --$key; see --help"
        [[ $given != *" $key "* || $key == extra ]] || die "--$key is given twice"
        given+="$key "
        assign "$key" "$1"
        ;;
      *) die "unknown argument $1; flags are --key=value, and nepa-jax's own follow --" ;;
    esac
    shift
  done
}

# shellcheck disable=SC2154 # each script sets flags and switches
assign() {
  local key=$1 value=${2#*=}
  if [[ " $switches " == *" $key "* ]]; then
    [[ $2 != *=* ]] || die "--$key takes no value"
    printf -v "${key//-/_}" yes
    return
  fi
  [[ " $flags extra " == *" $key "* ]] || die "unknown flag --$key; see --help"
  [[ $2 == *=* ]] || die "--$key takes a value: --$key=VALUE"
  check "$key" "$value"
  if [[ $key == extra ]]; then extra+=("$value"); else printf -v "${key//-/_}" '%s' "$value"; fi
}

# Ends with an error unless a flag may have this value. What passes can stand in YAML, in arithmetic
# and in a command for another machine's shell, apart from extra, log and venv, which only ever are
# quoted words.
check() {
  local LC_ALL=C key=$1 value=$2 pattern hint
  case ${0##*/}:$key in
    *:nodes | *:gpus-per-node | *:cpus-per-gpu | *:chips-per-host | *:grace | *:notice | *:max-failures)
      pattern='^[1-9][0-9]{0,5}$' hint='a number, 1 or more'
      ;;
    *:poll | *:host | *:worker | *:max-restarts)
      pattern='^(0|[1-9][0-9]{0,5})$' hint='a number, 0 or more'
      ;;
    *:time)
      pattern='^([0-9]{1,3}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$' hint='for example 24:00:00'
      ;;
    *:topology)
      pattern='^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$' hint='for example 16x16'
      ;;
    *:jobset-version)
      pattern='^v[0-9]{1,4}(\.[0-9]{1,4}){2}$' hint='for example v0.8.0'
      ;;
    *:bucket)
      pattern='^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$' hint="the bucket's name alone"
      ;;
    *:image)
      pattern='^[a-z0-9][A-Za-z0-9_.:/-]{0,250}(@sha256:[0-9a-f]{64})?$' hint='for example HOST/PROJECT/nepa:1'
      ;;
    *:package)
      pattern='^((git\+)?(https?|ssh|file)://[A-Za-z0-9_.~:/@+=%,&?#!-]+|(/|[^-:[:cntrl:]][^:[:cntrl:]]*/)?[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl)$'
      hint='a wheel here (NAME.whl), or its URL'
      ;;
    *:extra)
      pattern='^-[^[:cntrl:]]+$' hint='a flag, for example --extra=--network=N'
      ;;
    *:log | *:venv)
      pattern='^[^-[:cntrl:]][^[:cntrl:]]*$' hint='a path'
      ;;
    *:project)
      pattern='^([a-z0-9.-]{1,60}:)?[a-z][a-z0-9-]{0,62}$' hint='small letters, digits and -'
      ;;
    slurm.sh:* | *:version | *:runtime-version | *:machine-type)
      pattern='^[A-Za-z0-9][A-Za-z0-9_.,-]{0,62}$' hint='letters, digits and _ . -'
      ;;
    *) # names, zones and kinds, as gcloud and Kubernetes have them
      pattern='^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$' hint='small letters, digits and -'
      ;;
  esac
  [[ $value ]] || die "--$key is empty; give $hint, or leave it out"
  [[ $value =~ $pattern ]] || die "--$key=${value:0:80}: give $hint"
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
  local word found=()
  for word; do
    [[ $word == --workdir=* ]] && found+=("${word#*=}")
  done
  ((${#found[@]})) || die 'no --workdir=DIR after --'
  ((${#found[@]} == 1)) || die '--workdir is given twice after --'
  [[ ${found[0]} ]] || die '--workdir= after -- is empty'
  printf '%s' "${found[0]}"
}

# Ends with an error unless a workdir lies in the mounted bucket: $1 and $2. What else a machine of
# the cloud has is lost with it.
in_bucket() {
  local LC_ALL=C
  [[ $1 =~ ^/gcs/$2/[A-Za-z0-9_./-]+$ && $1 != *..* ]] ||
    die "--workdir=${1:0:80}: is lost with the machine; give /gcs/$2/..., in plain letters"
}
