#!/usr/bin/env bash
# Installs the Debian packages that building, testing and the demo need, and those that are named, as far as
# they are missing.
set -euo pipefail

packages=(
    build-essential ca-certificates curl procps strace
    qemu-system-x86
    nftables iproute2 iputils-ping kmod
    e2fsprogs attr libcap2-bin cpio lz4 xz-utils zstd
    docker-registry skopeo umoci libarchive-tools python3 mmdebstrap debootstrap uidmap busybox-static
    "$@"
)

# An installed kernel serves as well: another one would become the one that this host boots.
has_kernel() {
    local kernel
    for kernel in /boot/vmlinuz-*; do
        if [[ -r $kernel && -d /lib/modules/${kernel#/boot/vmlinuz-} ]]; then return 0; fi
    done
    return 1
}
has_kernel || packages+=(linux-image-cloud-amd64)

if ! command -v dpkg-query >/dev/null; then
    echo "error: this is not Debian or a descendant of it; install the equivalents of: ${packages[*]}" >&2
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $state == installed ]] || missing+=("$package")
done

if ((${#missing[@]})); then
    install=(apt-get install --yes --no-install-recommends "${missing[@]}")
    if ((EUID != 0)); then
        echo "error: packages are missing; as root: apt-get update && ${install[*]}" >&2
        exit 1
    fi
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet=2
    "${install[@]}" --quiet=2 -o Dpkg::Use-Pty=0
    # The registry's package starts a service on port 5000 that nobody here asked for.
    if [[ " ${missing[*]} " == *" docker-registry "* && -d /run/systemd/system ]]; then
        systemctl disable --quiet --now docker-registry.service
    fi
fi

rust=1.90
if ! version=$(rustc --version 2>/dev/null); then
    echo "error: Rust is missing; install $rust or later: https://rustup.rs" >&2
    exit 1
fi
version=${version#rustc }
if [[ $(printf '%s\n' "$rust" "${version%% *}" | sort --version-sort | head -n 1) != "$rust" ]]; then
    echo "error: Rust ${version%% *} is too old; update to $rust or later: rustup update" >&2
    exit 1
fi
