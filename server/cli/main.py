"""Every command with its options, and the one place where an expected failure becomes a line and an exit code.

What a command needs is imported when it runs: `seatrial --help` loads neither MCP nor a database.
"""

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from tasks.errors import SeaTrialError, UnknownTaskError

Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Task ids; none means all.")]

Folders = Annotated[
    list[str] | None,
    typer.Option("--tasks", metavar="FOLDER", help="Tasks in place of those in SEATRIAL_TASKS; may be repeated."),
]

app = typer.Typer(
    name="seatrial",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmark any coding agent that speaks MCP, on real engineering tasks.",
)
task_commands = typer.Typer(no_args_is_help=True, help="List, show and build tasks; add your own.")
app.add_typer(task_commands, name="tasks")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 1 an expected failure, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the output any more.
    """
    if sys.stdout is None:  # `>&-`: what is opened next would take its place
        sys.stderr.write("seatrial: The output is closed. Send it to a file or to /dev/null.\n")
        return 1
    try:
        app(args=list(arguments), prog_name="seatrial")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes it a 1
            return _unread()
        return _flushed(end.code if isinstance(end.code, int) else int(end.code is not None))
    except UnknownTaskError as error:
        return _failed(str(error).replace("Call list_tasks", "Run `seatrial tasks list`"))
    except SeaTrialError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _unwritten(error)
    return _flushed(0)


def _failed(text: str) -> int:
    sys.stderr.write(f"seatrial: {text}\n")
    return _flushed(1)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    return code


def _unwritten(error: OSError) -> int:
    """Return the exit code where nothing more can be written; any other error is a bug, and raised again."""
    if isinstance(error, BrokenPipeError):
        return _unread()
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise error
    sys.stderr.write(f"seatrial: Cannot write {error.filename or 'the output'}: {error.strerror}.\n")
    _drop_output()
    return 1


def _unread() -> int:
    _drop_output()
    return 141


def _drop_output() -> None:
    """Let the interpreter's own flush at exit go nowhere: whoever read our output has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seatrial {version('seatrial')}")
        raise typer.Exit


def _client(value: str) -> str:
    from clients.connect import GUIDES

    return _one_of(value, GUIDES)


def _agent(value: str) -> str:
    from clients.scripted import SCRIPTS

    return _one_of(value, SCRIPTS)


def _one_of(value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise typer.BadParameter(f"{value!r} is not known; there are: {', '.join(sorted(known))}.")
    return value


def _backend(value: str) -> str:
    return _one_of(value, ("local", "docker", "auto")) if value else ""


def _printable(value: str) -> str:
    if not value.isprintable():
        raise typer.BadParameter("it holds control characters.")
    return value


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Benchmark any coding agent that speaks MCP, on real engineering tasks."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def serve(context: typer.Context) -> None:
    """Serve MCP over stdio: what your agent's settings start (see: seatrial serve --help)."""
    from server.cli.serve import serve as serve_clients

    raise typer.Exit(serve_clients(context.args))


@task_commands.command("list")
def tasks_list(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]...", help="Every one must occur in the task.")] = None,
    folders: Folders = None,
    as_json: Json = False,
) -> None:
    """List the tasks, and the folders that could not be read."""
    from server.cli.tasks import list_tasks

    raise typer.Exit(list_tasks(" ".join(words or []), as_json=as_json, folders=folders or ()))


@task_commands.command("show")
def tasks_show(task_id: Annotated[str, typer.Argument(metavar="ID")], folders: Folders = None, as_json: Json = False) -> None:
    """Show one task: its instruction, its limits, how it is judged."""
    from server.cli.tasks import show_task

    raise typer.Exit(show_task(task_id, as_json=as_json, folders=folders or ()))


@task_commands.command("build")
def tasks_build(
    task_ids: Ids = None,
    sandbox: Annotated[str, typer.Option("--sandbox", metavar="local|docker|auto", callback=_backend, help="Where.")] = "",
    folders: Folders = None,
    as_json: Json = False,
) -> None:
    """Fetch and set up what tasks need; afterwards they work with the network off."""
    from server.cli.builds import build_tasks

    raise typer.Exit(build_tasks(task_ids or [], sandbox, as_json=as_json, folders=folders or ()))


