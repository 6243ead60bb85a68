"""Commands: run_command, command_output, stop_command."""

import re

import anyio
import pytest
from desk import Desk

pytestmark = pytest.mark.anyio


async def test_a_failing_command_is_an_answer(desk: Desk) -> None:
    answer = await desk.good("run_command", command="echo before; exit 3")

    assert re.fullmatch(r"exit code 3 \(c\d+, \d+\.\d s\)\nbefore\n", answer)


async def test_a_command_that_prints_nothing_says_so(desk: Desk) -> None:
    assert await desk.run("true") == "(no output)"


async def test_a_command_killed_by_a_signal_names_it(desk: Desk) -> None:
    answer = await desk.good("run_command", command="kill -TERM $$")

    assert answer.startswith("exit code -15 (killed by signal 15)")


async def test_both_streams_are_shown_in_the_order_of_their_writing(desk: Desk) -> None:
    lines = "".join(f"out {n}\nerr {n}\n" for n in range(200))

    assert await desk.run("for n in $(seq 0 199); do echo out $n; echo err $n >&2; done") == lines


async def test_every_command_starts_in_the_workspace_with_a_fresh_shell(desk: Desk) -> None:
    await desk.run("cd /tmp; export LOST=1; alias ll=ls; set -e")

    assert await desk.run('pwd; echo "[$LOST]"; false; echo on') == "/workspace\n[]\non\n"


async def test_a_command_runs_where_it_is_told_to(desk: Desk) -> None:
    await desk.run("mkdir -p 'some folder'")

    assert await desk.run("pwd", cwd="some folder") == "/workspace/some folder\n"
    assert await desk.run("pwd", cwd="/tmp") == "/tmp\n"
    assert await desk.run("pwd", cwd="..") == "/\n"


async def test_a_command_has_an_environment_of_its_own_and_no_input(desk: Desk) -> None:
    names = set((await desk.run("env | sed 's/=.*//'; cat")).split())

    assert names - {"_", "OLDPWD"} == {
        "HOME", "LANG", "LOGNAME", "PAGER", "GIT_PAGER", "PATH", "PWD", "SHELL", "SHLVL", "TERM", "USER", "VIRTUAL_ENV",
        "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL",
    }  # fmt: skip
    assert await desk.run("echo $HOME $USER; touch ~/mine && echo ok") == "/home/agent agent\nok\n"


async def test_the_programs_of_the_environment_come_first(desk: Desk) -> None:
    assert await desk.run("which python; python -c 'import pytest, h11; print(h11.__version__)'") == (
        "/opt/env/bin/python\n0.15.0\n"
    )


async def test_the_repository_has_one_commit_and_no_changes(desk: Desk) -> None:
    assert await desk.run("git rev-list --count --all; git status --short -uno; git remote") == "1\n"


async def test_a_command_that_is_not_over_goes_on_and_can_be_waited_for(desk: Desk) -> None:
    command_id = await desk.start("echo started; until [ -e go ]; do sleep 0.02; done; echo done; exit 4")

    await desk.good("save_file", path="go", content="")
    answer = await desk.good("command_output", command_id=command_id)

    assert answer.startswith(f"exit code 4 ({command_id}, ")
    assert answer.endswith("started\ndone\n")
    assert await desk.good("command_output", command_id=command_id, wait_s=0) == answer


async def test_a_running_command_shows_what_it_printed_so_far(desk: Desk) -> None:
    command_id = await desk.start("printf 'partial \\342\\202'; touch printed; sleep 1000")
    await desk.run("until [ -e printed ]; do sleep 0.02; done")

    so_far = await desk.good("command_output", command_id=command_id, wait_s=0)
    page = await desk.good("command_output", command_id=command_id, start=4, wait_s=0)
    beyond = await desk.good("command_output", command_id=command_id, start=10, wait_s=0)

    assert f'command_output(command_id="{command_id}") waits for its end' in so_far
    assert "\npartial " in so_far
    assert page.partition("\n")[2].startswith("ial ")
    assert beyond.startswith(f"running: {command_id}")
    assert "stopped by stop_command" in await desk.good("stop_command", command_id=command_id)


async def test_a_command_is_killed_when_its_time_is_up_with_all_it_started(desk: Desk) -> None:
    answer = await desk.good("run_command", command="sleep 1001 & sleep 1001", timeout_s=0.3)

    assert "was killed: not over after its timeout_s of " in answer
    assert await desk.run("pgrep -f 'sleep 100[1]'") == "(no output)"


