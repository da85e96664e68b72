#!/usr/bin/env bash
# Removes everything that demo.sh made: VMs, images, daemon, registry, bridge, folder. Settings: lib.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

no_objects() {
    local vms images
    vms=$("$vmlet" get vms -o name) && images=$("$vmlet" get images -o name) && [[ -z $vms$images ]]
}

# Without manifests there are no VMs: the daemon shuts them down.
remove_objects() {
    mkdir --parents "$manifests"
    find "$manifests" -mindepth 1 -delete
    # A daemon that was killed left its VMs running: a new one finds them.
    if is_gone daemon; then start_daemon; fi
    until_true 180 no_objects || {
        "$vmlet" get vms >&2 || true
        die "VMs or images are left, see $demo_dir/daemon.log; nothing else was removed"
    }
}

# The daemon leaves its bridge to the next daemon. There is none.
remove_bridge() {
    ((EUID == 0)) || return 0
    if [[ -d /sys/class/net/$bridge/brif ]]; then
        [[ -z $(ls "/sys/class/net/$bridge/brif") ]] || die "the bridge $bridge still has ports"
        ip link delete "$bridge"
    fi
    local family
    for family in ip bridge; do
        if nft list table "$family" "$bridge" >/dev/null 2>&1; then nft delete table "$family" "$bridge"; fi
    done
}

if [[ ! -e $demo_dir ]]; then
    echo "no demo in $demo_dir"
    exit 0
fi
[[ -O $demo_dir && -f $marker ]] || die "$demo_dir is not a folder of the demo; set VMLET_DEMO_DIR"

if [[ -d $demo_dir/state ]]; then
    say "Shutting the VMs down"
    remove_objects
fi
say "Removing daemon, registry and files"
stop daemon
stop registry
remove_bridge
rm -rf -- "$demo_dir"
echo "nothing is left"