@task_commands.command("add")
def tasks_add(
    location: Annotated[str, typer.Argument(metavar="PATH|GIT_URL[@REV][:SUBFOLDER]", help="A task, or a folder of tasks.")],
    name: Annotated[str, typer.Option("--name", help="A name for the source; default: the last part of its own.")] = "",
    as_json: Json = False,
) -> None:
    """Add tasks of your own: a folder is used where it is, a repository is fetched and pinned to its commit."""
    from server.cli.sources import add_tasks

    raise typer.Exit(add_tasks(location, name, as_json=as_json))


@task_commands.command("remove")
def tasks_remove(name: Annotated[str, typer.Argument(metavar="NAME", help="A source.")], as_json: Json = False) -> None:
    """Take a source of tasks out again; a folder of yours is left as it is."""
    from server.cli.sources import remove_tasks

    raise typer.Exit(remove_tasks(name, as_json=as_json))


@task_commands.command("update")
def tasks_update(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Sources; none means all.")] = None,
    as_json: Json = False,
) -> None:
    """Look again at sources of tasks, fetching what their revision is now, and say what changed."""
    from server.cli.sources import update_tasks

    raise typer.Exit(update_tasks(names or [], as_json=as_json))


@task_commands.command("sources")
def tasks_sources(as_json: Json = False) -> None:
    """List the sources of tasks that were added."""
    from server.cli.sources import list_sources

    raise typer.Exit(list_sources(as_json=as_json))


@app.command("run")
def run_trials(  # noqa: PLR0913 - an option each
    agent: Annotated[str, typer.Option("--agent", metavar="oracle|nop", callback=_agent, help="The reference agent.")],
    task_ids: Annotated[list[str], typer.Option("--task", metavar="ID", help="A task; may be repeated.")],
    repetitions: Annotated[int, typer.Option("-k", min=1, max=1000, help="Trials of each task.")] = 1,
    concurrency: Annotated[int, typer.Option("-n", min=0, max=256, help="Trials at once; 0: as cores and memory allow.")] = 0,
    sandbox: Annotated[str, typer.Option("--sandbox", metavar="local|docker|auto", callback=_backend, help="Where.")] = "",
    job: Annotated[str, typer.Option("--job", callback=_printable, help="A name for the results; default: the time.")] = "",
    folders: Folders = None,
    as_json: Json = False,
) -> None:
    """Run a reference agent: a real client that starts the real server and uses its tools."""
    from server.cli.runs import Wanted, run_agents

    wanted = Wanted([agent], task_ids, repetitions, concurrency, job, sandbox, folders or ())
    raise typer.Exit(run_agents(wanted, as_json=as_json))


@app.command()
def results(
    job: Annotated[str | None, typer.Argument(help="One job, trial by trial; default: every job, summed up.")] = None,
    as_json: Json = False,
) -> None:
    """Show scores: errors are counted apart, open and sealed trials are never mixed."""
    from server.cli.results import show_results

    raise typer.Exit(show_results(job, as_json=as_json))


@app.command()
def connect(
    client: Annotated[str, typer.Argument(metavar="cline", callback=_client, help="The agent to connect.")],
    show: Annotated[bool, typer.Option("--print", help="Print what to do; no file is touched (the default).")] = True,
    as_json: Json = False,
) -> None:
    """Print how to connect your agent."""
    from server.cli.connect import show_connection

    raise typer.Exit(show_connection(client, as_json=as_json))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can enforce, how, and what to do where it cannot. Exit 1: no local sandbox."""
    from server.cli.doctor import show_findings

    raise typer.Exit(show_findings(as_json=as_json))


@app.command()
def demo(as_json: Json = False) -> None:
    """Build the bundled tasks, then let oracle and nop do each: 1.0 and 0.0, or something is wrong here."""
    from server.cli.demo import run_demo

    raise typer.Exit(run_demo(as_json=as_json))
