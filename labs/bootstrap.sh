# shellcheck shell=sh
# Sourced by labs/quickstart and tests/run: from a bare Debian with a clone to an installed .venv.
#
# The caller sets ROOT, the clone. Nothing is downloaded but Debian packages and what constraints.txt
# pins. Every step looks first and does nothing if there is nothing to do.

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # a plain user's PATH has no ip and no iptables
export PATH

EXIT_ENVIRONMENT=3

CAP_NET_ADMIN=12 # bit numbers: capabilities(7), include/uapi/linux/capability.h
CAP_NET_RAW=13
CAP_SYS_ADMIN=21

scratch=
guard=
guarded=

say() { printf '%s\n' "$*"; }

step() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit "$EXIT_ENVIRONMENT"
}

# --- beginning and end --------------------------------------------------------------------------

begin() {
    [ -f "$ROOT/pyproject.toml" ] || die "$ROOT is no clone of overlaynet: it has no pyproject.toml"
    umask 022
    scratch=$(mktemp -d)
    : >"$scratch/started"
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

finish() {
    code=$?
    trap - EXIT
    remove_service_guard
    give_back
    rm -rf "$scratch"
    exit "$code"
}

# What root made in the caller's clone since the start becomes the caller's, as if sudo had not been there.
give_back() {
    [ "$(id -u)" = 0 ] && [ "${SUDO_UID:-0}" != 0 ] || return 0
    find "$ROOT" -xdev -uid 0 \( -cnewer "$scratch/started" -o -path "*/.venv/*" \) \
        -exec chown -h "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" {} + || true
}

# --- privilege ----------------------------------------------------------------------------------

# Is the capability with this bit number effective? Capabilities decide, not uid 0: a container's root
# may lack them, and `unshare --map-root-user` gives them to anybody.
capable() {
    effective=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status 2>/dev/null)
    [ -n "$effective" ] || die "/proc is not mounted" "mount -t proc proc /proc"
    [ $((0x$effective >> $1 & 1)) = 1 ]
}

privileged() { capable $CAP_NET_ADMIN && capable $CAP_NET_RAW && capable $CAP_SYS_ADMIN; }

# --- Debian packages ----------------------------------------------------------------------------

# The packages that would bring what is missing, on one line. curl is for people: lessons call their servers by it.
missing_packages() {
    lacking=
    system_python >/dev/null || lacking="python3 python3-venv"
    while read -r tool package; do
        command -v "$tool" >/dev/null || lacking="$lacking $package"
    done <<EOF
ip iproute2
iptables iptables
etcd etcd-server
ping iputils-ping
curl curl
EOF
    printf '%s' "${lacking# }"
}

# install_packages NAME...
install_packages() {
    command -v apt-get >/dev/null ||
        die "this system has no apt-get, so install these yourself: $*" "then run this again"
    [ "$(id -u)" = 0 ] || die "packages are missing and only root can install them: $*"
    step "refreshing the package lists"
    apt_get update
    step "installing $*"
    guarded=$(services_of "$@")
    put_service_guard
    apt_get install --no-install-recommends "$@"
    keep_services_off
    remove_service_guard
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" \
        </dev/null >"$scratch/apt.log" 2>&1 && return
    tail -n 20 "$scratch/apt.log" >&2
    die "apt-get $1 failed; its last lines are above"
}

# The services that come with these packages, on one line.
services_of() {
    for package in "$@"; do
        case $package in
        etcd-server) printf 'etcd ' ;;
        openssh-server) printf 'ssh ' ;;
        libvirt-daemon-system) printf 'libvirtd virtlogd virtlockd libvirt-guests ' ;;
        esac
    done
}

# Debian starts a service as soon as its package is unpacked, unless policy-rc.d says no (invoke-rc.d(8)).
# Labs and tests run programs of their own; an etcd or an sshd for the whole machine must not appear as a side
# effect. A policy that somebody else put there is respected; systemd is then told by a mask that ends with the
# boot.
put_service_guard() {
    [ -n "$guarded" ] || return 0
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        guard=policy
        {
            printf '#!/bin/sh\n'
            for service in $guarded; do
                printf 'case $1 in %s | %s.*) exit 101 ;; esac\n' "$service" "$service"
            done
        } >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
    elif [ -d /run/systemd/system ]; then
        guard=mask
        for service in $guarded; do systemctl --runtime mask "$service.service" >/dev/null 2>&1; done
    fi
}

remove_service_guard() {
    case $guard in
    policy) rm -f /usr/sbin/policy-rc.d ;;
    mask) for service in $guarded; do systemctl --runtime unmask "$service.service" >/dev/null 2>&1; done ;;
    esac
    guard=
}

# Nor at the next boot. Both tools come with init-system-helpers and need no running init.
keep_services_off() {
    for service in $guarded; do
        deb-systemd-helper disable "$service.service" >/dev/null 2>&1 || true
        update-rc.d "$service" disable >/dev/null 2>&1 || true
    done
}

# --- Python -------------------------------------------------------------------------------------

# Prints the interpreter to make .venv with, Debian's own first; fails if there is none.
system_python() {
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        usable_python "$candidate" && printf '%s' "$candidate" && return
    done
    return 1
}

usable_python() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

# ensure_venv run|test: .venv with the project in editable mode; `test` adds the test tools.
ensure_venv() {
    wanted=$(fingerprint)
    read -r have extra 2>/dev/null <"$ROOT/.venv/overlaynet-installed" || have=
    if [ "$have" = "$wanted" ] && usable_python "$ROOT/.venv/bin/python"; then
        case $extra in "$1" | test) return ;; esac
    fi
    usable_python "$ROOT/.venv/bin/python" || make_venv
    target=.
    [ "$1" = test ] && target='.[test]'
    step "installing overlaynet and what it needs into .venv (a minute or so)"
    pip_install -e "$target"
    printf '%s %s\n' "$wanted" "$1" >"$ROOT/.venv/overlaynet-installed"
}

make_venv() {
    python=$(system_python) || die "no Python from 3.11 to 3.13 with its venv module was found" \
        "apt-get install python3 python3-venv"
    step "making .venv with $("$python" --version)"
    "$python" -m venv --clear "$ROOT/.venv"
}

# The constraints hold for the tools that build packages too: older pip reads the first variable for
# them, newer pip the second. Relative, because pip splits the variables at blanks.
pip_install() (
    cd "$ROOT"
    export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
    .venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet --use-pep517 "$@" ||
        die "pip could not install the packages of constraints.txt; its own words are above"
)

# What an installation depends on; the path too, since a virtual environment cannot be moved.
fingerprint() {
    { cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" && printf '%s' "$ROOT"; } | sha256sum | cut -c 1-64
}
