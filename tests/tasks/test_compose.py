"""A docker-compose.yaml with the service main: what it becomes, and what is refused."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from harbor_folders import CLINE_COMPOSE, harbor_folder

from tasks.catalog import BUNDLED
from tasks.container import ContainerFacts, Healthcheck, Service
from tasks.errors import TaskError
from tasks.harbor import load_task
from tasks.model import HarborTask


def composed(tmp_path: Path, yaml: str, toml: str = "", files: Mapping[str, str | None] | None = None) -> ContainerFacts:
    texts = {"environment/docker-compose.yaml": yaml, "task.toml": toml or 'version = "1.0"', **(files or {})}
    task = load_task(harbor_folder(tmp_path / "plain", texts))
    assert isinstance(task, HarborTask)
    return task.harbor.container


def main(body: str) -> str:
    """Return a compose file whose main has these lines."""
    return "services:\n  main:\n" + "".join(f"    {line}\n" for line in body.splitlines())


EVERYTHING = """\
build:
  context: ./app
  dockerfile: docker/Main
  args:
    VERSION: 3
    MODE: ${MODE:-fast}
  target: test
platform: linux/amd64
command: sh -c 'sleep infinity'
entrypoint: ["/init", "--"]
environment:
  A: "1"
  B: true
  C: ${C}
  D: ${D-x}
  E:
  F: $$HOME and $F
user: "1000:1000"
working_dir: /app
shm_size: 64m
tmpfs: [/run, "/tmp:size=1m"]
cap_add: [SYS_PTRACE]
privileged: true
extra_hosts: ["db:10.0.0.1", "web=10.0.0.2"]
hostname: box
volumes:
  - ${HOST_ARTIFACTS_PATH}:${ENV_ARTIFACTS_PATH}
  - {type: bind, source: "${HOST_AGENT_LOGS_PATH}", target: "${ENV_AGENT_LOGS_PATH}"}
