#!/usr/bin/env bash
# A real SLURM of one node on this machine, for the tests beside this file. Needs root and Debian's slurm-wlm and munge.
#     slurm.sh start | stop | restart     (restart: the controller alone; jobs live on)
# It writes /etc/slurm/slurm.conf, and refuses to touch one that it has not written.
set -euo pipefail
conf=/etc/slurm/slurm.conf
mark='# written by lowmem tests/cluster/slurm.sh'
state=/var/tmp/lowmem-slurm
host=$(hostname -s)

start() {
  if [ -e "$conf" ] && ! grep -qxF "$mark" "$conf"; then
    echo "slurm.sh: $conf belongs to somebody else; this machine already has a SLURM, run the tests on another one" >&2
    exit 1
  fi
  for program in munged slurmctld slurmd; do
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || {
      echo "slurm.sh: $program not found; apt-get install slurm-wlm munge" >&2
      exit 1
    }
  done
  mkdir -p /etc/slurm "$state/ctld" "$state/d" /run/munge
  memory=$(($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 - 1024))
  cat >"$conf" <<CONF
$mark
ClusterName=lowmem
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile=$state/ctld.pid
SlurmdPidFile=$state/d.pid
SlurmdSpoolDir=$state/d
StateSaveLocation=$state/ctld
SlurmctldLogFile=$state/ctld.log
SlurmdLogFile=$state/d.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,defer
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MinJobAge=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  chown -R munge:munge /etc/munge /var/log/munge /var/lib/munge /run/munge
  [ -f /etc/munge/munge.key ] || /usr/sbin/mungekey
  pgrep -x munged >/dev/null || su munge -s /bin/sh -c /usr/sbin/munged
  pgrep -x slurmctld >/dev/null || /usr/sbin/slurmctld
  pgrep -x slurmd >/dev/null || /usr/sbin/slurmd
  for _ in $(seq 30); do
    if sinfo -h -o %t 2>/dev/null | grep -q idle; then return; fi
    sleep 1
  done
  sinfo >&2
  tail -n 20 "$state/ctld.log" "$state/d.log" >&2
  exit 1
}

restart() {
  pkill -x slurmctld || true
  for _ in $(seq 20); do pgrep -x slurmctld >/dev/null || break; sleep 0.5; done
  /usr/sbin/slurmctld
  for _ in $(seq 30); do if sinfo -h >/dev/null 2>&1; then return; fi; sleep 1; done
  tail -n 20 "$state/ctld.log" >&2
  exit 1
}

stop() {
  [ -e "$conf" ] || return 0
  grep -qxF "$mark" "$conf" || return 0
  scancel --state=RUNNING --state=PENDING -u root 2>/dev/null || true
  pkill -x slurmd || true
  pkill -x slurmstepd || true
  pkill -x slurmctld || true
  for _ in $(seq 20); do { pgrep -x slurmd || pgrep -x slurmctld; } >/dev/null || break; sleep 0.5; done
  rm -rf "$conf" "$state"
}

case "${1-}" in
  start | stop | restart) "$1" ;;
  *) sed -n 2,4p "$0" >&2; exit 2 ;;
esac