async def test_children_left_in_the_background_live_on(desk: Desk) -> None:
    pid = (await desk.run("sleep 1002 > /dev/null 2>&1 & echo $!")).strip()
    holding = (await desk.run("sleep 1003 & echo $!")).strip()  # this one keeps the command's output open

    assert await desk.run(f"kill -0 {pid} {holding} && echo alive") == "alive\n"
    await desk.run(f"kill {pid} {holding}")


async def test_a_background_child_may_go_on_printing_without_being_killed_for_it(desk: Desk) -> None:
    await desk.run("(for n in $(seq 300); do echo $n; echo $n >&2; done; touch printed-on; sleep 1004) & true")

    assert (
        await desk.run("until [ -e printed-on ]; do sleep 0.02; done; pgrep -f 'sleep 100[4]' > /dev/null && echo alive")
        == "alive\n"
    )
    await desk.run("pkill -f 'sleep 100[4]'")


async def test_stopping_a_command_takes_its_daemon_with_it_and_no_other_command(desk: Desk) -> None:
    other = await desk.start("sleep 1005")
    command_id = await desk.start("(setsid sh -c 'setsid sleep 1006 & echo $! > daemon; sleep 1007' &); sleep 1008")
    await desk.run("until [ -s daemon ]; do sleep 0.02; done")

    answer = await desk.good("stop_command", command_id=command_id)

    assert answer.startswith(f"{command_id} was killed: stopped by stop_command.")
    assert await desk.run("pgrep -f 'sleep 100[678]'") == "(no output)"
    assert (await desk.good("command_output", command_id=other, wait_s=0)).startswith("running")
    assert "was killed" in await desk.good("stop_command", command_id=other)


async def test_stopping_what_is_over_ends_what_was_left_running_and_no_running_command(desk: Desk) -> None:
    other = await desk.start("sleep 1011")
    answer = await desk.good("run_command", command="(setsid sleep 1012 &); sleep 1012 > /dev/null & echo over")
    command_id = re.search(r"\((c\d+),", answer)[1]  # type: ignore[index]

    stopped = await desk.good("stop_command", command_id=command_id)

    assert stopped == f"{command_id} was over already; what ended commands left running was killed.\n{answer}"
    assert await desk.run("pgrep -f 'sleep 101[2]'") == "(no output)"
    assert "was killed" in await desk.good("stop_command", command_id=other)


async def test_sixteen_commands_run_at_once_and_the_seventeenth_is_refused(desk: Desk) -> None:
    """Each of the sixteen waits for all of them: run one after the other they would never end."""
    meet = "mkdir -p met; touch met/{n}; until [ $(ls met | wc -l) = 17 ]; do sleep 0.02; done; echo {n}"
    ids: list[str] = []

    async def start(n: int) -> None:
        ids.append(await desk.start(meet.format(n=n)))

    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(start, n)
    said = await desk.bad("run_command", command="true")
    await desk.good("save_file", path="met/last", content="")
    ends = [await desk.good("command_output", command_id=command_id) for command_id in ids]

    assert "16 commands run already." in said
    assert sorted(int(end.split("\n")[1]) for end in ends) == list(range(16))
    assert len(set(ids)) == 16


async def test_sixteen_calls_of_different_tools_at_once_are_all_answered(desk: Desk) -> None:
    async def work(n: int) -> None:
        await desk.good("save_file", path=f"parallel/{n}", content=f"{n}\n" * 5_000)
        assert await desk.run(f"sort -u parallel/{n}") == f"{n}\n"
        assert (await desk.good("view_file", path=f"parallel/{n}", max_lines=1)).startswith(f"1\t{n}\n[lines 1-1 of 5,000")
        assert await desk.good("search_files", pattern=f"^{n}$", path=f"parallel/{n}", glob="none") == (
            f"No match for '^{n}$' in parallel/{n}."
        )

    async with anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(work, n)


async def test_a_caller_that_gives_up_leaves_the_workspace_in_order(desk: Desk) -> None:
    """Requests are cancelled while a large file is on its way into the sandbox and while commands run."""
    for wait_s in (0.001, 0.01, 0.03, 0.1):
        with anyio.move_on_after(wait_s):
            await desk.call("save_file", path="large", content="x" * 4_000_000)
        with anyio.move_on_after(wait_s):
            await desk.call("run_command", command="sleep 1009")

    assert await desk.works()
    await desk.run("pkill -f 'sleep 100[9]'; true")


async def test_a_long_script_is_run_from_a_file(desk: Desk) -> None:
    said = await desk.bad("run_command", command="#" * 120_001)
    await desk.good("save_file", path="long.sh", content=f"{'#' * 120_001}\necho done\n")

    assert "Save a script with save_file" in said
    assert await desk.run("bash long.sh") == "done\n"
    assert await desk.run("echo " + "x" * 100_000 + " | wc -c") == "100001\n"
