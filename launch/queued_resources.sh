#!/usr/bin/env bash
# Runs nepa-jax to its end on a queued TPU: asks for it, waits, installs, starts, and does so again
# after every preemption, until WORKDIR/DONE exists. Then deletes the TPU.
#
# launch/queued_resources.sh --name=NAME --zone=ZONE --accelerator-type=v5litepod-256
#     --runtime-version=v2-alpha-tpuv5-lite --package=WHEEL_OR_URL --bucket=BUCKET
#     [flags] -- pretrain --config=... --workdir=/gcs/BUCKET/runs/a
#
#   --project=PROJECT    default: gcloud's
#   --spot               preemptible, much cheaper
#   --autocheckpoint     SIGTERM before maintenance (gcloud alpha)
#   --extra=FLAG         a further flag for gcloud's create, e.g. --extra=--network=N; may be repeated
#   --poll=60            seconds between looks
#   --max-failures=5     ends that were neither done nor a preemption, until it gives up
#   --grace=300          seconds from SIGTERM to SIGKILL: time to save
#   --dry-run            print one round of commands, run none
#
# Keep it running: in tmux, or on a small VM. It holds no state: started again with the same flags it
# goes on with what it finds. Exit codes: 0 the run is done, 2 a mistake (in the flags or in the
# run's), 1 too many failures. With 1 and 2 after a start the TPU is kept for a look, and costs money.
#
# Example:
#   launch/queued_resources.sh --name=nepa --zone=us-west4-a --accelerator-type=v5litepod-256 \
#     --runtime-version=v2-alpha-tpuv5-lite --spot --package=dist/nepa_jax-0.1.0-py3-none-any.whl \
#     --bucket=my-bucket -- pretrain --config=configs/nepa.py:L/14 \
#     --config.data.path=/gcs/my-bucket/imagenet --workdir=/gcs/my-bucket/runs/nepa-l

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

flags='name zone project accelerator-type runtime-version package bucket poll max-failures grace'
switches='spot autocheckpoint'
name='' zone='' project='' accelerator_type='' runtime_version='' package='' bucket='' spot=''
autocheckpoint='' poll=60 max_failures=5 grace=300
failures=0
ssh_limit_s=300 # ssh to a machine that is being taken away may hang

queue() {
  local verb=$1 release=()
  shift
  [[ $verb == create && $autocheckpoint ]] && release=(alpha)
  run gcloud ${release[@]+"${release[@]}"} compute tpus queued-resources "$verb" "$name" \
    "--zone=$zone" ${project:+"--project=$project"} "$@"
}

create() {
  queue create "--node-id=$name" "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" ${spot:+--spot} \
    ${autocheckpoint:+--autocheckpoint-enabled} ${extra[@]+"${extra[@]}"}
}

# --force: the nodes too.
drop() { queue delete --force --quiet; }

# Its state; NONE if there is no such request, UNKNOWN if gcloud does not say.
state() {
  local text
  if text=$(queue describe '--format=value(state.state)' 2>&1); then
    printf '%s' "${text##*$'\n'}"
  elif [[ $text == *NOT_FOUND* || $text == *'not found'* ]]; then
    printf NONE
  else
    say "gcloud: $text"
    printf UNKNOWN
  fi
}

workers() {
  local verb=$1
  shift
  "$here/tpu_vm.sh" "$verb" "--name=$name" "--zone=$zone" ${project:+"--project=$project"} \
    ${dry_run:+--dry-run} "$@"
}

finished() { run gcloud storage ls "$url/DONE" > /dev/null 2>&1; }

install_and_start() {
  workers install "--package=$package" "--bucket=$bucket" && start
}

start() { workers start "--grace=$grace" -- "${rest[@]}"; }

# What is left on other workers ends first.
restart() { workers stop && start; }

costs() {
  say "the TPU, if it is there, goes on and costs money until: launch/tpu_vm.sh delete --name=$name --zone=$zone"
}

failed() {
  failures=$((failures + 1))
  say "failure $failures of $max_failures: $1"
  ((failures < max_failures)) && return
  say "given up. See: launch/tpu_vm.sh logs --name=$name --zone=$zone"
  costs
  exit 1
}

# One look at a run on a TPU that is there. A command that fails is tried again in the next round.
tend() {
  local status
  status=$(timeout --kill-after=10 "$ssh_limit_s" "$here/tpu_vm.sh" status "--name=$name" \
    "--zone=$zone" ${project:+"--project=$project"} 2> /dev/null) || status=unreachable
  status=${status##*$'\n'}
  say "run: $status"
  case $status in
    idle) install_and_start || say 'install or start failed; again in the next round' ;;
    'exit 0') # it saved after SIGTERM, or has just ended
      finished || restart || say 'restart failed; again in the next round'
      ;;
    'exit 2')
      say "the run's flags or data are wrong: launch/tpu_vm.sh logs --name=$name --zone=$zone"
      costs
      exit 2
      ;;
    exit*)
      failed "the run ended with $status"
      restart || say 'restart failed; again in the next round'
      ;;
  esac
}

show_round() {
  create
  queue describe '--format=value(state.state)'
  install_and_start
  workers status
  run gcloud storage ls "$url/DONE"
  drop
}

main() {
  local found
  trap 'say "this script ends, the run does not; start it again to look after the run"; costs; exit 130' INT TERM HUP
  until finished; do
    found=$(state)
    say "TPU: $found"
    case $found in
      NONE) create || failed 'gcloud could not ask for the TPU' ;;
      ACTIVE) tend ;;
      SUSPENDED) drop || say 'delete failed; again in the next round' ;; # preempted: then anew
      FAILED)
        failed 'the request for the TPU failed'
        drop || say 'delete failed; again in the next round'
        ;;
    esac
    sleep "$poll"
  done
  [[ $(state) == NONE ]] || drop
  say "done: $url/DONE"
}

parse "$@"
need name zone accelerator-type runtime-version package bucket
((${#rest[@]})) || die 'nothing to run: give -- pretrain --config=... --workdir=/gcs/BUCKET/...'
workdir=$(workdir_of "${rest[@]}")
in_bucket "$workdir" "$bucket"
url=gs://${workdir#/gcs/}
if [[ $dry_run ]]; then show_round; else main; fi
