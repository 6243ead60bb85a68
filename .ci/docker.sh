# Sourced by .ci/run: a Docker daemon and the image that the docker tests need, where this machine allows both.
# shellcheck shell=bash
# Nothing here may fail the run: what is impossible is printed, and the docker tests skip with their reason.
# DOCKERD_FLAGS: more flags for a daemon that is started here. DOCKER_HOST: where it listens, if not at its usual place.

docker_folder=$(mktemp -d)
dockerd_pid=

docker_answers() { command -v docker >/dev/null && timeout 10 docker version >/dev/null 2>&1; }

install_docker() {
    [ "$(id -u)" = 0 ] || { echo "docker: not root, so nothing is installed"; return 1; }
    command -v apt-get >/dev/null || { echo "docker: no apt-get here, so nothing is installed"; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends "$@" >"$docker_folder/apt.log" 2>&1 ||
        { echo "docker: apt-get install $* failed"; tail -n 5 "$docker_folder/apt.log"; return 1; }
}

# Packages that this release of the distribution may not have, or that belong to others there.
install_tools() {
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v iptables >/dev/null || missing+=(iptables)
    if [ ${#missing[@]} != 0 ]; then install_docker "${missing[@]}" || return 1; fi
    command -v docker >/dev/null || install_docker docker-cli
}

# A machine without an init system has mounted no control groups, and a daemon wants them.
mount_cgroups() {
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || true
}

start_dockerd() {
    local flags=()
    read -ra flags <<<"${DOCKERD_FLAGS:-}"
    if [ -n "${DOCKER_HOST:-}" ]; then flags+=(--host "$DOCKER_HOST"); fi
    dockerd "${flags[@]}" "$@" >"$docker_folder/dockerd.log" 2>&1 </dev/null &
    dockerd_pid=$!
    local left=150
    while [ $left -gt 0 ]; do
        if docker_answers; then return 0; fi
        kill -0 "$dockerd_pid" 2>/dev/null || break
        sleep 0.2
        left=$((left - 1))
    done
    stop_dockerd
    return 1
}

stop_dockerd() {
    [ -n "$dockerd_pid" ] || return 0
    kill "$dockerd_pid" 2>/dev/null || true
    wait "$dockerd_pid" 2>/dev/null || true
    dockerd_pid=
}

daemon_ready() {
    if docker_answers; then return 0; fi
    case "${DOCKER_HOST:-unix:}" in
    unix:*) ;;
    *) echo "docker: $DOCKER_HOST does not answer"; return 1 ;;
    esac
    install_tools || return 1
    if docker_answers; then return 0; fi # the package started it
    mount_cgroups
    # Where the kernel or the machine allows no bridge, containers without a network still work.
    if start_dockerd || start_dockerd --bridge=none --iptables=false; then return 0; fi
    echo "docker: dockerd does not start here; the end of its log:"
    tail -n 30 "$docker_folder/dockerd.log"
    return 1
}

image_ready() {
    if docker image inspect "$SEATRIAL_TEST_IMAGE" >/dev/null 2>&1; then return 0; fi
    # Some machines let a daemon run, but not unpack an image: find out before the long part.
    tar -C .ci -c run | docker import - seatrial-probe:latest >/dev/null || { echo "docker: this daemon cannot take images in"; return 1; }
    docker rmi seatrial-probe:latest >/dev/null || true
    command -v debootstrap >/dev/null || install_docker debootstrap || return 1
    echo "docker: making $SEATRIAL_TEST_IMAGE (once) ..."
    timeout 150 bash tests/support/base_image.sh || { echo "docker: no $SEATRIAL_TEST_IMAGE, for the reason above"; return 1; }
}

# Say what the docker tests may rely on, and make that so.
prepare_docker() {
    export SEATRIAL_TEST_IMAGE=${SEATRIAL_TEST_IMAGE:-seatrial-test-base:latest}
    : >"$docker_folder/before"
    if daemon_ready && image_ready; then
        seatrial_objects >"$docker_folder/before" || true
        export SEATRIAL_DOCKER_REQUIRED=1 # from here on, a docker test that does not run has failed
        echo "docker: ready ($(docker version --format '{{.Server.Version}}' 2>/dev/null), $SEATRIAL_TEST_IMAGE)"
    else
        echo "docker: not available; the tests that need it skip"
    fi
}

# One line per container, network and volume that a seatrial made, with the command that removes it.
seatrial_objects() {
    local label=label=seatrial.state
    docker ps -aq --filter $label | sed 's/^/rm -f -v /'
    docker network ls -q --filter $label | sed 's/^/network rm /'
    docker volume ls -q --filter $label | sed 's/^/volume rm /'
}

# Remove what tests left behind, then the daemon if it is ours. On a user's own daemon the tests clean up for themselves.
clean_docker() {
    local removal=()
    if { [ -n "$dockerd_pid" ] || [ "${CI:-}" = true ]; } && docker_answers; then
        seatrial_objects | grep -vxFf "$docker_folder/before" | while read -ra removal; do
            docker "${removal[@]}" >/dev/null </dev/null || true
        done || true
    fi
    stop_dockerd
    rm -rf "$docker_folder"
}
