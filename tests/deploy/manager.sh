#!/bin/sh
# Runs a systemd that has one unit, with what it takes from the machine around it:
# manager.sh CGROUP PROGRAM UNITS ETC. It runs in a mount namespace of its own, so
# that nothing of this is left, and in a cgroup of its own.
set -eu
cgroup=$1 program=$2 units=$3 etc=$4

hierarchies=/sys/fs/cgroup
if [ ! -e /sys/fs/cgroup/cgroup.procs ]; then
    # Beside those of version 1, systemd wants its own and, if it is there, version 2.
    hierarchies="/sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup/memory"
fi
for hierarchy in $hierarchies; do
    if [ -d "$hierarchy" ]; then
        mkdir "$hierarchy$cgroup"
        echo $$ > "$hierarchy$cgroup/cgroup.procs"
    fi
done

mount --make-rprivate /
mount -t tmpfs tmpfs /usr/local/bin
cp "$program" /usr/local/bin/goprof
mount --bind "$units" /mnt
cp -a /etc/. "$etc/all"
mkdir "$etc/all/goprof"
cp "$etc"/goprof.toml "$etc/all/goprof/"
mount --bind "$etc/all" /etc
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /run
# What the first systemd of a machine makes; without it no other starts.
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir /run/user/0
touch /run/systemd/inaccessible/reg
chmod 0 /run/systemd/inaccessible/*

# An instance for root has its units' state where the system's has it.
export HOME=/var/lib XDG_CONFIG_HOME=/var/lib XDG_STATE_HOME=/var/lib
export XDG_RUNTIME_DIR=/run/user/0 SYSTEMD_UNIT_PATH=/mnt
exec /lib/systemd/systemd --user --log-target=console --unit=goprof.service
