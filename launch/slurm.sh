#!/usr/bin/env bash
# Runs nepa-jax on GPU nodes under SLURM, one process for each GPU, until WORKDIR/DONE exists: at the
# end of the time and after a preemption the run saves, and the job queues again.
#
# launch/slurm.sh submit --name=NAME --nodes=4 --gpus-per-node=8 --time=24:00:00 --venv=DIR [flags]
#     -- pretrain --config=... --workdir=DIR
#
#   --venv=DIR          where nepa-jax is installed; all nodes see it, and this folder
#   --partition=P --account=A --cpus-per-gpu=8
#   --extra=FLAG        a further flag for sbatch, e.g. --extra=--constraint=h100; may be repeated
#   --log=NAME-%j.log   the job's output
#   --notice=120        seconds before the end of the time at which it is told to save
#   --max-failures=3    starts that failed, until the job does; a mistake (exit code 2) ends it at once
#   --dry-run           print the command, run nothing
#
# launch/slurm.sh job ... is what runs on the first node; sbatch calls it.
#
# Example:
#   launch/slurm.sh submit --name=nepa --nodes=4 --gpus-per-node=8 --time=24:00:00 --venv=$HOME/nepa \
#     --partition=gpu -- pretrain --config=configs/nepa.py:L/14 \
#     --config.data.path=/scratch/imagenet --workdir=/scratch/runs/nepa-l

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

flags='name nodes gpus-per-node time venv partition account cpus-per-gpu log notice
 max-failures'
flags=${flags//$'\n'/}
switches=''
name='' nodes='' gpus_per_node='' time='' venv='' partition='' account='' cpus_per_gpu=8 log=''
notice=120 max_failures=3

# B: the signal goes to this script alone, which passes it on. exec: so that it is the job's shell.
submit() {
  need name nodes gpus-per-node time venv
  local job
  job=$(quoted bash "$here/slurm.sh" job "--venv=$venv" "--notice=$notice" \
    "--max-failures=$max_failures" -- "${rest[@]}")
  run sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" \
    "--gpus-per-node=$gpus_per_node" "--cpus-per-task=$cpus_per_gpu" "--time=$time" \
    ${partition:+"--partition=$partition"} ${account:+"--account=$account"} \
    "--output=${log:-$name-%j.log}" --open-mode=append --requeue "--signal=B:TERM@$notice" \
    ${extra[@]+"${extra[@]}"} "--wrap=exec $job"
}

# timeout with a time of 0 waits for ever; at SIGTERM it passes that on, and kills before SLURM does.
# Sets code.
start() {
  srun --kill-on-bad-exit=1 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-1}" \
    timeout --foreground "--kill-after=$((notice > 30 ? notice - 20 : 10))" 0 \
    "$venv/bin/nepa-jax" "${rest[@]}" &
  while true; do
    code=0
    wait $! || code=$?
    if ((code <= 128)) || ! kill -0 $! 2> /dev/null; then break; fi # else the trap ended the wait
  done
}

# A host that came late or died, storage that was away: the run starts again, and resumes.
job() {
  need venv
  local code told='' failures=0
  trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # to the steps, not to this shell
  while ((failures < max_failures)); do
    start
    if [[ -f $workdir/DONE ]]; then
      say "done: $workdir/DONE"
      return
    elif [[ $code == 0 || $told ]]; then
      say "stopped before the end (code $code): the job queues again"
      scontrol requeue "$SLURM_JOB_ID"
      return
    fi
    failures=$((failures + 1))
    say "nepa-jax ended with $code (failure $failures of $max_failures); see above"
    [[ $code != 2 ]] || break
  done
  return "$code"
}

case ${1:-} in
  submit | job)
    verb=$1
    parse "${@:2}"
    ((${#rest[@]})) || die 'nothing to run: give -- pretrain --config=... --workdir=DIR'
    workdir=$(workdir_of "${rest[@]}")
    "$verb"
    ;;
  --help) usage ;;
  '') die 'no verb; see --help' ;;
  *) die "unknown verb $1; see --help" ;;
esac
