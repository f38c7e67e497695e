#!/bin/sh
# Makes this machine node-NUMBER of a small cluster: what the agent needs, etcd on one node, settings, the agent.
#
#     provision.sh NUMBER ETCD_NUMBER        as root, on Debian 12; node ETCD_NUMBER is the one that runs etcd
#
# node-N has address 192.168.56.(10+N) on a private network, and that is its underlay: not Vagrant's first card,
# whose address is the same in every VirtualBox VM. Beside this script lies `wheels`, made by agent/wheels; where
# it does not, and this script lies in a clone, the machine makes it itself, for which it needs the internet.
#
# Every step looks first and does nothing if there is nothing to do. No Debian package is asked for that is there
# already, so a machine that has them all needs no internet. etcd speaks plain HTTP here, on a network of these
# machines alone; docs/etcd.md has the cluster for networks with others on them.
#
# Exit status: 0 done, 2 usage, 3 this machine cannot do it.
set -eu

PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin
export PATH

HERE=$(cd "$(dirname "$0")" && pwd)
SETTINGS=/etc/overlaynet/agent.toml
NETWORK_KEY=/coreos.com/network/config
# Quoted for etcdctl, whose single quotes lose the end of a text.
NETWORK='{\"Network\": \"10.244.0.0/16\", \"SubnetLen\": 24, \"Backend\": {\"Type\": \"vxlan\"}}'

say() { printf '%s\n' "$*"; }

step() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 3
}

usage() {
    say "usage: ${0##*/} NUMBER ETCD_NUMBER, both from 1 to 200" >&2
    exit 2
}

is_node_number() {
    case $1 in '' | *[!0-9]* | 0* | ????*) return 1 ;; esac
    [ "$1" -le 200 ]
}

address_of() { printf '192.168.56.%d' $((10 + $1)); }

# put FILE: standard input becomes its content. Success means that this changed something.
put() {
    new=$(mktemp)
    cat >"$new"
    if cmp -s "$new" "$1"; then
        rm -f "$new"
        return 1
    fi
    mkdir -p "$(dirname "$1")"
    chmod 644 "$new"
    mv "$new" "$1"
}

# --- Debian packages ----------------------------------------------------------------------------

# The packages that would bring what is missing, a blank before each.
missing_packages() {
    python3 -c 'import venv' 2>/dev/null || printf ' python3'
    [ -f "$HERE/wheels/install" ] || python3 -c 'import ensurepip' 2>/dev/null || printf ' python3-venv'
    wanted="ip:iproute2 iptables:iptables ping:iputils-ping"
    [ "$number" != "$etcd_number" ] || wanted="$wanted etcd:etcd-server etcdctl:etcd-client"
    for tool in $wanted; do
        command -v "${tool%:*}" >/dev/null || printf ' %s' "${tool#*:}"
    done
}

# install_packages NAME...: etcd's own service is kept from starting before it has its settings, unless
# somebody has a policy already (invoke-rc.d(8)).
install_packages() {
    step "installing $*"
    guard=/usr/sbin/policy-rc.d
    if [ -e "$guard" ]; then
        guard=
    else
        printf '#!/bin/sh\n%s\n' 'case $1 in etcd | etcd.service) exit 101 ;; esac' >"$guard"
        chmod 755 "$guard"
    fi
    fetched=yes
    apt_get update -o APT::Update::Error-Mode=any && apt_get install --no-install-recommends "$@" || fetched=no
    [ -z "$guard" ] || rm -f "$guard"
    [ $fetched = yes ] || die "these packages are missing and apt-get could not install them:$packages" \
        "give the machine a way to a Debian mirror, or use a box that has them (vagrant/box/build)"
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" </dev/null; }

# --- etcd ---------------------------------------------------------------------------------------

# For clients on the private address alone. The package's unit gives up if it is started before that address is
# there, as happens at a boot, so ours tries again.
run_etcd() {
    step "etcd at $endpoint"
    changed=
    put /etc/default/etcd <<SETTINGS && changed=yes
ETCD_NAME=node-$number
ETCD_LISTEN_CLIENT_URLS=$endpoint
ETCD_ADVERTISE_CLIENT_URLS=$endpoint
SETTINGS
    put /etc/systemd/system/etcd.service.d/overlaynet.conf <<UNIT && changed=yes
[Unit]
After=network-online.target
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=1
UNIT
    [ -z "$changed" ] || systemctl daemon-reload
    systemctl --quiet enable etcd.service
    if [ -n "$changed" ]; then systemctl restart etcd.service; else systemctl start etcd.service; fi
    offer_network
}

# Agents wait for a network's configuration. One that is there is somebody's, and stays.
offer_network() {
    ETCDCTL_API=3 etcdctl --endpoints "$endpoint" txn >/dev/null <<TRANSACTION
create("$NETWORK_KEY") = "0"

put $NETWORK_KEY "$NETWORK"


TRANSACTION
}

# --- the agent ----------------------------------------------------------------------------------

write_settings() {
    put "$SETTINGS" <<SETTINGS
# Written by vagrant/provision.sh; agent.example.toml beside this file explains every setting.
[node]
name = "node-$number"
interface_regex = ["^192\\\\.168\\\\.56\\\\."] # the private network, never the card with the default route

[etcd]
endpoints = ["$endpoint"]
SETTINGS
}

install_agent() {
    if [ ! -f "$HERE/wheels/install" ]; then
        [ -f "$HERE/../agent/wheels" ] || die "there is no folder $HERE/wheels" "make it with agent/wheels, in a clone"
        step "making the wheels"
        sh "$HERE/../agent/wheels" "$HERE/wheels"
    fi
    settings_changed=
    write_settings && settings_changed=yes
    running_before=$(systemctl show --property MainPID --value overlaynet-agent.service)
    step "installing the agent"
    sh "$HERE/wheels/install"
    # An installation restarts an agent whose program or unit is new. New settings alone are told here.
    running_now=$(systemctl show --property MainPID --value overlaynet-agent.service)
    if [ -n "$settings_changed" ] && [ "$running_now" = "$running_before" ]; then
        systemctl restart overlaynet-agent.service
    fi
}

# ------------------------------------------------------------------------------------------------

[ $# = 2 ] && is_node_number "$1" && is_node_number "$2" || usage
number=$1
etcd_number=$2
endpoint=http://$(address_of "$etcd_number"):2379

[ "$(id -u)" = 0 ] || die "this installs a service, so it needs root: sudo $0 $*"
[ -d /run/systemd/system ] || die "this machine was not booted by systemd, so it can run no services"

packages=$(missing_packages)
# Names are separated by blanks and hold none.
# shellcheck disable=SC2086
[ -z "$packages" ] || install_packages $packages
[ -n "$(ip -4 -o address show to "$(address_of "$number")")" ] ||
    die "no interface has address $(address_of "$number"), which node-$number has on the private network" \
        "ip -4 address show"
[ "$number" != "$etcd_number" ] || run_etcd
install_agent
say "node-$number: $(systemctl show --property StatusText --value overlaynet-agent.service)"
