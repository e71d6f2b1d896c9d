#!/usr/bin/env bash
# Runs nepa-jax on all workers of a Cloud TPU VM or pod.
#
# launch/tpu_vm.sh VERB --name=NAME --zone=ZONE [--project=PROJECT] [--dry-run]
#
#   create   make the TPU
#              --accelerator-type=v5litepod-256
#              --version=v2-alpha-tpuv5-lite     the software image
#              [--spot] [--autocheckpoint]       cheaper but preemptible; SIGTERM before maintenance
#              [--extra=FLAG]...                 a further flag for gcloud, e.g. --extra=--network=N
#   install  on all workers: Python, nepa-jax, and the bucket at /gcs/BUCKET
#              --package=nepa_jax-0.1.0-py3-none-any.whl    a wheel here, or a URL (git+https://...)
#              [--bucket=BUCKET]
#   start    on all workers, in the background: -- pretrain --config=... --workdir=/gcs/BUCKET/...
#              [--grace=300]    seconds from SIGTERM to SIGKILL: time to save
#   status   of worker 0: idle (nothing was started since it booted), running, or "exit CODE"
#   logs     of one worker, as they grow: [--worker=0]
#   stop     on all workers: SIGTERM, at which a run saves, and wait for the end
#   delete   the TPU (asks first). It costs money until then
#
# Example:
#   launch/tpu_vm.sh create --name=nepa --zone=us-west4-a --accelerator-type=v5litepod-256 \
#     --version=v2-alpha-tpuv5-lite --spot --dry-run

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

flags='name zone project accelerator-type version package bucket grace worker'
switches='spot autocheckpoint'
name='' zone='' project='' accelerator_type='' version='' package='' bucket='' spot=''
autocheckpoint='' grace=300 worker=0
uv_version=0.13.9

tpu() {
  local verb=$1 release=()
  shift
  [[ $verb == create && $autocheckpoint ]] && release=(alpha)
  run gcloud ${release[@]+"${release[@]}"} compute tpus tpu-vm "$verb" "$@" \
    "--zone=$zone" ${project:+"--project=$project"}
}

# Runs a script on worker $1; its shell there is bash.
on_worker() { tpu ssh "$name" "--worker=$1" "--command=$2"; }

create() {
  need accelerator-type version
  tpu create "$name" "--accelerator-type=$accelerator_type" "--version=$version" \
    ${spot:+--spot} ${autocheckpoint:+--autocheckpoint-enabled} ${extra[@]+"${extra[@]}"}
}

# Of what the lock lists, the workers get the tested versions.
install() {
  need package
  local requirement lock=$here/../requirements.lock
  if [[ $package == *://* ]]; then
    requirement=$(quoted "nepa-jax[tpu] @ $package")
    tpu scp "$lock" "$name:" --worker=all
  else
    [[ -f $package ]] || die "--package=$package: no such file; pip wheel --no-deps -w dist . makes one"
    requirement="\"nepa-jax[tpu] @ file://\$HOME/${package##*/}\""
    tpu scp "$package" "$lock" "$name:" --worker=all
  fi
  on_worker all "set -euo pipefail
mkdir -p ~/nepa
[ \"\$(~/nepa/uv --version 2> /dev/null | cut -d ' ' -f 2)\" = $uv_version ] ||
  curl -LsSf https://astral.sh/uv/$uv_version/install.sh | env UV_UNMANAGED_INSTALL=\$HOME/nepa sh
~/nepa/uv venv --quiet --allow-existing --python=3.12 ~/nepa/venv
~/nepa/uv pip install --quiet --python=\$HOME/nepa/venv --constraints=\$HOME/requirements.lock --reinstall-package=nepa-jax $requirement
~/nepa/venv/bin/nepa-jax --help > /dev/null"
  [[ -z $bucket ]] || mount_bucket
}

mount_bucket() {
  on_worker all "set -euo pipefail
if ! command -v gcsfuse > /dev/null; then
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get -o DPkg::Lock::Timeout=600 update -q
  sudo apt-get -o DPkg::Lock::Timeout=600 install -qy gcsfuse
fi
sudo mkdir -p /gcs/$bucket
sudo chown \"\$USER\" /gcs/$bucket
mountpoint -q /gcs/$bucket || gcsfuse --implicit-dirs $bucket /gcs/$bucket"
}

# In a session of its own, so that it outlives ssh. timeout with a time of 0 waits for ever; at
# SIGTERM it passes that on, and kills after the grace. What /dev/shm holds is gone after a reboot,
# so no process number is taken for another's.
start() {
  ((${#rest[@]})) || die 'nothing to start: give -- pretrain --config=... --workdir=...'
  local job
  job="timeout --foreground --kill-after=$grace 0 venv/bin/nepa-jax $(quoted "${rest[@]}") &
echo \$! > /dev/shm/nepa.pid
wait \$!
echo \$? > /dev/shm/nepa.exit
echo exit code \$(cat /dev/shm/nepa.exit)"
  on_worker all "set -euo pipefail
cd ~/nepa
if kill -0 \"\$(cat /dev/shm/nepa.pid 2> /dev/null)\" 2> /dev/null; then
  echo \"already running: launch/tpu_vm.sh stop\" >&2
  exit 1
fi
rm -f /dev/shm/nepa.pid /dev/shm/nepa.exit
setsid nohup bash -c $(quoted "$job") >> log 2>&1 < /dev/null &"
}

# shellcheck disable=SC2016 # expanded there
status() {
  on_worker 0 'if [ -f /dev/shm/nepa.exit ]; then echo exit $(cat /dev/shm/nepa.exit)
elif kill -0 "$(cat /dev/shm/nepa.pid)" 2> /dev/null; then echo running
else echo idle; fi'
}

logs() { on_worker "$worker" 'tail -n 200 -F ~/nepa/log'; }

# What the run's process started (loader workers) is in its session's group.
# shellcheck disable=SC2016 # expanded there
stop() {
  on_worker all 'pid=$(cat /dev/shm/nepa.pid 2> /dev/null) && kill -TERM "$pid" 2> /dev/null || { echo not running; exit 0; }
group=$(ps -o pgid= -p "$pid" | tr -d " ")
while kill -0 "$pid" 2> /dev/null; do sleep 1; done
sleep 1
kill -KILL -- "-$group" 2> /dev/null
echo stopped'
}

delete() { tpu delete "$name"; }

case ${1:-} in
  create | install | start | status | logs | stop | delete)
    verb=$1
    parse "${@:2}"
    need name zone
    "$verb"
    ;;
  --help) usage ;;
  '') die 'no verb; see --help' ;;
  *) die "unknown verb $1; see --help" ;;
esac
