"""The steps of a plain Harbor task: what the task says, and what each ``[[steps]]`` says instead."""

from collections.abc import Iterable

from tasks.container import Artifact, Collect, ContainerFacts, Network, Step, VerifierSpec
from tasks.errors import TaskError
from tasks.facts import DEFAULT_AGENT_TIMEOUT_S
from tasks.folders import Folder
from tasks.harbor_container import container_facts, healthcheck_facts
from tasks.harbor_file import AgentTable, ArtifactTable, EnvironmentTable, HarborFile, StepTable, VerifierTable

PUBLISHED = "/logs/artifacts"
"""What an agent puts here is kept without being asked for."""


def steps_of(files: Folder, file: HarborFile, container: ContainerFacts) -> tuple[Step, ...]:
    """Return the steps in order, the only one where there are no ``[[steps]]``; ``container`` is the agent's.

    Raises:
        TaskError: a file of a step is missing, or something in its folder cannot be used.
    """
    if not file.steps:
        return (_step(files, file, None, container),)
    return tuple(_step(files, file, step, container) for step in file.steps)


def _step(files: Folder, file: HarborFile, step: StepTable | None, container: ContainerFacts) -> Step:
    folder = f"steps/{step.name}/" if step else ""
    _refuse_unusable(files, folder)
    agents = (step.agent, file.agent) if step else (file.agent,)
    verifier = _verifier(files, file, step, container)
    solution = next((path for path in dict.fromkeys((f"{folder}solution", "solution")) if f"{path}/solve.sh" in files.files), "")
    return Step(
        name=step.name if step else "",
        instruction=files.text(f"{folder}instruction.md").replace("\r\n", "\n"),
        agent_timeout_s=next((agent.timeout_sec for agent in agents if agent.timeout_sec is not None), DEFAULT_AGENT_TIMEOUT_S),
        user=_user(agents),
        network=_network(agents),
        verifier=verifier,
        tests=() if verifier.tests_in_image else _tests(files, folder),
        solution=solution,
        workdir_upload=f"{folder}workdir" if step and files.has_folder(f"{folder}workdir") else "",
        min_reward=step.min_reward if step else {},
        healthcheck=healthcheck_facts(step.healthcheck) if step else None,
        artifacts=_artifacts((*file.artifacts, *(step.artifacts if step else ()))),
    )


def _refuse_unusable(files: Folder, folder: str) -> None:
    """Refuse what Harbor would act on and we cannot."""
    for path, why in (
        (f"{folder}trajectory.json", "holds what an agent did before, which cannot be given to a client"),
        (f"{folder}workdir/setup.sh" if folder else "", "would have to run before the step, which is not done here"),
    ):
        if path in files.files:
            raise TaskError(f"{files.root / path} {why}. Remove it if the task can do without.")


def _tests(files: Folder, folder: str) -> tuple[str, ...]:
    found = tuple(path for path in dict.fromkeys(("tests", f"{folder}tests")) if files.has_folder(path))
    if not any(f"{path}/test.sh" in files.files for path in found):
        or_else = f" or {files.root / folder / 'tests/test.sh'}" if folder else ""
        raise TaskError(f"{files.root / 'tests/test.sh'}{or_else} is missing. It judges the task: add it.")
    return found


def _verifier(files: Folder, file: HarborFile, step: StepTable | None, container: ContainerFacts) -> VerifierSpec:
    tables = (step.verifier, file.verifier) if step else (file.verifier,)
    timed = next((table for table in tables if "timeout_sec" in table.model_fields_set), file.verifier)
    separate, tests_in_image = None, False
    if next((table.mode for table in tables if table.mode), "shared") == "separate":
        separate, tests_in_image = _separate(files, file, step, container)
    collect = (*file.verifier.collect, *(step.verifier.collect if step else ()))
    return VerifierSpec(
        timeout_s=timed.timeout_sec,
        env={**file.verifier.env, **(step.verifier.env if step else {})},
        user=_user(tables),
        network=_network(tables),
        separate=separate,
        tests_in_image=tests_in_image,
        collect=tuple(Collect(command=one.command, timeout_s=one.timeout_sec, user=one.user or "") for one in collect),
    )


def _separate(files: Folder, file: HarborFile, step: StepTable | None, container: ContainerFacts) -> tuple[ContainerFacts, bool]:
    """Return the verifier's own container, and whether its image brings the tests: one made for the tests does."""
    sources: list[tuple[EnvironmentTable | None, str, str]] = [(file.verifier.environment, "tests", "verifier.environment")]
    if step:
        field = f"steps.{file.steps.index(step)}.verifier.environment"
        sources.insert(0, (step.verifier.environment, f"steps/{step.name}/tests", field))
    table, field = next(((table, field) for table, _, field in sources if table is not None), (file.environment, "environment"))
    for own, folder, _ in sources:
        if own is not None and own.docker_image:
            image: str | None = own.docker_image
        elif {f"{folder}/Dockerfile", f"{folder}/docker-compose.yaml", f"{folder}/docker-compose.yml"} & files.files.keys():
            image = None
        else:
            continue
        return container_facts(files, table.model_copy(update={"docker_image": image}), folder, field), True
    if table is file.environment:
        return container, False
    return container_facts(
        files, table.model_copy(update={"docker_image": file.environment.docker_image}), "environment", field
    ), False


def _user(tables: Iterable[AgentTable | VerifierTable]) -> str:
    return next((table.user for table in tables if table.user is not None), "")


def _network(tables: Iterable[AgentTable | VerifierTable]) -> Network | None:
    for table in tables:
        if table.network_mode is not None:
            return Network(mode=table.network_mode, allowed_hosts=table.allowed_hosts or ())
    return None


def _artifacts(tables: Iterable[ArtifactTable]) -> tuple[Artifact, ...]:
    """Return them in order, each once, `PUBLISHED` first unless somebody declares it."""
    declared = [Artifact(source=table.source, destination=table.destination, exclude=table.exclude) for table in tables]
    if not any(artifact.source.rstrip("/") == PUBLISHED for artifact in declared):
        declared.insert(0, Artifact(source=PUBLISHED))
    return tuple(artifact for index, artifact in enumerate(declared) if artifact not in declared[:index])
