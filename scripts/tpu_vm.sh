#!/usr/bin/env bash
# A TPU VM or pod slice, from nothing to a running study and back. Each step can be repeated; see docs/tpu.md.
set -euo pipefail

usage() {
  cat <<'END'
scripts/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [flags] [-- arguments of past]

  create   a TPU VM or pod slice of --type; what was preempted is replaced, all else stays
  setup    copies the last commit of this checkout to every worker, and installs it
  run      starts `past` on every worker, as in  run --name=my --zone=us-east5-b -- study --config=... --workdir=gs://...
           and returns; the same command again resumes, or says that it is still running; what waits after a failure
           for its next try is replaced
  logs     follows the log of one worker
  stop     lets the run save and end, on every worker
  delete   gives the TPU back; nothing that is on it stays

  --name=NAME      of the TPU; or $TPU_NAME
  --zone=ZONE      or $TPU_ZONE
  --project=ID     or $TPU_PROJECT; without it gcloud's own
  --type=TYPE      create: accelerator type, such as v6e-8 or v5litepod-16
  --version=NAME   create: software version; without it the usual one of the type
  --queued         create, delete: as a queued resource, which waits until there is a TPU
  --spot           create: cheaper, and taken away when it is needed elsewhere
  --env=NAME=TEXT  run: an environment variable of past; may be repeated
  --worker=N       logs: of this worker; 0 without it
  --yes            delete: without asking
  --dry_run        print the commands, run none
END
}

fail() {
  printf 'tpu_vm.sh: %s\n' "$1" >&2
  exit 2
}

# --- the command line -------------------------------------------------------------------------------------------------

command=${1-}
case $command in
  create | setup | run | logs | stop | delete) shift ;;
  '' | help | -h | --help) usage && exit ;;
  *) fail "there is no command '$command'; there are create, setup, run, logs, stop, delete" ;;
esac

name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
type='' version='' worker=0 queued='' spot='' yes='' dry=''
env=() past=()
while (($#)); do
  value=${1#*=}
  case $1 in
    --) shift && past=("$@") && break ;;
    --help | -h) usage && exit ;;
    --queued) queued=1 ;;
    --spot) spot=1 ;;
    --yes) yes=1 ;;
    --dry_run) dry=1 ;;
    --*=) fail "$1 has no value" ;;
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --project=*) project=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --worker=*) worker=$value ;;
    --env=[A-Za-z_]*=*) env+=("--env=$value") ;;
    --env=*) fail "$1: write --env=NAME=TEXT" ;;
    --name | --zone | --project | --type | --version | --worker | --env) fail "write $1=..., with an equals sign" ;;
    *) fail "unexpected '$1'; tpu_vm.sh --help lists the flags, and arguments of past come after --" ;;
  esac
  shift
done

