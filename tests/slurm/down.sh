#!/usr/bin/env bash
# down.sh [--wipe] stops the processes that up.sh started; --wipe also empties their folder.
R=${SLURM_SANDBOX:?set SLURM_SANDBOX to the folder that up.sh used}
export SLURM_CONF=$R/etc/slurm.conf
for state in PENDING RUNNING; do timeout 5 scancel --state=$state --user=root 2>/dev/null; done
sleep 1
stop() { # PID
  kill -TERM "$1" 2>/dev/null || return 0
  for _ in $(seq 50); do kill -0 "$1" 2>/dev/null || return 0; sleep .1; done
  kill -KILL "$1"
}
for name in "$R"/run/slurmd-*.pid "$R"/run/{slurmctld,slurmdbd,mariadbd,munged}.pid; do
  [ -s "$name" ] || continue
  stop "$(cat "$name")"
  rm -f "$name"
done
[ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ] && rm -f /etc/slurm/slurm.conf
[ "${1:-}" = --wipe ] && rm -rf "$R"/{run,log,state,spool,munge,db,dev,etc}
exit 0
