#!/bin/sh
# Makes this machine a Slurm cluster of one node, for make test-slurm. Does nothing where Slurm answers already.
# Needs root, and apt where Slurm is not installed; no systemd. A slurm.conf that is there is used as it is.
set -eu
if timeout 10 sinfo >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" != 0 ]; then
  echo "start.sh: no Slurm answers here, and only root can start one; the tests marked slurm will be skipped" >&2
  exit 0
fi
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  if ! command -v apt-get >/dev/null; then
    echo "start.sh: no Slurm and no apt-get here; the tests marked slurm will be skipped" >&2
    exit 0
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >/dev/null
fi
conf=/etc/slurm/slurm.conf
mkdir -p /etc/slurm /run/munge /var/spool/slurmd /var/spool/slurmctld /var/log/slurm
if [ ! -e "$conf" ]; then
  node=$(hostname -s)
  cpus=$(nproc)
  memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
  sed -e "s/@NODE@/$node/g" -e "s/@CPUS@/$cpus/g" -e "s/@MEMORY@/$memory/" "$(dirname "$0")/slurm.conf" > "$conf"
fi
chown -R munge: /run/munge
runs() { pgrep -r R,S,D -x "$1" >/dev/null; } # not what has ended and lies about unreaped
runs munged || su -s /bin/sh munge -c /usr/sbin/munged
runs slurmctld || slurmctld
runs slurmd || slurmd
for _ in $(seq 30); do
  if sinfo -h -o %T 2>/dev/null | grep -Eq '^(idle|mixed|allocated)'; then exit 0; fi
  sleep 1
done
echo "start.sh: Slurm does not come up; see /var/log/slurm" >&2
exit 1