deploy: {resources: {limits: {cpus: "1.5", memory: 1g, pids: 99}}}
healthcheck: {test: [CMD, curl, "a b"], interval: 1m30s, timeout: 500ms, start_period: 2s, retries: 4}
init: true
tty: true
stdin_open: true
container_name: x
restart: unless-stopped
pull_policy: never
security_opt: ["no-new-privileges:true"]
"""


def test_everything_that_main_may_say_is_translated(tmp_path: Path) -> None:
    container = composed(tmp_path, main(EVERYTHING), files={"environment/app/docker/Main": "FROM x\n"})

    image = container.image
    assert (image.docker_image, image.context, image.dockerfile) == ("", "environment/app", "docker/Main")
    assert (image.target, image.args, image.platform) == ("test", {"VERSION": "3", "MODE": "fast"}, "linux/amd64")
    assert container.env == {"A": "1", "B": "true", "C": "${C}", "D": "${D:-x}", "E": "${E}", "F": "$HOME and ${F}"}
    assert container.workdir == "/app"
    assert container.service == Service(
        command=("sh", "-c", "sleep infinity"),
        entrypoint=("/init", "--"),
        user="1000:1000",
        privileged=True,
        cap_add=("SYS_PTRACE",),
        tmpfs=("/run", "/tmp:size=1m"),
        folders=("/logs/artifacts", "/logs/agent"),
        shm_bytes=64 << 20,
        extra_hosts={"db": "10.0.0.1", "web": "10.0.0.2"},
        hostname="box",
    )
    assert (container.limits.cpus, container.limits.memory_mb, container.limits.processes) == (1.5, 1024, 99)
    assert container.healthcheck == Healthcheck(
        command="curl 'a b'", interval_s=90, timeout_s=0.5, start_period_s=2, start_interval_s=5, retries=4
    )
    assert container.compose == ""


@pytest.mark.parametrize(
    ("body", "image", "context"),
    [
        ("image: debian:12", "debian:12", "environment"),
        ("image: ${MAIN_IMAGE_NAME}\nbuild: .", "", "environment"),
        ("image: ${MAIN_IMAGE_NAME}", "", "environment"),
        ("build: ${CONTEXT_DIR}", "", "environment"),
        ("init: true", "", "environment"),
    ],
)
def test_the_image_is_named_or_built(tmp_path: Path, body: str, image: str, context: str) -> None:
    found = composed(tmp_path, main(body)).image

    assert (found.docker_image, found.context, found.dockerfile) == (image, context, "Dockerfile")


def test_the_image_of_the_task_file_is_the_prebuilt_one(tmp_path: Path) -> None:
    container = composed(tmp_path, main("image: ${PREBUILT_IMAGE_NAME}"), '[environment]\ndocker_image = "mine"')

    assert container.image.docker_image == "mine"


def test_the_old_keys_of_limits_and_the_other_file_name_count_too(tmp_path: Path) -> None:
    yaml = main("cpus: 0.5\nmem_limit: 256m\npids_limit: 50")
    task = load_task(harbor_folder(tmp_path / "plain", {"environment/docker-compose.yml": yaml}))

    assert (task.limits.cpus, task.limits.memory_mb, task.limits.processes) == (0.5, 256, 50)


def test_the_task_file_counts_where_both_say_something(tmp_path: Path) -> None:
    toml = '[environment]\ncpus = 3\nworkdir = "/mine"\nenv = {A = "toml"}'

    container = composed(tmp_path, main("cpus: 1\nmem_limit: 1g\nworking_dir: /its\nenvironment: [A=yaml, B=yaml]"), toml)

    assert (container.limits.cpus, container.limits.memory_mb, container.workdir) == (3, 1024, "/mine")
    assert container.env == {"A": "toml", "B": "yaml"}


@pytest.mark.parametrize(
    ("body", "mode"),
    [("network_mode: none", "no-network"), ("network_mode: bridge", "public"), ("network_mode: ${NETWORK_MODE:-x}", "public")],
)
def test_the_network_mode_is_mapped(tmp_path: Path, body: str, mode: str) -> None:
    assert composed(tmp_path, main(body)).network.mode == mode


@pytest.mark.parametrize("check", ["{disable: true}", "{test: [NONE]}", "{test: []}", ""])
def test_a_healthcheck_can_be_none(tmp_path: Path, check: str) -> None:
    assert composed(tmp_path, main(f"healthcheck: {check}")).healthcheck is None


@pytest.mark.parametrize("check", ["test: curl a | grep b", "test: [CMD-SHELL, curl a | grep b]"])
def test_a_healthcheck_of_the_shell_is_kept_as_it_is(tmp_path: Path, check: str) -> None:
    found = composed(tmp_path, main(f"healthcheck:\n  {check}")).healthcheck

    assert found == Healthcheck(command="curl a | grep b", interval_s=30, timeout_s=30)


def test_more_services_are_named_and_main_is_kept(tmp_path: Path) -> None:
    yaml = main("depends_on: [db]\nplatform: linux/amd64\nvolumes: ['data:/data']\nnetworks: [a]")
    yaml += "  db:\n    image: postgres\nvolumes:\n  data: {}\nnetworks: {a: {}}\n"

    container = composed(tmp_path, yaml)

    assert container.compose == "environment/docker-compose.yaml"
    assert container.image.platform == "linux/amd64"


def test_services_without_main_leave_main_to_the_dockerfile(tmp_path: Path) -> None:
    container = composed(tmp_path, "services:\n  db:\n    image: postgres\n")

    assert (container.compose, container.image.context) == ("environment/docker-compose.yaml", "environment")


def test_anchors_and_merged_keys_are_fine(tmp_path: Path) -> None:
    yaml = "x-common: &common\n  hostname: box\nservices:\n  main:\n    <<: *common\n    user: root\n"

    assert composed(tmp_path, yaml).service == Service(hostname="box", user="root")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)
REFUSED = {
    "syntax": ("services:\n  main: [", r"docker-compose\.yaml line 2 is not valid YAML|docker-compose\.yaml line 3 is not valid"),
    "tab": ("services:\n\tmain: {}", r"docker-compose\.yaml line 2 is not valid YAML: .*\. Correct that line"),
    "control": ("services: \x01", "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2 is not valid YAML"),
    "python": ("services: !!python/object/apply:os.system [id]", "line 1 is not valid YAML: could not determine a constructor"),
    "key twice": ("services:\n  main: {}\n  main: {}\n", "line 3 has the key 'main' again"),
    "bomb": (BOMB, "more than 20,000 values"),
    "itself": ("services: &a\n  main: *a\n", "holds itself"),
    "deep": ("a: " + "[" * 50_000, "nested too deeply"),
    "large": ("#" * (257 << 10), "longer than 262,144 bytes"),
    "date": ("services: 2020-99-99", "holds a value that is none"),
    "no table": ("- a", "names no services"),
    "no services": ("version: '3'", "names no services"),
    "main is text": ("services:\n  main: x", "services.main must be a table"),
    "top-level volumes": (main("init: true") + "volumes: {a: {}}", "volumes cannot be used with a single container"),
    "include": (main("init: true") + "include: [a]", "include cannot be used"),
    "unknown key": (main("ports: ['1:1']"), r"docker-compose\.yaml: services\.main\.ports is not a key we know"),
    "misspelled": (main("comand: x"), "services.main.comand is not a key we know. Did you mean 'command'"),
    "unknown key of build": (main("build: {dockerfile_inline: x}"), "services.main.build.dockerfile_inline is not a key"),
    "reservations": (main("deploy: {resources: {reservations: {}}}"), "services.main.deploy.resources.reservations is not a key"),
    "context": (main("build: .."), r"build\.context is '\.\.', which leaves environment"),
    "absolute context": (main("build: /etc"), "build.context is '/etc', which leaves environment"),
    "git context": (main("build: {context: 'git@x:y'}"), "build.context is 'git@x:y', which leaves"),
    "climbing dockerfile": (main("build: {dockerfile: ../../x}"), "build.dockerfile is '../../x', which leaves"),
    "no dockerfile": (main("build: {dockerfile: Other}"), "environment/Other is missing"),
    "volume": (main("volumes: ['/data:/data']"), "services.main.volumes.0 can only mount Harbor's log folders"),
    "volume of files": (main("volumes: ['./seed:/logs/agent']"), "volumes.0 can only mount"),
    "climbing volume": (main("volumes: ['/x:/logs/../etc']"), "volumes.0 can only mount"),
    "read-only volume": (main("volumes: ['/x:/logs/agent:ro']"), "volumes.0 can only mount"),
    "host network": (main("network_mode: host"), "services.main.network_mode must be"),
    "security": (main("security_opt: ['seccomp:unconfined']"), "security_opt.0 can only hold 'no-new-privileges"),
    "variable": (main("image: ${IMAGE}"), r"services\.main\.image needs the variable IMAGE, which is not set here"),
    "odd variable": (main("image: ${IMAGE:+x}"), "services.main.image is .*are understood"),
    "open variable": (main("image: 'a${'"), "services.main.image is .*are understood"),
    "literal": (main("environment: ['A=$${A}']"), r"environment\.A has a literal"),
    "environment": (main("environment: 3"), "services.main.environment must be a list or a table"),
    "nested environment": (main("environment: {A: [1]}"), "services.main.environment.A must be one NAME"),
    "command": (main("command: sh -c 'x"), "services.main.command must be a command"),
    "size": (main("mem_limit: lots"), "services.main.mem_limit must be a size such as '4g'"),
    "too small": (main("mem_limit: 1m"), "services.main.memory_mb must be greater than or equal to 64"),
    "duration": (
        main("healthcheck: {test: x, interval: soon}"),
        "services.main.healthcheck.interval must be a time such as '5s'",
    ),
    "working_dir": (main("working_dir: app"), "services.main.working_dir must be an absolute path"),
    "args": (main("build: {args: [A]}"), "services.main.build.args must have a value behind each name"),
}


@pytest.mark.parametrize(("yaml", "answer"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done_is_refused_with_file_service_and_key(tmp_path: Path, yaml: str, answer: str) -> None:
    with pytest.raises(TaskError, match=answer) as refusal:
        composed(tmp_path, yaml)

    text = str(refusal.value)
    assert "environment/docker-compose.yaml" in text
    assert "pydantic" not in text and "Input should" not in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    ("body", "toml", "answer"),
    [
        ("image: a", '[environment]\ndocker_image = "b"', "services.main.image is 'a', but docker_image of task.toml is 'b'"),
        ("healthcheck: {test: x}", '[environment.healthcheck]\ncommand = "x"', "healthcheck also stands in task.toml"),
        (
            "network_mode: none",
            '[environment]\nnetwork_mode = "allowlist"\nallowed_hosts = ["a.org"]',
            "task.toml has an allowlist",
        ),
    ],
)
def test_what_both_files_cannot_mean_is_refused(tmp_path: Path, body: str, toml: str, answer: str) -> None:
    with pytest.raises(TaskError, match=answer):
        composed(tmp_path, main(body), toml)


@pytest.mark.parametrize("with_compose", [False, True])
def test_yaml_is_imported_only_for_a_task_that_has_some(tmp_path: Path, with_compose: bool) -> None:
    folder = harbor_folder(tmp_path / "plain", {"environment/docker-compose.yaml": CLINE_COMPOSE if with_compose else None})
    program = "import sys, pathlib, tasks.harbor as h; h.load_task(pathlib.Path(sys.argv[1])); print('yaml' in sys.modules)"

    command = [sys.executable, "-c", program, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=BUNDLED.parent.parent, check=True)

    assert ran.stdout == f"{with_compose}\n"
