# Shared by the scripts beside it: what must be there, and how to get it. Sourced, never run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "$0 mounts filesystems, attaches loop devices and makes namespaces: run it as root (sudo $0)"
}

# The Rust toolchain is the user's choice, so it is only checked, never installed.
need_rust() {
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing: install Rust (https://www.rust-lang.org/tools/install), then run $0 again"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -1)
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -1)" = "$wanted" ] ||
        die "rustc $have is too old, $wanted is needed: run 'rustup update stable', then $0 again"
}

postgres_bin() { # the newest PostgreSQL's directory of programs; empty if there is none from 14 on
    local postgres version
    for postgres in $(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -rV); do
        version=${postgres#/usr/lib/postgresql/}
        [ "${version%%/*}" -ge 14 ] && { dirname "$postgres"; return; }
    done
}

# Installs Debian packages without starting the services that they bring.
apt_install() {
    command -v apt-get >/dev/null || die "these packages are missing, and there is no apt-get to install them: $*"
    say "installing $*"
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        made=1
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    local failed=
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } \
        >/tmp/baton-apt.$$ 2>&1 || failed=1
    [ -z "$made" ] || rm -f "$policy"
    [ -z "$failed" ] || { tail -20 /tmp/baton-apt.$$ >&2; die "apt-get could not install $* (whole output: /tmp/baton-apt.$$)"; }
    rm -f /tmp/baton-apt.$$
}

install_missing() { # what everything needs, and command:package pairs that only the caller needs
    local missing=() pair
    [ -n "$(postgres_bin)" ] || missing+=(postgresql)
    for pair in mkfs.ext4:e2fsprogs ip:iproute2 fusermount3:fuse3 losetup:mount nsenter:util-linux cc:gcc "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
    [ -e /dev/fuse ] || die "/dev/fuse is missing: the kernel needs FUSE (modprobe fuse); in a container, pass --device /dev/fuse"
    [ -e /dev/loop-control ] || die "/dev/loop-control is missing: the kernel needs loop devices (modprobe loop); a container must be privileged"
}

# Fails, and names them, if processes of this program are left, or the mounts or loop devices of a lab.
leftovers() {
    local program=$1 found=0 link
    for link in /proc/[0-9]*/exe; do
        [ "$(readlink "$link" 2>/dev/null)" = "$program" ] || continue
        echo "process left: ${link//[^0-9]/}" && found=1
    done
    grep -E ' /(var/tmp|tmp)/baton' /proc/self/mounts && echo "mount left" && found=1
    ls /run/netns 2>/dev/null | grep -E '^baton-[0-9a-f]{4}-(a|b|line)$' && echo "network namespace left" && found=1
    ls -d /sys/fs/cgroup/baton-kube-* /sys/fs/cgroup/unified/baton-kube-* 2>/dev/null && echo "control group left" && found=1
    cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -x /namespace && echo "loop device left" && found=1
    return $found
}
