# shellcheck shell=bash disable=SC2034 # the settings are used where this is sourced
# What demo.sh and demo-down.sh share: settings, messages, background processes. Sourced, not run.
#
# Settings, all from the environment:
#   VMLET_DEMO_DIR            where everything of the demo is      /var/tmp/vmlet-demo-UID
#   VMLET_DEMO_REGISTRY_PORT  port of the demo's registry          5055, as in manifests/
#   VMLET_DEMO_BRIDGE         bridge of the VMs, as root           vmletdemo0
#   VMLET_DEMO_SUBNET         network of that bridge               10.199.88.0/24
#   VMLET_DEMO_PORT           host port of the VM web              8080, as in manifests/
#   VMLET_DEMO_TIMEOUT        seconds until all VMs must be Ready  600
#   VMLET                     the binary                           target/release/vmlet

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Not in /tmp, which is small memory on some hosts; not in a home directory, which VMMs with users of
# their own cannot enter.
demo_dir=${VMLET_DEMO_DIR:-/var/tmp/vmlet-demo-$(id -u)}
registry_port=${VMLET_DEMO_REGISTRY_PORT:-5055}
bridge=${VMLET_DEMO_BRIDGE:-vmletdemo0}
subnet=${VMLET_DEMO_SUBNET:-10.199.88.0/24}
web_port=${VMLET_DEMO_PORT:-8080}
timeout=${VMLET_DEMO_TIMEOUT:-600}
vmlet=${VMLET:-${CARGO_TARGET_DIR:-$repo/target}/release/vmlet}

registry=127.0.0.1:$registry_port
socket=$demo_dir/vmlet.sock
manifests=$demo_dir/manifests
# Left in the folder by demo.sh, so that demo-down.sh removes no folder that is something else's.
marker=$demo_dir/.vmlet-demo
export VMLET_HOST=$socket

say() { printf '\n=== %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Field 22 of /proc/PID/stat: with the pid it tells one process from every other of this boot.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command's name, in parentheses, may hold spaces: count from behind it.
    awk '{print $20}' <<<"${stat##*) }"
}

# start NAME COMMAND…: in a session of its own, so that it outlives this script and its terminal.
start() {
    local name=$1 pid
    shift
    setsid "$@" </dev/null >>"$demo_dir/$name.log" 2>&1 &
    pid=$!
    echo "$pid $(start_time "$pid") $(cat /proc/sys/kernel/random/boot_id)" >"$demo_dir/$name.pid"
}

start_daemon() {
    start daemon "$vmlet" daemon --manifests "$manifests" --state "$demo_dir/state" --socket "$socket" \
        --bridge "$bridge" --subnet "$subnet"
    until_up daemon "$vmlet" get vms
}

# until_up NAME COMMAND…: waits until the command succeeds, as long as NAME lives.
until_up() {
    local name=$1
    shift
    until_true 30 up_or_gone "$name" "$@" || die "$name does not answer; see $demo_dir/$name.log"
    running "$name" >/dev/null || {
        tail -n 20 "$demo_dir/$name.log" >&2
        die "$name has ended; the end of $demo_dir/$name.log is above"
    }
}

up_or_gone() { is_gone "$1" || "${@:2}"; }

# Prints the pid of NAME if exactly that process is alive.
running() {
    local pid started boot
    read -r pid started boot 2>/dev/null <"$demo_dir/$1.pid" || return 1
    [[ $boot == "$(cat /proc/sys/kernel/random/boot_id)" && $(start_time "$pid") == "$started" ]] || return 1
    echo "$pid"
}

# stop NAME: asks it to end, waits, insists.
stop() {
    local name=$1 pid
    if pid=$(running "$name"); then
        kill -TERM "$pid" 2>/dev/null || true
        if ! until_true 60 is_gone "$name"; then
            kill -KILL "$pid" 2>/dev/null || true
            until_true 10 is_gone "$name" || die "$name (pid $pid) cannot be ended"
        fi
    fi
    rm -f "$demo_dir/$name.pid"
}

is_gone() { ! running "$1" >/dev/null; }

# until_true SECONDS COMMAND…: repeats it until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}
