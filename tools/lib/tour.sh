#!/usr/bin/env bash
# A tour of containers in microVMs: shows each command, runs it, and ends at the first that does not do what it should.
# `tools/demo containers` runs it, and so does a guest test (tests/guest/tour.rs). Wants a KVM that works, root, and what
# tools/guest makes as tuned, images and nginx; VMM names the program.
set -euo pipefail
guest=$(dirname "$(readlink -f "$0")")/../../target/guest
vmm=${VMM:?which program?}
work=$(mktemp -d) registry=''
finish() {
    [[ -z $registry ]] || kill "$registry" 2>/dev/null || true
    "$vmm" ps -aq 2>/dev/null | xargs -r "$vmm" rm -f >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
cd "$work"
mkdir run data
export VMM_STORE=$work/store VMM_KERNEL=$guest/tuned/vmlinux XDG_RUNTIME_DIR=$work/run
bad() { echo "tour: $*" >&2; exit 1; }
# A network to be in, where there is none: passt takes the host's addresses for the guest's.
[[ -n $(ip route show default) ]] || {
    ip link add tour0 type veth peer name tour1
    ip addr add 198.51.100.2/24 dev tour0
    ip link set tour0 up; ip link set tour1 up
    ip route add default via 198.51.100.1
}
address=$(ip -4 -o route get 203.0.113.1 | sed 's/.* src \([0-9.]*\).*/\1/')

# shown WORD...: runs `vmm WORD...` and shows both it and what it says, which stays in $said.
shown() {
    printf '\n$ vmm'; printf ' %q' "$@"; echo
    "$vmm" "$@" </dev/null >said || bad "it ended with $?"
    cat said; said=$(<said)
}
# says TEXT: what was said has this.
says() { [[ $said == *"$1"* ]] || bad "that does not say: $1"; }
# typed KEYS WORD...: the same on a terminal, with keys that are typed at the first prompt.
typed() {
    local keys=$1; shift
    printf '\n$ vmm'; printf ' %q' "$@"; echo
    rm -f said keys; mkfifo keys
    # Not by a substitution: that would be a child of script(1), which is not made for others than its own.
    { until grep -q '# ' said 2>/dev/null; do sleep 0.2; done; printf %b "$keys"; exec sleep 600; } >keys &
    local typist=$!
    script -qec "$(printf '%q ' "$vmm" "$@")" /dev/null <keys >said || bad "it ended with $?"
    kill "$typist"
    cat said; said=$(<said)
}

echo '== A web server in a microVM of its own'
shown image import -q "oci:$guest/images/nginx:latest" nginx:1.22
shown run -d --name web --memory 512m --cpus 0.5 -p 8080:80 nginx:1.22
for ((i = 0; i < 300; i++)); do curl -sf -m 20 -o page "http://$address:8080/" && break; sleep 0.2; done
printf '\n$ curl http://%s:8080/\n' "$address"; sed -n '/<title>/p' page
grep -q 'Welcome to nginx!' page || bad 'that is not its page'
shown logs web; says 'GET / HTTP/1.1'
shown ps; says 'nginx:1.22'; says 8080:80
shown stats --no-stream web
shown top web; says 'nginx: worker process'
shown stop web
shown wait web; says 0
shown rm web

echo; echo '== A shell, from a registry, by digest'
cat >registry.yml <<'I'
version: 0.1
storage: { filesystem: { rootdirectory: registry } }
http: { addr: 127.0.0.1:5000 }
I
docker-registry serve registry.yml >registry.log 2>&1 & registry=$!
for ((i = 0; i < 300; i++)); do curl -sf -o /dev/null http://127.0.0.1:5000/v2/ && break; sleep 0.2; done
shown image import -q "oci:$guest/images/nginx:latest" 127.0.0.1:5000/debian:12
shown image push -q 127.0.0.1:5000/debian:12
shown image rm 127.0.0.1:5000/debian:12
digest=$(curl -sfI -H 'Accept: application/vnd.oci.image.manifest.v1+json' http://127.0.0.1:5000/v2/debian/manifests/12 |
    tr -d '\r' | sed -n 's/^docker-content-digest: //Ip')
typed 'head -n 1 /etc/os-release; echo pid $$; exit\n' run -it --rm --network none "127.0.0.1:5000/debian@$digest" bash
says 'Debian GNU/Linux 12'; says 'pid 1'

echo; echo '== Containers of a tenant, in one microVM'
cp -r "$guest/images/busybox" layout
# shellcheck disable=SC2016 # the container's variable
shown run --vm tenant-a -d --name db -v ./data:/var/lib/db -e KEY=value oci:./layout:latest \
    sh -c 'hostname >/var/lib/db/who; echo KEY is $KEY; exec sleep 1000'
shown run --vm tenant-a --rm oci:./layout:latest ping -c 1 db; says '1 packets received'
# shellcheck disable=SC2016 # the container's variable
typed 'echo inside $HOSTNAME; ls /var/lib/db; exit\n' exec -it db sh
says who
[[ -s data/who ]] || bad 'data/who is empty'
shown logs db; says 'KEY is value'
shown stats --json --no-stream db; says '"memory'
echo copied >letter
shown cp letter db:/tmp/letter
shown exec db cat /tmp/letter; says copied
shown kill db
shown wait db; says 137
shown rm db

echo; echo '== Images'
shown image ls; says nginx
shown image history nginx:1.22
shown image inspect nginx:1.22; says daemon
shown image export -o nginx.tar nginx:1.22
shown image rm nginx:1.22
shown image import -q oci-archive:nginx.tar nginx:again
shown image prune
shown ps -a
