#!/usr/bin/env bash
# up.sh [NODES=8] starts a real Slurm with at least 6 nodes on this machine's loopback, for tests. It
# needs root and Debian's slurm-wlm; with ACCT=1 also munge, slurmdbd and mariadb-server. SLURM_SANDBOX
# is the folder for its files. All nodes but the last have two GPUs each, which are device files like
# /dev/null. The ports are fixed, so only one can run at a time. down.sh stops it.
set -euo pipefail
R=${SLURM_SANDBOX:?set SLURM_SANDBOX to an empty folder}
N=${1:-8}
[ "$N" -ge 6 ] || { echo "up.sh: NODES must be 6 or more, found $N" >&2; exit 1; }
ACCT=${ACCT:-0}
mkdir -p "$R"/{etc,run,log,state,spool,dev}

start() { # NAME COMMAND...: run in the background and write the process id to a file
  local name=$1; shift
  setsid "$@" >"$R/log/$name.out" 2>&1 </dev/null & echo $! >"$R/run/$name.pid"
}
await() { # SECONDS COMMAND...: wait until the command succeeds
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "up.sh: timed out: $*" >&2; tail -n 5 "$R"/log/* >&2; exit 1; }
    sleep .1
  done
}

if [ "$ACCT" = 1 ]; then
  # munge and a database for the sandbox only; those of the system are not touched
  mkdir -p "$R/munge" "$R/db"; chown munge: "$R/munge"; chown mysql: "$R/db"; chmod 755 "$R" "$R/munge"; chmod 777 "$R/run"
  (umask 077; head -c 1024 /dev/urandom >"$R/munge/munge.key"); chown munge: "$R/munge/munge.key"
  start munged setpriv --reuid munge --regid munge --clear-groups munged --foreground --force \
    --key-file "$R/munge/munge.key" --socket "$R/munge/munge.sock" --pid-file "$R/munge/munged.pid" \
    --log-file "$R/munge/munged.log" --seed-file "$R/munge/munged.seed"
  await 10 munge -S "$R/munge/munge.sock" -n
  mariadb-install-db --no-defaults --user=mysql --datadir="$R/db" --auth-root-authentication-method=normal \
    --skip-test-db >"$R/log/mariadb-install.log" 2>&1
  start mariadbd mariadbd --no-defaults --user=mysql --datadir="$R/db" --socket="$R/run/mysql.sock" \
    --bind-address=127.0.0.1 --port=13306 --pid-file="$R/db/mariadbd.pid" --innodb-buffer-pool-size=64M \
    --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  await 20 mariadb-admin --no-defaults -S "$R/run/mysql.sock" ping
  mariadb --no-defaults -S "$R/run/mysql.sock" -e "create database slurm_acct_db;
    create user slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@localhost;
    create user slurm@127.0.0.1 identified by 'slurm'; grant all on slurm_acct_db.* to slurm@127.0.0.1;"
  auth="AuthType=auth/munge
AuthInfo=socket=$R/munge/munge.sock"
  cat >"$R/etc/slurmdbd.conf" <<C
$auth
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$R/log/slurmdbd.log
PidFile=$R/run/slurmdbd.daemon.pid
C
  chmod 600 "$R/etc/slurmdbd.conf"
  # cred_expire: seconds until a requeued job starts; the default is 120
  accounting="$auth,cred_expire=20
CredType=cred/munge
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$R/munge/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill"
else
  accounting="AuthType=auth/none
AuthInfo=cred_expire=20
CredType=cred/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill"
fi

for i in 0 1; do [ -c "$R/dev/nvidia$i" ] || mknod "$R/dev/nvidia$i" c 1 3; done
host=$(hostname -s)
cat >"$R/etc/slurm.conf" <<C
ClusterName=sandbox
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
$accounting
SlurmctldPort=16817
SlurmctldPidFile=$R/run/slurmctld.daemon.pid
SlurmdPidFile=$R/run/slurmd.%n.daemon.pid
SlurmdSpoolDir=$R/spool/%n
StateSaveLocation=$R/state
SlurmctldLogFile=$R/log/slurmctld.log
SlurmdLogFile=$R/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobContainerType=job_container/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
MinJobAge=300
KillWait=10
InactiveLimit=0
Waittime=0
SlurmctldTimeout=30
SlurmdTimeout=15
MessageTimeout=10
OverTimeLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
C
: >"$R/etc/gres.conf"
for i in $(seq "$N"); do
  node="NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i)) CPUs=16 RealMemory=64000 State=UNKNOWN"
  if [ "$i" -lt "$N" ]; then
    echo "$node Gres=gpu:a100:2 Feature=gpu,n$i" >>"$R/etc/slurm.conf"
    echo "NodeName=n$i Name=gpu Type=a100 File=$R/dev/nvidia[0-1]" >>"$R/etc/gres.conf"
  else
    echo "$node Feature=cpu" >>"$R/etc/slurm.conf"
  fi
done
# urgent preempts scavenge (without a grace period) and graceful (with one). These two have their own
# nodes, because urgent would wait for a job of main there. spare has two nodes of main.
common="MaxTime=1:00:00 DefaultTime=10:00 State=UP"
cat >>"$R/etc/slurm.conf" <<C
PartitionName=main Nodes=n1,n[4-$N] $common Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=urgent Nodes=n[2-3] $common PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=n2 $common PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=graceful Nodes=n3 $common PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=spare Nodes=n[$((N - 2))-$((N - 1))] MaxTime=1:00:00 PriorityTier=10 PreemptMode=OFF State=UP
C
export SLURM_CONF=$R/etc/slurm.conf
# inside a job the plugin removes SLURM_CONF, so the default path must be a link to this file
if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
  echo "up.sh: /etc/slurm/slurm.conf belongs to this machine; it is not touched" >&2; exit 1
fi
mkdir -p /etc/slurm; ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
if [ "$ACCT" = 1 ]; then
  start slurmdbd slurmdbd -D
  await 20 timeout 5 sacctmgr -n -i show cluster
  timeout 10 sacctmgr -n -i add cluster sandbox >/dev/null || true
  timeout 10 sacctmgr -n -i add account "a lab" Description=lab Organization=lab >/dev/null || true
  timeout 10 sacctmgr -n -i add user root Account="a lab" AdminLevel=Admin >/dev/null || true
fi
start slurmctld slurmctld -D
await 20 bash -c "timeout 5 scontrol ping | grep -q 'is UP'"
for i in $(seq "$N"); do mkdir -p "$R/spool/n$i"; start "slurmd-n$i" slurmd -D -N "n$i"; done
await 30 bash -c "[ \"\$(timeout 5 sinfo -h -N -p main,urgent -o %T | grep -c idle)\" = $N ]"