[[ $name ]] || fail 'which TPU? Give --name=..., or set TPU_NAME'
[[ $zone ]] || fail 'in which zone? Give --zone=..., such as us-east5-b, or set TPU_ZONE'
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: small letters, digits and -, a letter first"
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker: the number of a worker, from 0"
[[ $command == run || ${#past[@]} -eq 0 ]] || fail "$command takes no arguments after --"
[[ $command == run || ${#env[@]} -eq 0 ]] || fail "--env is for run"
[[ $command == create || -z $type$version$spot ]] || fail '--type, --version and --spot are for create'
[[ $command == create || $command == delete || -z $queued ]] || fail '--queued is for create and delete'
[[ $dry ]] || type -P gcloud >/dev/null || fail 'gcloud is not installed: https://cloud.google.com/sdk/docs/install'

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

# --- what is run ------------------------------------------------------------------------------------------------------

# Prints a command, and runs it but in a dry run.
call() {
  local text
  text=$(printf ' %q' "$@")
  if [[ $dry ]]; then
    printf '%s\n' "${text:1}"
  else
    printf '+%s\n' "$text" >&2
    "$@" 3>&-
  fi
}

tpus() {
  call gcloud compute tpus "$@" "${where[@]}"
}

# The state of the TPU or of its request; nothing if there is none. In a dry run nothing is known, so nothing is there.
state() {
  if [[ $dry ]]; then
    tpus "$kind" describe "$name" "--format=$1" >&3
  else
    tpus "$kind" describe "$name" "--format=$1" 2>/dev/null || true
  fi
}

# On every worker: this checkout's own part, which setup has copied there.
on_workers() {
  local text
  text=$(printf ' %q' bash tpu_worker.sh "$@")
  tpus tpu-vm ssh "$name" --worker=all "--command=${text:1}"
}

remove() {
  local flags=()
  [[ $kind == tpu-vm ]] || flags+=(--force)
  [[ -z ${1-} ]] || flags+=(--quiet)
  tpus "$kind" delete "$name" ${flags[@]+"${flags[@]}"}
}

usual_version() {
  case $type in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type=$type: which --version=... has it? \`gcloud compute tpus tpu-vm versions list\` knows" ;;
  esac
}

make() {
  local flags=("--accelerator-type=$type")
  [[ -z $spot ]] || flags+=(--spot)
  if [[ $queued ]]; then
    tpus queued-resources create "$name" "--node-id=$name" "${flags[@]}" "--runtime-version=$version"
  else
    tpus tpu-vm create "$name" "${flags[@]}" "--version=$version"
  fi
}

create() {
  [[ $type ]] || fail 'of which type? Give --type=..., such as v6e-8 or v5litepod-16'
  version=${version:-$(usual_version)}
  local format='value(state)' found
  [[ -z $queued ]] || format='value(state.state)'
  found=$(state "$format")
  case $found in
    PREEMPTED | SUSPENDING | SUSPENDED | FAILED) # the last three are a request's: it has ended without a TPU
      remove without_asking
      make
      ;;
    STOPPING | STOPPED | TERMINATED)
      local keep="gcloud compute tpus tpu-vm start $name ${where[*]}"
      fail "$name is $found, and may still have its disk: start it with \`$keep\`, or give it back with tpu_vm.sh delete"
      ;;
    '') make ;;
  esac
  [[ -z $queued ]] || wait_for_it "$format"
  [[ $dry ]] || echo "$name is there. Next: scripts/tpu_vm.sh setup --name=$name --zone=$zone"
}

# Until the request is granted. Interrupted, it stays in the queue: create goes on waiting.
wait_for_it() {
  local found
  while true; do
    found=$(state "$1")
    case $found in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the request for $name has ended as $found; the same command asks again" ;;
    esac
    [[ -z $dry ]] || return 0
    sleep "${TPU_POLL_SECONDS:-30}"
  done
}

setup() {
  local root archive
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=${TMPDIR:-/tmp}/past_jax-$name.tgz
  git -C "$root" rev-parse --verify --quiet HEAD >/dev/null || fail "$root is no git checkout with a commit to copy"
  [[ -z $(git -C "$root" status --porcelain) ]] || echo 'tpu_vm.sh: what is not committed is not copied' >&2
  call git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  tpus tpu-vm scp "$archive" "$root/scripts/tpu_worker.sh" "$name:" --worker=all
  on_workers setup "past_jax-$name.tgz"
}

run() {
  ((${#past[@]})) || fail 'what is to run? Write it after --, as in run ... -- study --config=configs/past.py --workdir=gs://...'
  [[ ${past[0]} != past ]] || fail "leave 'past' out after --: it begins with its command, as in -- study --config=..."
  local argument
  for argument in "${past[@]}"; do
    [[ $argument != --workdir=* || $argument == --workdir=gs://* ]] ||
      echo "tpu_vm.sh: $argument is a folder on the TPU's own disk: lost with it, and not shared by the workers" >&2
  done
  on_workers run ${env[@]+"${env[@]}"} -- "${past[@]}"
}

kind=tpu-vm
[[ -z $queued ]] || kind='queued-resources'
exec 3>&1
case $command in
  create) create ;;
  setup) setup ;;
  run) run ;;
  logs) tpus tpu-vm ssh "$name" "--worker=$worker" '--command=bash tpu_worker.sh logs' ;;
  stop) on_workers stop ;;
  delete) remove "$yes" ;;
esac
