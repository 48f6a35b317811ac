#!/bin/busybox sh
# The first process of a machine. Its settings come from the kernel's command line, which hands
# NAME=VALUE to it: MACHINE, STORAGE_ADDRESS, PEER_ADDRESS, HOSTS, HOST_ID, MODULES, PROGRAMS, AGENT.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/root
b=/bin/busybox
fail() { echo "init: cannot $*"; $b poweroff -f; }

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "$module" || fail "load $module"; done </modules/order

# The machine's own root, read-only, below what is written in memory.
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower || fail "mount the root by 9p"
$b mount -t tmpfs -o size=60%,mode=755 memory /memory
$b mkdir /memory/upper /memory/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work root /root || fail "mount the overlay"
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
$b mkdir -p /root/dev/shm /root/dev/pts /root/run /root/tmp /root/sys/fs/cgroup
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /root/dev/pts
for folder in dev/shm tmp; do $b mount -t tmpfs -o mode=1777 memory /root/$folder; done
$b mount -t tmpfs -o mode=755 memory /root/run
$b mkdir -p /root/run/lock
# They may lie below one of the folders that are the machine's own.
for folder in "$MODULES" "$PROGRAMS"; do
    $b mkdir -p "/root$folder"
    $b mount --bind "/lower$folder" "/root$folder" || fail "show $folder"
done
$b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b ln -sf /proc/self/fd /root/dev/fd

$b hostname "$MACHINE"
$b ip link set lo up
for network in "eth0 storage $STORAGE_ADDRESS" "eth1 peer $PEER_ADDRESS"; do
    set -- $network
    $b ip link set "$1" name "$2"
    $b ip addr add "$3/24" dev "$2"
    $b ip link set "$2" up
done

# An identity of its own, not the machine's.
echo "$MACHINE" >/root/etc/hostname
echo "127.0.0.1 localhost" >/root/etc/hosts
for host in $(echo "$HOSTS" | $b tr ',' ' '); do echo "${host#*=} ${host%=*}" >>/root/etc/hosts; done
echo "$HOST_ID" | $b tr -d - >/root/etc/machine-id
$b mkdir -p /root/etc/nvme /root/lib/modules
echo "$HOST_ID" >/root/etc/nvme/hostid
echo "nqn.2014-08.org.nvmexpress:uuid:$HOST_ID" >/root/etc/nvme/hostnqn
$b ln -sfn "$MODULES" "/root/lib/modules/$($b uname -r)"
echo 1 >/root/proc/sys/kernel/sysrq

# The shell stays the first process: it reaps what loses its parent, and ends the machine.
exec $b switch_root /root /bin/sh -c '"$AGENT" agent; echo "the agent ended: $?"; busybox poweroff -f'
