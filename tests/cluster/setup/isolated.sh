#!/bin/bash
# Runs a command where it sees no other cluster: network, mounts, processes and control groups of its own.
# isolated.sh NAME COMMAND…   NAME names the control group.
set -euo pipefail
name=$1
shift
for controller in /sys/fs/cgroup/*/; do
    case $controller in */unified/) continue ;; esac
    mkdir -p "$controller$name"
done
cpuset=/sys/fs/cgroup/cpuset
for setting in cpuset.cpus cpuset.mems; do
    [ ! -e $cpuset/$setting ] || cat $cpuset/$setting > "$cpuset/$name/$setting"
done
export name
(
    # In these groups, with a namespace that begins there, the bind mounts below look like a machine's own tree.
    for controller in /sys/fs/cgroup/*/; do
        [ ! -d "$controller$name" ] || echo $BASHPID > "$controller$name/cgroup.procs"
    done
    exec unshare --cgroup --net --mount --pid --fork --mount-proc --kill-child bash -euc '
        mount --make-rprivate /
        for controller in /sys/fs/cgroup/*/; do
            [ ! -d "$controller$name" ] || mount --bind "$controller$name" "$controller"
        done
        for folder in /run/netns /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers; do
            [ ! -d $folder ] || mount -t tmpfs tmpfs $folder
        done
        ip link set lo up
        "$@"
    ' _ "$@"
) && code=0 || code=$?
for controller in /sys/fs/cgroup/*/; do
    find "$controller$name" -depth -type d -exec rmdir {} + 2> /dev/null || true
done
exit $code
