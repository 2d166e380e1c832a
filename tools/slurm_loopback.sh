#!/usr/bin/env bash
# Runs a command beside a Slurm of its own: controller and one node on this machine, in a folder that goes when the command
# has ended. It needs Debian's packages slurmctld, slurmd, slurm-client and munge, and to be root.
#   tools/slurm_loopback.sh sinfo
set -euo pipefail
folder=$(mktemp -d)
host=$(hostname -s)
chmod 755 "$folder"
mkdir -m 755 "$folder"/{state,spool}
mkdir -m 700 "$folder/munge"
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
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=5
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
down() {
  for daemon in slurmd slurmctld munge/pid; do
    file=$folder/$daemon.pid
    [ "$daemon" = munge/pid ] && file=$folder/$daemon
    [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null
  done
  sleep 1
  rm -rf "$folder"
}
trap down EXIT
head -c 128 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>/dev/null
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd -N "$host"
for _ in $(seq 50); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
  sleep 0.2
done
sinfo --noheader --format=%T | grep -q idle || { echo "the node does not come up:" >&2; tail -n 20 "$folder"/*.log >&2; exit 1; }
"$@"
