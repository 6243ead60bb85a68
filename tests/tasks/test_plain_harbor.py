"""Plain Harbor task folders: what task.toml and the files beside it become, and what is refused."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
from harbor_folders import CLINE_COMPOSE, CLINE_TOML, harbor_folder

from tasks.catalog import load_catalog
from tasks.container import Artifact, HarborFacts, Healthcheck, Network
from tasks.errors import TaskError
from tasks.harbor import load_task
from tasks.model import HarborTask


def plain(tmp_path: Path, toml: str = "", files: Mapping[str, str | None] | None = None) -> HarborTask:
    task = load_task(harbor_folder(tmp_path / "plain", {"task.toml": toml or 'version = "1.0"', **(files or {})}))
    assert isinstance(task, HarborTask)
    return task


def facts(tmp_path: Path, toml: str = "", files: Mapping[str, str | None] | None = None) -> HarborFacts:
    return plain(tmp_path, toml, files).harbor


def test_a_task_that_says_nothing_has_harbors_defaults(tmp_path: Path) -> None:
    task = plain(tmp_path)
    (step,) = task.harbor.steps

    assert (task.id, task.title, task.language, task.difficulty, task.keywords) == ("plain", "Make it work", "", "", ())
    assert task.agent_timeout_s == step.agent_timeout_s == 3600
    assert task.harbor.schema_version == "1.0"
    assert task.harbor.container.image.context == "environment"
    assert task.harbor.container.image.build_timeout_s == 600
    assert task.harbor.container.network == Network(mode="public")
    assert (step.name, step.tests, step.script, step.solution, step.workdir_upload) == ("", ("tests",), "test.sh", "", "")
    assert step.verifier.timeout_s == 600
    assert step.verifier.separate is None
    assert step.artifacts == (Artifact(source="/logs/artifacts"),)
    assert (task.harbor.carry, task.harbor.assurance) == ((), "compat")


def test_a_task_of_cline_bench_loads_as_it_lies_there(tmp_path: Path) -> None:
    files = {
        "environment/docker-compose.yaml": CLINE_COMPOSE,
        "solution/solve.sh": "true\n",
        "README.md": "# The answer is 42\n",
        "environment/README.md": "secret\n",
        ".DS_Store": "\0\1",
        "environment/.DS_Store": "\0\1",
    }
    task = plain(tmp_path, CLINE_TOML, files)
    container, (step,) = task.harbor.container, task.harbor.steps

    assert (task.title, task.language, task.difficulty) == ("Make it work", "software_engineering", "medium")
    assert task.keywords == ("python", "real-world-task")
    assert (task.agent_timeout_s, step.verifier.timeout_s, container.image.build_timeout_s) == (900, 1800, 700)
    assert (task.limits.cpus, task.limits.memory_mb, task.limits.storage_mb) == (1, 2048, 10240)
    assert container.limits == task.limits
    assert container.image.platform == "linux/amd64"
    assert container.env == {"TEST_DIR": "/tests"}
    assert container.service.folders == ("/logs/verifier", "/logs/agent")
    assert container.service.command == ("sh", "-c", "sleep infinity")
    assert container.compose == ""
    assert step.solution == "solution"
    assert "42" not in task.instruction


EVERYTHING = """\
schema_version = "1.4"
source = "somewhere"
artifacts = ["/app/out", {source = "/app/log", destination = "log", exclude = ["*.tmp"], service = "main"}]
[task]
name = "org/all"
version = "3"
description = "What it is\\nand more"
authors = [{name = "A"}]
keywords = ["one"]
[metadata]
language = "go"
category = "other"
anything = {goes = [1, 2]}
[agent]
timeout_sec = 5
user = 1000
network_mode = "no-network"
[verifier]
timeout_sec = 6.5
user = "root"
env = {TOKEN = "${TOKEN}"}
network_mode = "allowlist"
allowed_hosts = ["Example.ORG.", "*.example.org", "10.0.0.1", "10.0.0.0/8", "2001:DB8:0::1"]
collect = [{command = "dump", timeout_sec = 7, user = "db"}]
[environment]
build_timeout_sec = 8
docker_image = "registry.example.org/a/b:1"
os = "Linux"
cpus = 1.5
memory_mb = 512
memory = "512M"
storage = "1G"
gpus = 0
mcp_servers = []
env = {MODE = "${MODE:-fast}"}
workdir = "/app"
network_mode = "public"
[environment.healthcheck]
command = "true"
interval_sec = 1
timeout_sec = 2
start_period_sec = 3
start_interval_sec = 4
retries = 5
[solution]
env = {A = "b"}
[metadata.seatrial.verifier]
kind = "harbor"
carry = ["/var/lib/db", "/home/user"]
assurance = "in-place"
"""


def test_every_field_is_honoured(tmp_path: Path) -> None:
    task = plain(tmp_path, EVERYTHING, {"environment/Dockerfile": None})
    said, (step,), container = task.harbor, task.harbor.steps, task.harbor.container

    assert (task.title, task.language, task.keywords, said.schema_version) == ("What it is", "go", ("one",), "1.4")
    assert (step.agent_timeout_s, step.user, step.network) == (5, "1000", Network(mode="no-network"))
    assert (step.verifier.timeout_s, step.verifier.user, step.verifier.env) == (6.5, "root", {"TOKEN": "${TOKEN}"})
    assert step.verifier.network == Network(
        mode="allowlist", allowed_hosts=("example.org", "*.example.org", "10.0.0.1", "10.0.0.0/8", "2001:db8::1")
    )
    assert [(one.command, one.timeout_s, one.user) for one in step.verifier.collect] == [("dump", 7, "db")]
    assert container.image.docker_image == "registry.example.org/a/b:1"
    assert (container.limits.cpus, container.limits.memory_mb, container.limits.storage_mb) == (1.5, 512, 1024)
    assert (container.env, container.workdir) == ({"MODE": "${MODE:-fast}"}, "/app")
    assert container.healthcheck == Healthcheck(
        command="true", interval_s=1, timeout_s=2, start_period_s=3, start_interval_s=4, retries=5
    )
    assert said.solution_env == {"A": "b"}
    assert [artifact.source for artifact in step.artifacts] == ["/logs/artifacts", "/app/out", "/app/log"]
    assert step.artifacts[2] == Artifact(source="/app/log", destination="log", exclude=("*.tmp",))
    assert said.carry == (PurePosixPath("/var/lib/db"), PurePosixPath("/home/user"))
    assert said.assurance == "in-place"


@pytest.mark.parametrize(
    ("table", "mode"),
    [
        ("allow_internet = false", "no-network"),
        ("allow_internet = true", "public"),
        ('network_mode = "no-network"', "no-network"),
        ('network_mode = "public"\nallow_internet = false', "public"),
        ("", "public"),
    ],
)
def test_the_old_word_for_the_network_counts_where_the_new_one_is_missing(tmp_path: Path, table: str, mode: str) -> None:
    assert facts(tmp_path, f"[environment]\n{table}").container.network.mode == mode


def test_declaring_the_artifacts_folder_replaces_the_implicit_entry(tmp_path: Path) -> None:
    said = facts(tmp_path, 'artifacts = ["/a", {source = "/logs/artifacts/", exclude = ["x"]}]')

    assert [artifact.source for artifact in said.steps[0].artifacts] == ["/a", "/logs/artifacts/"]


SPELLINGS = {
    "no final newline": "[agent]\ntimeout_sec = 7",
    "CRLF": "[agent]\r\ntimeout_sec = 7\r\n",
    "BOM": "\ufeff[agent]\ntimeout_sec = 7\n",
    "both versions": 'version = "1.0"\nschema_version = "1.3"\n[agent]\ntimeout_sec = 7',
    "a number as version": "version = 1.0\n[agent]\ntimeout_sec = 7",
}


@pytest.mark.parametrize("toml", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_odd_files_are_read_with_patience(tmp_path: Path, toml: str) -> None:
    assert plain(tmp_path, toml).agent_timeout_s == 7


def test_an_instruction_has_plain_line_ends(tmp_path: Path) -> None:
    assert plain(tmp_path, files={"instruction.md": "\ufeffone\r\ntwo\r\n"}).instruction == "one\ntwo\n"


@pytest.mark.parametrize(
    ("toml", "instruction", "title"),
    [
        ('[task]\ndescription = "\\nD\\nE"\n[metadata]\ntitle = "T"', "# H", "D"),
        ('[metadata]\ntitle = "T"', "# H", "T"),
        ("", "```sh\n# no heading\n```\n\n## The `heading` ##\n# Later", "The `heading`"),
        ("", "#!no\n#hash\nNothing", "plain"),
        ("[metadata]\ntitle = 3\ntags = 5\ndifficulty = []\nlanguage = {}", "text", "plain"),
    ],
)
def test_the_title_is_the_first_that_there_is(tmp_path: Path, toml: str, instruction: str, title: str) -> None:
    assert plain(tmp_path, toml, {"instruction.md": instruction}).title == title


def test_a_task_with_our_tables_and_harbors_files_is_judged_by_pytest(tmp_path: Path) -> None:
    task = load_catalog().find("h11-chunked-body")
    toml = (task.folder / "task.toml").read_text()
    files: dict[str, str | None] = {
        path.relative_to(task.folder).as_posix(): path.read_text() for path in task.folder.rglob("*") if path.is_file()
    }

    again = load_task(harbor_folder(tmp_path / "h11", {**files, "task.toml": toml, "solution/solve.sh": "true\n"}))

    assert type(again) is type(task)


@pytest.mark.parametrize("name", ["UPPER_case.Task-1", "a", "9" * 80])
def test_an_id_may_have_upper_case_and_underscores(tmp_path: Path, name: str) -> None:
    load_task(harbor_folder(tmp_path / name))

    assert load_catalog([tmp_path]).find(name).id == name


STEPS = """\
multi_step_reward_strategy = "final"
artifacts = ["/all"]
[agent]
timeout_sec = 10
user = "agent"
network_mode = "no-network"
[verifier]
timeout_sec = 20
env = {A = "task", B = "task"}
collect = [{command = "one"}]
[[steps]]
name = "first"
min_reward = 0.5
artifacts = ["/mine"]
healthcheck = {command = "true"}
[steps.agent]
timeout_sec = 11
user = "other"
network_mode = "public"
[steps.verifier]
timeout_sec = 21
user = "root"
env = {B = "step"}
network_mode = "no-network"
collect = [{command = "two"}]
[[steps]]
name = "second"
min_reward = {reward = 1, speed = 0.25}
"""
STEP_FILES = {
    "instruction.md": None,
    "steps/first/instruction.md": "First.\n",
    "steps/first/tests/test.sh": "true\n",
    "steps/first/solution/solve.sh": "true\n",
    "steps/first/workdir/data.txt": "x\n",
    "steps/second/instruction.md": "Second.\n",
    "solution/solve.sh": "true\n",
}


def test_a_step_overrides_what_the_task_says(tmp_path: Path) -> None:
    task = plain(tmp_path, STEPS, STEP_FILES)
    first, _ = task.harbor.steps

    assert (task.instruction, task.agent_timeout_s, task.harbor.reward_strategy) == ("First.\n", 11, "final")
    assert (first.name, first.instruction, first.agent_timeout_s, first.user) == ("first", "First.\n", 11, "other")
    assert first.network == Network(mode="public")
    assert (first.verifier.timeout_s, first.verifier.user, first.verifier.env) == (21, "root", {"A": "task", "B": "step"})
    assert first.verifier.network == Network(mode="no-network")
    assert [one.command for one in first.verifier.collect] == ["one", "two"]
    assert first.tests == ("tests", "steps/first/tests")
    assert (first.solution, first.workdir_upload) == ("steps/first/solution", "steps/first/workdir")
    assert (first.min_reward, first.healthcheck) == ({"reward": 0.5}, Healthcheck(command="true"))
    assert [artifact.source for artifact in first.artifacts] == ["/logs/artifacts", "/all", "/mine"]


def test_a_step_that_says_nothing_has_what_the_task_says(tmp_path: Path) -> None:
    _, second = facts(tmp_path, STEPS, STEP_FILES).steps

    assert (second.agent_timeout_s, second.user, second.network) == (10, "agent", Network(mode="no-network"))
    assert (second.verifier.timeout_s, second.verifier.env) == (20, {"A": "task", "B": "task"})
    assert (second.tests, second.script, second.solution, second.workdir_upload) == (("tests",), "test.sh", "solution", "")
    assert second.min_reward == {"reward": 1, "speed": 0.25}


def test_a_step_can_bring_the_only_test_script(tmp_path: Path) -> None:
    toml = '[[steps]]\nname = "first"'
    files = {**STEP_FILES, "tests/test.sh": None, "tests/shared.py": "x = 1\n"}

    assert facts(tmp_path, toml, files).steps[0].tests == ("tests", "steps/first/tests")


SEPARATE = '[verifier]\nenvironment_mode = "separate"\n'
WITH_ENVIRONMENT = "[verifier.environment]\ncpus = 4\n"


def test_a_separate_verifier_without_its_own_image_has_a_copy_of_the_environment(tmp_path: Path) -> None:
    said = facts(tmp_path, SEPARATE + "[environment]\ncpus = 3")
    verifier = said.steps[0].verifier

    assert verifier.separate == said.container
    assert not verifier.tests_in_image
    assert said.steps[0].tests == ("tests",)


def test_an_environment_of_the_verifiers_own_means_separate(tmp_path: Path) -> None:
    said = facts(tmp_path, WITH_ENVIRONMENT + '[environment]\ndocker_image = "x"\ncpus = 3')
    separate = said.steps[0].verifier.separate

    assert separate is not None
    assert (separate.image.docker_image, separate.limits.cpus) == ("x", 4)
    assert not said.steps[0].verifier.tests_in_image


def test_a_verifier_image_brings_the_tests(tmp_path: Path) -> None:
    said = facts(tmp_path, WITH_ENVIRONMENT + 'docker_image = "judge"', {"tests/test.sh": None})
    verifier = said.steps[0].verifier

    assert verifier.separate is not None
    assert (verifier.separate.image.docker_image, verifier.separate.limits.cpus) == ("judge", 4)
    assert verifier.tests_in_image
    assert said.steps[0].tests == ()


def test_a_dockerfile_beside_the_tests_is_the_verifiers(tmp_path: Path) -> None:
    said = facts(tmp_path, SEPARATE + '[environment]\ndocker_image = "x"', {"tests/Dockerfile": "FROM y\n"})
    verifier = said.steps[0].verifier

    assert verifier.separate is not None
    assert (verifier.separate.image.docker_image, verifier.separate.image.context) == ("", "tests")
    assert verifier.tests_in_image


def test_a_step_can_have_a_verifier_of_its_own(tmp_path: Path) -> None:
    toml = '[[steps]]\nname = "first"\n[steps.verifier.environment]\ndocker_image = "judge"\n[[steps]]\nname = "second"\n'
    first, second = facts(tmp_path, toml, STEP_FILES).steps

    assert first.verifier.tests_in_image
    assert first.verifier.separate is not None
    assert second.verifier.separate is None


ENVIRONMENT = "[environment]\n"
OURS = "[metadata.seatrial.verifier]\n"
REFUSED = {
    "syntax": ("[agent\n", "not valid TOML: .*line 1"),
    "unknown root key": ("stepss = []", "stepss is not a key we know. Did you mean 'steps'"),
    "unknown table": ("[simulated_user]\nmodel = 'x'", "simulated_user is not a key we know. Remove it"),
    "unknown key": ("[environment]\nmemry_mb = 5", "environment.memry_mb is not a key we know. Did you mean 'memory_mb'"),
    "unknown key of a step": ('[[steps]]\nname = "first"\nreward = 1', "steps.0.reward is not a key"),
    "version": ('version = "2.0"', "version is '2.0'; only 1.x"),
    "windows": (ENVIRONMENT + 'os = "windows"', "environment.os is 'windows'; only 'linux'"),
    "gpus": (ENVIRONMENT + "gpus = 1", "environment.gpus is not supported: there are no GPUs"),
    "gpu_types": (ENVIRONMENT + 'gpu_types = ["T4"]', "environment.gpu_types is not supported"),
    "tpu": (ENVIRONMENT + 'tpu = {type = "v4", topology = "2x2"}', "environment.tpu is not supported"),
    "mcp_servers": (ENVIRONMENT + 'mcp_servers = [{name = "x"}]', "environment.mcp_servers is not supported"),
    "skills_dir": (ENVIRONMENT + 'skills_dir = "/skills"', "environment.skills_dir is not supported"),
    "memory": (ENVIRONMENT + 'memory = "lots"', "environment.memory must be a size such as '4G'"),
    "memory as a number": (ENVIRONMENT + "memory = 4", "environment.memory must be a size"),
    "two memories": (ENVIRONMENT + 'memory = "4G"\nmemory_mb = 5', "environment says memory = 4096 MiB and memory_mb = 5"),
    "no memory": (ENVIRONMENT + "memory_mb = 1", "environment.memory_mb must be greater than or equal to 64"),
    "cpus": (ENVIRONMENT + "cpus = 0", "environment.cpus must be greater than 0"),
    "workdir": (ENVIRONMENT + 'workdir = "app"', "environment.workdir must"),
    "docker_image": (ENVIRONMENT + 'docker_image = "-v"', "environment.docker_image must"),
    "env": (ENVIRONMENT + "env = {A = 1}", "environment.env.A must be a valid string|environment.env.A must be a string"),
    "healthcheck": (ENVIRONMENT + "healthcheck = {retries = 1}", "environment.healthcheck.command is missing"),
    "network": (ENVIRONMENT + 'network_mode = "host"', "environment.network_mode must be"),
    "hosts without a list": (
        ENVIRONMENT + 'allowed_hosts = ["a"]',
        'environment has allowed_hosts, which needs network_mode = "allow',
    ),
    "a list without hosts": ('[agent]\nnetwork_mode = "allowlist"', "agent has network_mode = .allowlist. without allowed_hosts"),
    "collect": ('[verifier]\ncollect = [{command = "x", service = "db"}]', "verifier.collect.0.service names the service 'db'"),
    "artifact service": ('artifacts = [{source = "/x", service = "db"}]', "artifacts.0.service names the service 'db'"),
    "artifact source": ('artifacts = ["/a/../b"]', "artifacts.0.source must be a path in the container"),
    "artifact destination": ('artifacts = [{source = "/x", destination = "../x"}]', "artifacts.0.destination must be a relative"),
    "manifest": ('artifacts = [{source = "/x", destination = "manifest.json"}]', "artifacts.0.destination must be a relative"),
    "shared": (
        '[verifier]\nenvironment_mode = "shared"\nenvironment = {}',
        "verifier has environment_mode = .shared. and a table",
    ),
    "user": ('[agent]\nuser = "a b"', "agent.user must"),
    "reward strategy": ('multi_step_reward_strategy = "max"', "multi_step_reward_strategy must be 'mean' or 'final'"),
    "min_reward": ('[[steps]]\nname = "first"\nmin_reward = "high"', "steps.0.min_reward must be a"),
    "step name": ('[[steps]]\nname = "../first"', "steps.0.name must be the plain name of a folder"),
    "step twice": ('[[steps]]\nname = "first"\n[[steps]]\nname = "First"', "steps has the name 'first' twice"),
    "ours": (OURS + 'kind = "other"', "metadata.seatrial.verifier.kind must be 'harbor'"),
    "ours misspelled": (OURS + 'cary = ["/x"]', "metadata.seatrial.verifier.cary is not a key we know. Did you mean 'carry'"),
    "snapshot misspelled": (
        '[metadata.seatrial.snapshott]\nkind = "pypi"',
        "seatrial.snapshott is not a key.*Did you mean 'snapshot'",
    ),
    "relative carry": (OURS + 'carry = ["x"]', "verifier.carry must hold absolute paths"),
    "climbing carry": (OURS + 'carry = ["/a/../tests"]', "verifier.carry must be"),
    "carried tests": (OURS + 'carry = ["/tests/x"]', "verifier.carry must not hold '/tests/x'"),
    "everything carried": (OURS + 'carry = ["//"]', "verifier.carry must not hold '//'"),
    "assurance": (OURS + 'assurance = "hardened"', "verifier.assurance must be 'compat' or 'in-place'"),
    "in-place and separate": (OURS + 'assurance = "in-place"\n' + SEPARATE, "but the verifier is separate"),
}


@pytest.mark.parametrize(("toml", "answer"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_honoured_is_refused_with_file_field_and_remedy(tmp_path: Path, toml: str, answer: str) -> None:
    with pytest.raises(TaskError, match=answer) as refusal:
        plain(tmp_path, toml, {**STEP_FILES, "instruction.md": "Do.\n"})

    text = str(refusal.value)
    assert "task.toml" in text
    assert "http" not in text and "pydantic" not in text and "Input should" not in text and "Value error" not in text


HOSTS = [
    "http://a.org",
    "a.org:443",
    "a.org/path",
    "*.10.0.0.1",
    "*",
    "a*.org",
    "a..org",
    "10.0.0.1/8",
    "1.2.3.400",
    "[::1]",
    "-a",
    "",
]


@pytest.mark.parametrize("entry", HOSTS)
def test_what_is_no_host_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(TaskError, match=r"agent\.allowed_hosts must be host names"):
        plain(tmp_path, f'[agent]\nnetwork_mode = "allowlist"\nallowed_hosts = ["a.org", "{entry}"]')


MISSING = {
    "no image": ({"environment/Dockerfile": None}, "environment says nothing of an image: there is no Dockerfile"),
    "no tests": ({"tests/test.sh": None}, r"tests/test\.sh is missing"),
    "no instruction": ({"instruction.md": None}, r"instruction\.md is missing"),
    "prior context": ({"trajectory.json": "{}"}, r"trajectory\.json holds what an agent did before"),
    "two compose files": (
        {"environment/docker-compose.yaml": "a: 1", "environment/docker-compose.yml": "a: 1"},
        "docker-compose.yaml and docker-compose.yml. Remove one",
    ),
}


@pytest.mark.parametrize(("files", "answer"), MISSING.values(), ids=MISSING.keys())
def test_a_missing_or_unusable_file_is_told(tmp_path: Path, files: Mapping[str, str | None], answer: str) -> None:
    with pytest.raises(TaskError, match=answer):
        plain(tmp_path, files=files)


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({"steps/second/instruction.md": None}, r"steps/second/instruction\.md is missing"),
        ({"tests/test.sh": None}, r"tests/test\.sh or .*steps/second/tests/test\.sh is missing"),
        ({"steps/first/workdir/setup.sh": "true\n"}, r"workdir/setup\.sh would have to run before"),
        ({"steps/second/trajectory.json": "{}"}, r"second/trajectory\.json holds"),
    ],
)
def test_a_missing_or_unusable_file_of_a_step_is_told(tmp_path: Path, files: Mapping[str, str | None], answer: str) -> None:
    with pytest.raises(TaskError, match=answer):
        plain(tmp_path, STEPS, {**STEP_FILES, **files})
