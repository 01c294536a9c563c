#!/bin/bash
# Becomes the systemd of a machine of its own: boot.sh DIR PROGRAM, in namespaces unshared by the caller (mount, pid, cgroup, uts,
# ipc, net). Its root is a tmpfs with the programs of this machine, read-only, and nothing else of it, so that whatever a
# systemd cleans or sets up at boot is its own.
set -euo pipefail
dir=$1 program=$2
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$dir"
cd "$dir"
mkdir -p usr etc/systemd/system proc sys dev/net dev/shm run tmp var/lib var/tmp var/log root opt home/ann old
mount --rbind /usr usr
mount -o remount,bind,ro usr
ln -s usr/bin usr/sbin usr/lib .
[ ! -e /usr/lib64 ] || ln -s usr/lib64 .
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
for node in null zero full random urandom tty net/tun; do
  touch "dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
# Of units there are only the targets that others ask for, and they have no work.
mount -t tmpfs tmpfs usr/lib/systemd/system
mount -t tmpfs tmpfs usr/lib/systemd/user
mount -t tmpfs tmpfs usr/lib/tmpfiles.d
for target in default sysinit basic network-online multi-user shutdown; do
  printf '[Unit]\nDefaultDependencies=no\n' >"etc/systemd/system/$target.target"
done
mkdir etc/systemd/user
for target in default basic shutdown; do
  printf '[Unit]\nDefaultDependencies=no\n' >"etc/systemd/user/$target.target"
done
# The manager of an ordinary user, as a login has systemd start it.
cat >etc/systemd/system/manager.service <<'UNIT'
[Service]
Type=notify
User=ann
Environment=XDG_RUNTIME_DIR=/run/ann
RuntimeDirectory=ann
RuntimeDirectoryMode=0700
Delegate=yes
ExecStart=/usr/lib/systemd/systemd --user
KillMode=mixed
UNIT
# There is no journal.
for where in system user; do
  mkdir etc/systemd/$where/podwire.service.d
  printf '[Service]\nStandardError=append:/tmp/%s.log\n' $where >etc/systemd/$where/podwire.service.d/log.conf
done
cp /etc/ld.so.cache etc/
echo 'nameserver 192.0.2.53' >etc/resolv.conf
printf '%s\n' root:x:0:0::/root:/bin/sh ann:x:1000:1000::/home/ann:/bin/sh >etc/passwd
printf '%s\n' root:x:0: ann:x:1000: >etc/group
chown 1000:1000 home/ann
chmod 1777 tmp var/tmp
cp "$program" opt/podwire
pivot_root . old
umount -l /old
# As a systemd does that is no container's: what is mounted later is seen by its services.
mount --make-rshared /
export container=podwire-test
exec /usr/lib/systemd/systemd --system --unit=default.target --log-target=console --log-level=warning --show-status=no
