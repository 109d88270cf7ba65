#!/bin/sh
# Makes of this process, the first of a process namespace and with a mount namespace of its own, the first process of a machine: files of its own over those of this
# machine, control groups of its own, and systemd with nothing to run but its log. The environment has DIR, NAME, BINDS (SOURCE:TARGET ...) and CGROUPS, a line for
# each hierarchy: its mount point here, its type, its options, and the machine's group in it.
set -eu

if [ "${1:-}" != inside ]; then
  while read -r at type options group; do
    echo 0 >"$at$group/cgroup.procs"
  done <<END
$CGROUPS
END
  exec unshare --cgroup -- "$0" inside
fi

root=$DIR/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/upper,workdir=$DIR/work" "$root"

mount -t proc proc "$root/proc"
# Settings of the kernel are this machine's, but for those of the network namespace.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,rw "$root/proc/sys/net"

mount -t sysfs sysfs "$root/sys"
case $CGROUPS in
  */sys/fs/cgroup\ cgroup2*) ;;
  *) mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup" ;;
esac
while read -r at type options group; do
  mkdir -p "$root$at"
  mount -t "$type" -o "$options" "$type" "$root$at"
done <<END
$CGROUPS
END

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for bind in $BINDS; do
  mkdir -p "$root${bind#*:}"
  mount --bind "${bind%%:*}" "$root${bind#*:}"
done

if [ ! -e "$root/etc/dhow-test" ]; then
  # A machine that has only been installed: nothing of what this one runs.
  rm -rf "$root"/etc/systemd/system "$root"/usr/lib/systemd/system/*.wants "$root"/usr/lib/systemd/system-generators "$root"/etc/systemd/system-generators \
    "$root"/etc/sysusers.d "$root"/etc/tmpfiles.d "$root"/var/log/journal "$root"/opt/dhow "$root"/etc/dhow
  mkdir -p "$root"/etc/systemd/system/sysinit.target.wants "$root"/etc/systemd/system/sockets.target.wants "$root"/etc/systemd/journald.conf.d
  ln -s /usr/lib/systemd/system/systemd-journald.service /usr/lib/systemd/system/systemd-tmpfiles-setup.service "$root/etc/systemd/system/sysinit.target.wants/"
  ln -s /usr/lib/systemd/system/systemd-journald.socket /usr/lib/systemd/system/systemd-journald-dev-log.socket "$root/etc/systemd/system/sockets.target.wants/"
  printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/test.conf"
  : >"$root/etc/fstab"
  tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
  echo "$NAME" >"$root/etc/hostname"
  touch "$root/etc/dhow-test"
fi

mkdir -p "$root/old"
cd "$root"
pivot_root . old
umount -l /old
# As on a machine: what is mounted here is seen in the namespaces of services.
mount --make-rshared /
exec env -i container=dhow-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
