#!/usr/bin/env bash
# Make the image that the docker tests and their fixture tasks start from, unless the daemon has it already.
# Needs root, debootstrap and a daemon that answers. The packages come from the mirror that this machine's apt uses.
set -euo pipefail

image=${SEATRIAL_TEST_IMAGE:-seatrial-test-base:latest}
suite=bookworm
packages=python3,python3-venv,git,ca-certificates

if docker image inspect "$image" >/dev/null 2>&1; then exit 0; fi
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap"; exit 1; }
[ "$(id -u)" = 0 ] || { echo "debootstrap needs root: run this script as root"; exit 1; }

# Repositories by address, without updates and security; the mirror of a Debian machine has every supported suite.
mirrors() {
    # shellcheck disable=SC2016 # the names between the dollars are apt's
    apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 !~ /security/ && !seen[$2]++ { print $2 }'
}

proxy=$(apt-config dump --format '%v' Acquire::http::Proxy 2>/dev/null || true)
if [ -n "$proxy" ] && [ "$proxy" != DIRECT ]; then export http_proxy=${http_proxy:-$proxy} https_proxy=${https_proxy:-$proxy}; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found=$(mirrors)
[ -n "$found" ] || { echo "apt knows no Debian mirror: run apt-get update, or add one to its sources"; exit 1; }
for mirror in $found; do
    rm -rf "$work/root"
    if debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" "$mirror" >"$work/log" 2>&1; then
        tar -C "$work/root" -c --one-file-system --exclude=./var/cache/apt/archives/* --exclude=./var/lib/apt/lists/* \
            --exclude=./usr/share/doc/* --exclude=./usr/share/man/* --exclude=./usr/share/locale/* \
            --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* . |
            docker import --change 'CMD ["/bin/bash"]' - "$image" >/dev/null
        exit 0
    fi
    tail -n 5 "$work/log"
    if [ -e "$work/root/debootstrap/debootstrap.log" ]; then tail -n 15 "$work/root/debootstrap/debootstrap.log"; fi
done
echo "debootstrap could not make $image"
exit 1
