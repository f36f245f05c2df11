#!/bin/sh
# Gets what the commands of the Makefile stand on, and does nothing where it is there already:
#
#   bootstrap.sh venv LOCK...    .venv with exactly what the lock files pin
#   bootstrap.sh rabbitmq        Debian's or Ubuntu's rabbitmq-server, installed but neither started nor enabled
#   bootstrap.sh libfaketime     a clock that the chaos tests can set for one program
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"
log=.local/bootstrap.log
# What the private servers write there is nobody else's business.
mkdir -p -m 700 .local

say() { printf '%s\n' "$*" >&2; }

# Runs a long-winded command; only a failure is worth a reader's time.
quietly() {
    if ! "$@" >>"$log" 2>&1; then
        tail -n 30 "$log" >&2
        say "failed: $* (all of it is in $log)"
        exit 1
    fi
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# SYSTEMD_OFFLINE turns every `systemctl start` of a package's scripts into nothing, so that no service starts.
apt_install() {
    quietly as_root apt-get update -q -o DPkg::Lock::Timeout=300
    quietly as_root env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 \
        apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 or later is needed, and none was found"
    exit 1
}

make_venv() {
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        say "Making .venv with $("$python" --version)"
        # Debian keeps this part of the standard library in a package of its own.
        "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install "$python-venv"
        quietly "$python" -m venv --clear .venv
    fi
    wanted=''
    for lock in "$@"; do
        cmp -s "$lock" ".venv/installed/$lock" || wanted="$wanted -r $lock"
    done
    [ -n "$wanted" ] || return 0
    say "Installing$wanted"
    # shellcheck disable=SC2086 # a list of words: lock files of this repository
    quietly .venv/bin/python -m pip install --disable-pip-version-check --no-compile --no-deps $wanted
    for lock in "$@"; do
        mkdir -p "$(dirname ".venv/installed/$lock")"
        cp "$lock" ".venv/installed/$lock"
    done
}

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed$'
}

get_rabbitmq() {
    [ ! -d /usr/lib/rabbitmq/bin ] || return 0
    # What this machine has enabled by itself stays as it is.
    services=rabbitmq-server.service
    is_installed erlang-base || services="$services epmd.service epmd.socket"
    say "Installing rabbitmq-server with apt (the system's own service stays off)"
    apt_install rabbitmq-server
    if command -v systemctl >/dev/null; then
        # shellcheck disable=SC2086 # a list of words: unit names
        quietly as_root env SYSTEMD_OFFLINE=1 systemctl disable $services
    else
        quietly as_root update-rc.d rabbitmq-server disable
    fi
}

case ${1-} in
venv)
    shift
    make_venv "$@"
    ;;
rabbitmq) get_rabbitmq ;;
libfaketime) is_installed libfaketime || apt_install libfaketime ;;
*)
    say "usage: bootstrap.sh venv LOCK... | rabbitmq | libfaketime"
    exit 2
    ;;
esac
