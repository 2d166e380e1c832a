#!/usr/bin/env bash
# Runs a command beside a Slurm of its own: controller and one node on this machine, in a folder that goes when the command
# has ended. It needs Debian's packages slurmctld, slurmd, slurm-client and munge, and to be root. Where slurmdbd,
# slurm-wlm-mysql-plugin and mariadb-server are here too, the Slurm keeps accounts (`sacct`), by a MariaDB in the same folder.
#   tools/slurm_loopback.sh sinfo
#   FATHOM_SLURM_ACCOUNTS=no tools/slurm_loopback.sh sacct    without accounts, wherever it runs
set -euo pipefail
folder=$(mktemp -d)
host=$(hostname -s)
chmod 755 "$folder"
mkdir -m 755 "$folder"/{state,spool}
mkdir -m 700 "$folder/munge"

accounts=${FATHOM_SLURM_ACCOUNTS:-}
plugins=$(dirname "$(find /usr/lib /usr/lib64 -name accounting_storage_none.so 2>/dev/null | head -n 1)")
for needed in slurmdbd mariadbd mariadb-install-db "$plugins/accounting_storage_mysql.so"; do
  if [ -z "$accounts" ] && ! command -v "$needed" >/dev/null && [ ! -e "$needed" ]; then
    echo "slurm_loopback: no $(basename "$needed") here: this Slurm keeps no accounts, and sacct answers nothing" >&2
    accounts=no
  fi
done
[ "$accounts" = no ] || accounts=yes

export FATHOM_SLURM_ACCOUNTS=$accounts

# The kernel holds a job to its --mem where the groups of the first version are there to be written.
group=/sys/fs/cgroup/memory/slurm_$host
task=task/none
export FATHOM_SLURM_MEMORY=no
if [ -w /sys/fs/cgroup/memory/memory.limit_in_bytes ] && [ ! -e "$group" ]; then
  task=task/cgroup
  FATHOM_SLURM_MEMORY=yes
  printf '%s\n' CgroupPlugin=cgroup/v1 ConstrainRAMSpace=yes ConstrainSwapSpace=yes AllowedSwapSpace=0 >"$folder/cgroup.conf"
fi

cat >"$folder/slurm.conf" <<END
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=$task
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=64
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf

down() {
  # Whom the others tell of their end goes last.
  for daemon in slurmd slurmctld slurmdbd mariadb munge/pid; do
    file=$folder/$daemon.pid
    [ "$daemon" = munge/pid ] && file=$folder/$daemon
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  [ "$task" = task/none ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
  rm -rf "$folder"
}
trap down EXIT
# Asks until the answer has come: what is awaited, whose log tells why it does not come, and the question.
await() {
  local what=$1 log=$2
  shift 2
  for _ in $(seq 150); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  echo "slurm_loopback: $what does not come up:" >&2
  tail -n 20 "$folder/$log" >&2
  exit 1
}

head -c 128 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>/dev/null

if [ "$accounts" = yes ]; then
  password=$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
  mariadb-install-db --no-defaults --datadir="$folder/mariadb" --user=root --skip-test-db \
    --auth-root-authentication-method=normal >"$folder/install.log" 2>&1
  mariadbd --no-defaults --datadir="$folder/mariadb" --user=root --bind-address=127.0.0.1 --port=16820 \
    --socket="$folder/mariadb.socket" --pid-file="$folder/mariadb.pid" --innodb-lock-wait-timeout=900 \
    >"$folder/mariadb.log" 2>&1 &
  ask=(mariadb --no-defaults --socket="$folder/mariadb.socket" --user=root)
  await MariaDB mariadb.log "${ask[@]}" -e 'SELECT 1'
  "${ask[@]}" -e "CREATE USER slurm@'%' IDENTIFIED BY '$password'; GRANT ALL ON slurm_acct_db.* TO slurm@'%'"
  (umask 077 && cat >"$folder/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
PidFile=$folder/slurmdbd.pid
LogFile=$folder/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16820
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct_db
END
  )
  cat >>"$SLURM_CONF" <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass=$folder/munge/socket
END
  slurmdbd
  await slurmdbd slurmdbd.log sacctmgr --immediate add cluster loopback
else
  echo AccountingStorageType=accounting_storage/none >>"$SLURM_CONF"
fi

slurmctld
slurmd -N "$host"
is_idle() { sinfo --noheader --format=%T | grep -q idle; }
await 'the node' slurmctld.log is_idle
"$@"
