#!/usr/bin/env bash
# Shows vmlet at work: a registry with two images, a daemon on a copy of manifests/, three VMs.
# Succeeds only if all VMs became Ready, one ran a command, and one served a page. Running it again is
# quick: what is there stays. demo-down.sh removes everything. Settings: lib.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

prepare_folder() {
    if [[ ! -e $demo_dir ]]; then
        mkdir --mode=711 "$demo_dir"
        touch "$marker"
    fi
    [[ -O $demo_dir && -f $marker ]] || die "$demo_dir is not a folder of the demo; set VMLET_DEMO_DIR"
}

ensure_registry() {
    if is_gone registry; then
        if curl --silent --output /dev/null "http://$registry/"; then
            die "port $registry_port is in use; choose another: VMLET_DEMO_REGISTRY_PORT=15055 make demo"
        fi
        cat >"$demo_dir/registry.yml" <<CONFIG
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $demo_dir/registry}}
http: {addr: "$registry"}
CONFIG
        start registry docker-registry serve "$demo_dir/registry.yml"
        until_up registry curl --fail --silent "http://$registry/v2/"
    fi
    "$repo/scripts/fixtures/registry.sh" "$registry" "$demo_dir/images"
}

# A copy: edit it and watch what happens.
copy_manifests() {
    [[ ! -e $manifests ]] || return 0
    cp --recursive "$repo/manifests" "$manifests.new"
    find "$manifests.new" -name '*.yaml' -exec sed -i \
        -e "s/127\.0\.0\.1:5055/$registry/g" -e "s/host: 8080\b/host: $web_port/g" {} +
    mv "$manifests.new" "$manifests"
}

# A daemon of an older build is replaced. The VMs do not notice.
ensure_daemon() {
    local pid
    if pid=$(running daemon); then
        [[ /proc/$pid/exe -ef $vmlet ]] || stop daemon
    fi
    if is_gone daemon; then start_daemon; fi
}

explain_failure() {
    "$vmlet" get images || true
    "$vmlet" get vms || true
    "$vmlet" events || true
    tail -n 30 "$demo_dir/daemon.log"
    die "$1; above: the objects, their events, and the end of $demo_dir/daemon.log"
}

# The VM's own address; empty in the user network, where the host has no way to it.
address_of() {
    local address
    address=$("$vmlet" get vm "$1" -o json | tr -d ' \n' | sed -n 's/.*"addresses":\["\([0-9.]*\)".*/\1/p')
    [[ $address == 10.0.2.* ]] || echo "$address"
}

fetch() {
    printf '$ curl %s\n' "$1"
    until_true 120 curl --fail --silent --max-time 5 "$1" || explain_failure "no page at $1"
    curl --fail --silent --show-error --max-time 5 "$1"
}

what_next() {
    cat <<TEXT

Try next:
  export VMLET_HOST=$socket PATH=$(dirname "$vmlet"):\$PATH
  vmlet get vms -w                             # then, in another terminal:
  vmlet exec -it web -- bash                   # look around inside a VM
  \$EDITOR $manifests/vms.yaml   # change memory, add a VM, delete one
  vmlet logs hello-2; vmlet describe vm web; vmlet doctor
Stop and remove everything:
  make demo-down
TEXT
}

[[ -x $vmlet ]] || die "$vmlet is missing: cargo build --release, or make demo"
prepare_folder

say "Registry on $registry, with its images"
ensure_registry

say "Daemon on $manifests"
copy_manifests
ensure_daemon

say "Pulling images, booting VMs"
"$vmlet" wait --for condition=Ready vm --all --timeout "${timeout}s" || explain_failure "not all VMs are Ready"

say "What runs"
"$vmlet" get images
"$vmlet" get vms

say "A command inside web"
# shellcheck disable=SC2016 # it is the VM's shell that expands this
"$vmlet" exec web -- sh -c '. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), PID 1 is $(cat /proc/1/comm)"'

say "A page from web"
address=$(address_of web)
[[ -z $address ]] || fetch "http://$address/"
fetch "http://127.0.0.1:$web_port/"

what_next
