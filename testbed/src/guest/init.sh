#!/bin/sh
# First process of a testbed guest: mounts what every process needs, and buries whoever ends, as the init of any machine
# does. It starts itself once more to bring up drivers and addresses, start the services of /etc/services in order, say
# "ready" on the control port and then do what the testbed asks for there.
#
# Kernel parameters (separated by commas):
#   backdoors.hostname=NAME     backdoors.addresses=10.0.0.2/24,fd00::2/64     backdoors.shares=TAG:/path
#   backdoors.second=10.1.0.2/24, the address of eth1     backdoors.swap=/dev/vda, which is all swapped to
#   backdoors.rxe=eth1, the cards that have soft-RoCE: a device rxe1 for eth1
#
# Control protocol. In: "ID COMMAND" on a line; COMMAND is a shell line, run to its end before the next one.
# Out: "ready", and for each command "ID STATUS BYTES" on a line followed by BYTES of output.
export PATH=/bin

if [ $$ = 1 ]; then
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mount -t bpf bpf /sys/fs/bpf
    mkdir -p /dev/pts
    mount -t devpts devpts /dev/pts
    /init &
    while :; do wait; done
fi

say() { echo "init: $*" >/dev/console; }

parameter() { tr ' ' '\n' </proc/cmdline | sed -n "s/^backdoors\.$1=//p" | tr ',' '\n'; }

while read -r module; do
    insmod "$module" || say "cannot load $module"
done </etc/modules

hostname "$(parameter hostname)"
# Addresses of a testbed are unique by construction: waiting for duplicate detection only delays IPv6.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    ip link set eth0 up
    for address in $(parameter addresses); do
        ip addr add "$address" dev eth0 || say "cannot add the address $address"
    done
fi
for address in $(parameter second); do
    { ip link set eth1 up && ip addr add "$address" dev eth1; } || say "cannot set up eth1"
done
for card in $(parameter rxe); do
    rdma link add "rxe${card#eth}" type rxe netdev "$card" || say "no soft-RoCE over $card"
done
for share in $(parameter shares); do
    mkdir -p "${share#*:}"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none "${share%%:*}" "${share#*:}" \
        || say "cannot mount the share $share"
done

for disk in $(parameter swap); do
    { mkswap "$disk" && swapon "$disk"; } >/dev/null || say "cannot swap to $disk"
done

# A service that ends is started again after a second, as any service manager would.
serve() {
    while :; do
        sh -c "exec $2" >>"/var/log/$1" 2>&1 </dev/null
        say "service $1 ended with $?: $(tail -n 1 "/var/log/$1")"
        sleep 1
    done
}

while read -r name ready command; do
    serve "$name" "$command" &
    while [ "$ready" != - ] && [ ! -e "$ready" ]; do sleep 0.05; done
    say "service $name started"
done </etc/services

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.backdoors.testbed ] && control=/dev/${port##*/}
done
[ -n "$control" ] || { say "no control port"; while :; do sleep 1000; done; }

exec 3<>"$control"
say ready
echo ready >&3
while :; do
    while read -r id command; do
        sh -c "$command" >/run/reply 2>&1 </dev/null
        status=$?
        { echo "$id $status $(wc -c </run/reply)"; cat /run/reply; } >&3
    done <&3
    # The testbed closed its end; another one may come.
    sleep 0.2
done
