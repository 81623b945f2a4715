# shellcheck shell=bash
# What the scripts in tools/ share: messages, the cache, packages of this
# machine, and Debian packages of any release fetched without root.
# Sourced, never run. Sets TOOLS, REPO and CACHE.

# shellcheck disable=SC2034 # read by those who source this file
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPO=$(dirname "$TOOLS")
CACHE=${VMM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/vmm}

ME=$(basename "$0")
say() { printf '%s: %s\n' "$ME" "$*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

# Prints the header comment of the calling script: its help text.
show_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# kvm_kind: prints `hardware` (guests run at full speed), `software` (a
# /dev/kvm that has no vmx or svm behind it, as on a PVM host: fit for tiny
# guests, not for Linux) or `missing` (none, or no permission to open it).
kvm_kind() {
    if ! (exec 3<>/dev/kvm) 2>/dev/null; then echo missing
    elif grep -qwE 'vmx|svm' /proc/cpuinfo; then echo hardware
    else echo software; fi
}

# need_packages NAME...: installs the Debian packages that are missing; where
# that is not possible, names them exactly and ends.
need_packages() {
    local p missing=()
    command -v dpkg-query >/dev/null || die "this needs a Debian-like system (dpkg and apt)"
    for p in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
    done
    ((${#missing[@]})) || return 0
    if ((EUID)); then
        say "these packages are missing; install them as root, then run this again:"
        printf '    apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
        exit 1
    fi
    say "installing ${missing[*]}"
    local get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    local log; log=$(mktemp)
    "${get[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null ||
        { "${get[@]}" update && "${get[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
        { tail -n 20 "$log" >&2; rm -f "$log"; die "apt could not install: ${missing[*]}"; }
    rm -f "$log"
}

# with_lock NAME COMMAND...: one at a time on this machine. Not to be called
# where a failure is tested for: `set -e` must stay in force within.
with_lock() {
    local the_lock
    mkdir -p "$CACHE/lock"
    exec {the_lock}>"$CACHE/lock/$1"
    flock -w 2 "$the_lock" || { say "waiting for another run ($1)"; flock "$the_lock"; }
    "${@:2}"
    exec {the_lock}>&-
}

# debian_sources RELEASE: one-line apt sources for that Debian release, taken
# from the mirrors that this machine's own apt uses (or from VMM_MIRROR and
# VMM_SECURITY_MIRROR).
debian_sources() {
    local key=/usr/share/keyrings/debian-archive-keyring.gpg opt=
    [[ -e $key ]] && opt="[signed-by=$key] "
    {
        [[ -z ${VMM_MIRROR:-} ]] || echo "$VMM_MIRROR sid"
        [[ -z ${VMM_SECURITY_MIRROR:-} ]] || echo "$VMM_SECURITY_MIRROR sid-security"
        # Prints what it would fetch, and fetches nothing.
        apt-get update --print-uris 2>/dev/null | sed -n "s#^'\(.*\)/dists/\(.*\)/InRelease'.*#\1 \2#p"
    } | awk -v new="$1" -v opt="$opt" '
        $2 ~ /-security$|\/updates$/ { if (!sec++ && new != "sid") print "deb " opt $1 " " new "-security main"; next }
        $2 ~ /^(bullseye|bookworm|trixie|forky|duke|sid|(old)*stable|testing|unstable)$/ && !base++ { print "deb " opt $1 " " new " main" }
        END { exit !base }'
}

# apt_of RELEASE COMMAND ARGUMENT...: apt-get, apt-cache and the like with a
# private state of that release; the machine's own lists, sources and installed
# packages are neither read nor changed. The lists are fetched when absent.
apt_of() {
    local release=$1 dir="$CACHE/apt/$1"; shift
    if [[ ! -e $dir/fetched ]]; then
        mkdir -p "$dir"/{etc,lists/partial,cache/archives/partial,state}
        debian_sources "$release" >"$dir/etc/sources.list" ||
            die "no Debian mirror in this machine's apt sources; set VMM_MIRROR to the URI of one"
        : >"$dir/state/status"
        # Of the machine's own configuration: how to reach a mirror, no hooks.
        { apt-config dump | grep '^Acquire::' || true; cat <<EOF; } >"$dir/apt.conf"
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$dir/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$dir/state";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/state/status";
Dir::Cache "$dir/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
EOF
        say "fetching the package lists of Debian $release"
        APT_CONFIG=$dir/apt.conf apt-get -qq update >&2 || die "apt could not fetch the lists of Debian $release"
        touch "$dir/fetched"
    fi
    APT_CONFIG=$dir/apt.conf "$@"
}

# package_of RELEASE PACKAGE: prints "name version" of the newest, following
# a meta package (linux-image-cloud-amd64) to the one it stands for.
package_of() {
    local show name
    show=$(apt_of "$1" apt-cache show --no-all-versions "$2") || die "Debian $1 has no package $2"
    name=$(awk -v p="$2" '/^Depends: linux-image-/ && p ~ /^linux-image-cloud/ { print $2; exit }' <<<"$show")
    name=${name%,}
    [[ -z $name || $name == "$2" ]] || { package_of "$1" "$name"; return; }
    echo "$2 $(awk '/^Version:/ { print $2; exit }' <<<"$show")"
}

# fetch_deb RELEASE NAME VERSION: downloads that package (checked by apt) into
# the cache and prints the file's path.
fetch_deb() {
    local dir="$CACHE/deb/$2_${3//:/%3a}"
    if [[ ! -e $dir/done ]]; then
        rm -rf "$dir"; mkdir -p "$dir"
        (cd "$dir" && apt_of "$1" apt-get -qq download "$2=$3" >&2) || die "apt could not download $2 $3"
        touch "$dir/done"
    fi
    echo "$dir"/*.deb
}
