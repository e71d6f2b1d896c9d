#!/usr/bin/env bash
# Runs nepa-jax on a TPU slice of a GKE cluster, as a JobSet (launch/jobset.yaml).
#
# launch/gke.sh VERB [flags] [--dry-run]
#
#   pool     make the slice's nodes
#              --cluster=CLUSTER --location=REGION_OR_ZONE [--project=PROJECT] --name=POOL
#              --machine-type=ct5lp-hightpu-4t --topology=16x16 [--chips-per-host=4] [--spot]
#              [--extra=FLAG]...    a further flag for gcloud, e.g. --extra=--reservation=R
#   install  the JobSet controller, once for a cluster: [--jobset-version=v0.8.0] (0.6 or later)
#   start    the run; it starts again after preemptions and failures, and resumes
#              --name=NAME --image=IMAGE --bucket=BUCKET --service-account=KUBERNETES_ACCOUNT
#              --accelerator=tpu-v5-lite-podslice --topology=16x16 [--chips-per-host=4]
#              [--namespace=default] [--max-restarts=100] [--grace=300]
#              -- pretrain --config=... --workdir=/gcs/BUCKET/...
#   status   --name=NAME [--namespace=default]
#   logs     of one host, as they grow: --name=NAME [--host=0] [--namespace=default]
#   stop     ends the run: SIGTERM, at which it saves: --name=NAME [--namespace=default]
#   delete   the nodes; they cost money until then: --cluster, --location, --name as for pool
#
# --grace: seconds from SIGTERM to SIGKILL; time to save. The image holds bash and nepa-jax.
#
# Example:
#   launch/gke.sh start --name=nepa-l --image=REGION-docker.pkg.dev/PROJECT/nepa/nepa:1 \
#     --bucket=my-bucket --service-account=nepa --accelerator=tpu-v5-lite-podslice \
#     --topology=16x16 --dry-run -- pretrain --config=configs/nepa.py:L/14 \
#     --config.data.path=/gcs/my-bucket/imagenet --workdir=/gcs/my-bucket/runs/nepa-l

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$here/common.sh"

flags='cluster location project name machine-type topology chips-per-host jobset-version image
 bucket service-account accelerator namespace max-restarts grace host'
flags=${flags//$'\n'/}
switches='spot'
cluster='' location='' project='' name='' machine_type='' topology='' chips_per_host=4
jobset_version=v0.8.0 image='' bucket='' service_account='' accelerator='' namespace=default
max_restarts=100 grace=300 host=0 spot='' hosts=''

# Sets hosts, from a topology such as 16x16.
count_hosts() {
  local chips=$((${topology//x/*}))
  ((chips % chips_per_host == 0)) ||
    die "--topology=$topology: $chips chips do not divide into --chips-per-host=$chips_per_host"
  hosts=$((chips / chips_per_host))
}

nodes() {
  run gcloud container node-pools "$1" "$name" "--cluster=$cluster" "--location=$location" \
    ${project:+"--project=$project"} "${@:2}"
}

pool() {
  need cluster location name machine-type topology
  count_hosts
  nodes create "--machine-type=$machine_type" "--tpu-topology=$topology" "--num-nodes=$hosts" \
    ${spot:+--spot} ${extra[@]+"${extra[@]}"}
}

install() {
  run kubectl apply --server-side -f \
    "https://github.com/kubernetes-sigs/jobset/releases/download/$jobset_version/manifests.yaml"
}

# A word as a JSON string, which YAML reads too. Kubernetes takes $(NAME) for a variable's value and
# $$ for a dollar.
json() {
  local word=${1//\\/\\\\}
  word=${word//\"/\\\"} word=${word//\$/\$\$} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
  [[ $word != *[[:cntrl:]]* ]] || die "argument $1 after -- has characters that YAML cannot hold"
  printf '"%s"' "$word"
}

manifest() {
  local text arguments='' word
  for word in "${rest[@]}"; do
    word=$(json "$word") || exit 2
    arguments+="                    - $word"$'\n'
  done
  text=$(< "$here/jobset.yaml")
  text=${text//@NAME@/"$name"}
  text=${text//@NAMESPACE@/"$namespace"}
  text=${text//@MAX_RESTARTS@/"$max_restarts"}
  text=${text//@HOSTS@/"$hosts"}
  text=${text//@SERVICE_ACCOUNT@/"$service_account"}
  text=${text//@TERMINATION_S@/"$((grace + 60))"}
  text=${text//@ACCELERATOR@/"$accelerator"}
  text=${text//@TOPOLOGY@/"$topology"}
  text=${text//@IMAGE@/"$image"}
  text=${text//@CHIPS_PER_HOST@/"$chips_per_host"}
  text=${text//@BUCKET@/"$bucket"}
  text=${text//@GRACE@/"$grace"}
  text=${text//@WORKDIR@/"$workdir"}
  printf '%s\n' "${text//@ARGUMENTS@/"${arguments%$'\n'}"}"
}

start() {
  need name image bucket service-account accelerator topology
  ((${#rest[@]})) || die 'nothing to run: give -- pretrain --config=... --workdir=/gcs/BUCKET/...'
  workdir=$(workdir_of "${rest[@]}")
  in_bucket "$workdir" "$bucket"
  count_hosts
  local text
  text=$(manifest)
  [[ -z $dry_run ]] || printf '%s\n' "$text"
  run kubectl apply -f - <<< "$text"
}

status() {
  need name
  run kubectl get jobset "$name" "--namespace=$namespace"
  run kubectl get pods "--namespace=$namespace" "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

logs() {
  need name
  run kubectl logs --follow "--namespace=$namespace" --container=nepa --prefix --selector \
    "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=$host"
}

stop() {
  need name
  run kubectl delete jobset "$name" "--namespace=$namespace"
}

delete() {
  need cluster location name
  nodes delete
}

case ${1:-} in
  pool | install | start | status | logs | stop | delete)
    verb=$1
    parse "${@:2}"
    "$verb"
    ;;
  --help) usage ;;
  '') die 'no verb; see --help' ;;
  *) die "unknown verb $1; see --help" ;;
esac
