"""No answer is longer than clients take, whatever it is about; and what was left out can be had by the call it names."""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import pytest
from desk import MOST, Desk, desk_at
from front_door import connected
from small_tasks import BEFORE, small_task

pytestmark = pytest.mark.anyio

CONTENTS: Mapping[str, str] = {
    "binary": "bytes(range(256)) * 4_000",
    "one line of 5 MB": "b'var a=1;' * 625_000",
    "one word of 5 MB": "b'x' * 5_000_000",
    "not UTF-8": "b'caf\\xe9 \\xff\\xfe\\xc3( \\n' * 50_000",
    "control characters": "bytes(n for n in range(1, 32)) * 20_000",
    "emoji": "'\\U0001f600 \\u2028 \\u65e5\\u672c'.encode() * 50_000",
    "long lines of emoji": "('\\U0001f600' * 3_000 + '\\n').encode() * 50",
    "quotes and backslashes": "b'\\\\\\\"\\\\' * 100_000",
    "only line ends": "b'\\n' * 500_000",
    "old line ends": "b'one\\rtwo\\r' * 50_000",
    "40 MB": "b'a line of the log\\n' * 2_200_000",
}


@pytest.fixture(scope="module")
async def stocked(desk: Desk) -> Desk:
    """A workspace with files of every kind, named by their place in `CONTENTS`."""
    made = "\n".join(f"put({n}, {content})" for n, content in enumerate(CONTENTS.values()))
    await desk.python(f"import os\nos.mkdir('kinds')\ndef put(n, data):\n    open(f'kinds/{{n}}', 'wb').write(data)\n{made}\n")
    return desk


@pytest.mark.parametrize("kind", CONTENTS)
async def test_whatever_a_file_holds_every_tool_answers_within_the_bound(stocked: Desk, kind: str) -> None:
    path = f"kinds/{list(CONTENTS).index(kind)}"

    answers = [
        await stocked.call("view_file", path=path),
        await stocked.call("view_file", path=path, start_line=2, max_lines=2_000),
        await stocked.call("view_file", path=path, start_line=400_000),
        await stocked.call("search_files", pattern=".", path=path),
        await stocked.call("edit_file", path=path, old_text="not in it \U0001f600" * 100, new_text="x"),
        await stocked.call("view_diff", path=path),
        await stocked.call("run_command", command=f"cat {path}"),
        await stocked.call("run_command", command=f"cat {path} >&2; exit 3"),
    ]

    assert not any("of the server's" in answer.text for answer in answers)
    assert answers[4].is_error
    assert "exit code 3" in answers[7].first


async def test_a_whole_output_can_be_paged_through_as_the_answers_say(desk: Desk) -> None:
    assert await desk.everything("seq 1 30000") == "".join(f"{n}\n" for n in range(1, 30_001))


async def test_an_output_of_characters_of_many_bytes_is_not_cut_within_one(desk: Desk) -> None:
    text = await desk.everything("python -c \"print('a\\U0001f600\\u65e5' * 3_000)\"")

    assert text == "a\U0001f600\u65e5" * 3_000 + "\n"


async def test_pages_of_output_that_is_no_text_meet_without_gap_or_overlap(desk: Desk) -> None:
    answer = await desk.good("run_command", command="printf '\\377\\342\\202%.0s' $(seq 9000)")
    command_id, start = re.search(r'command_id="(c\d+)", start=(\d+)', answer).groups()  # type: ignore[union-attr]

    seen = int(start)
    while True:
        page = await desk.good("command_output", command_id=command_id, start=seen)
        found = re.search(r"\[bytes ([\d,]+)-([\d,]+) of 27,000", page)
        if found is None:
            break
        first, seen = (int(number.replace(",", "")) for number in found.groups())
        assert first < seen

    assert page.count("\ufffd") >= (27_000 - seen) // 3 * 2


async def test_of_100_mb_of_output_beginning_and_end_are_kept_and_the_rest_is_said_to_be_lost(desk: Desk) -> None:
    answer = await desk.good("run_command", command="yes 0123456789abcdef | head -c 100000000; echo the end", wait_s=50)
    while answer.startswith("running"):
        answer = await desk.good("command_output", command_id=answer.split()[1], wait_s=50)
    command_id = re.search(r'command_id="(c\d+)"', answer)[1]  # type: ignore[index]

    lost = re.search(r"but bytes ([\d,]+) to ([\d,]+) were not kept", answer)
    assert lost is not None
    first, last = (int(number.replace(",", "")) for number in lost.groups())
    beyond = await desk.good("command_output", command_id=command_id, start=first + 5)
    end = await desk.good("command_output", command_id=command_id, start=100_000_000)
    after = await desk.good("command_output", command_id=command_id, start=100_000_009)

    assert answer.endswith("the end\n")
    assert f"[bytes {first + 5:,} to {last:,} were not kept" in beyond
    assert f"[bytes {last:,}-" in beyond
    assert end.endswith("\nthe end\n")
    assert "100,000,008 bytes; there is nothing from 100,000,008 on" in after


async def test_an_output_that_ended_is_paged_from_the_record_when_newer_ones_took_its_place(desk: Desk) -> None:
    old = await desk.good("run_command", command="seq 1 20000; echo unlike")
    command_id = re.search(r'command_id="(c\d+)"', old)[1]  # type: ignore[index]
    for _ in range(10):
        await desk.run("true")

    assert await desk.good("command_output", command_id=command_id) == old


async def test_a_file_can_be_paged_through_by_line(desk: Desk) -> None:
    lines = [f"line {n} " + "ab" * (n % 40) for n in range(1, 3_001)]
    await desk.good("save_file", path="many.txt", content="\n".join(lines) + "\n")

    seen, start = [], 1
    while start:
        page = await desk.good("view_file", path="many.txt", start_line=start)
        more = re.search(r"\n\[lines [\d,]+-[\d,]+ of .*: view_file\(start_line=(\d+)\) shows more\]$", page)
        seen += (page[: more.start()] if more else page).split("\n")
        start = int(more[1]) if more else 0

    assert seen == [f"{n}\t{line}" for n, line in enumerate(lines, 1)]


async def test_the_total_is_told_where_the_end_of_the_file_was_seen(desk: Desk) -> None:
    await desk.good("save_file", path="ten.txt", content="".join(f"{n}\n" for n in range(1, 11)))

    some = await desk.good("view_file", path="ten.txt", start_line=3, max_lines=4)

    assert some == "3\t3\n4\t4\n5\t5\n6\t6\n[lines 3-6 of 10: view_file(start_line=7) shows more]"


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600"])
async def test_the_rest_of_a_long_line_is_what_the_named_command_shows(desk: Desk, character: str) -> None:
    line = "begin " + character * 4_000 + " end"
    await desk.good("save_file", path="long line's.txt", content=f"first\n{line}\nlast\n")

    answer = await desk.good("view_file", path="long line's.txt")

    shown = answer.split("\n")[1].removeprefix("2\t").partition(" [...")[0]
    left = re.search(r"\[\.\.\. ([\d,]+) more bytes in this line", answer)
    assert left is not None
    assert int(left[1].replace(",", "")) == len(line.encode()) - len(shown.encode())
    assert shown + (await desk.proposed(answer)).removesuffix("\n") == line
    assert answer.endswith("3\tlast")


async def test_a_folder_of_50000_entries_is_listed_in_part_and_the_named_command_lists_the_rest(desk: Desk) -> None:
    await desk.python("import os\nos.mkdir('big folder')\nfor n in range(50_000): os.close(os.open(f'big folder/f{n}', 64))")
    names = sorted(f"f{n}" for n in range(50_000))

    answer = await desk.good("list_files", path="big folder")

    shown = [line.split()[0] for line in answer.split("\n")[:-1]]
    assert shown == names[: len(shown)]
    assert f"[{50_000 - len(shown):,} more entries left out: " in answer
    assert (await desk.proposed(answer)).split() == names[len(shown) :]


async def test_a_deep_listing_says_at_least_how_many_it_leaves_out(desk: Desk) -> None:
    await desk.python("import os\nfor n in range(100):\n for m in range(40): os.makedirs(f'deep/{n}/{m}')")

    answer = await desk.good("list_files", path="deep", depth=5)

    assert re.search(r"\[at least [\d,]+ more entries left out: list a sub-folder", answer)
    assert len((await desk.good("list_files", path="deep/99")).split("\n")) == 40


async def test_names_with_line_ends_and_the_like_stay_on_one_line(desk: Desk) -> None:
    await desk.python(
        "import os\nos.mkdir('odd')\nos.chdir(b'odd')\n"
        r"for name in (b'a\nb:1:forged', b'tab\there', b'\xff\xfe', 'emoji \U0001f600'.encode(), b'x' * 255, b'-rf', b'q\'uote'):"
        "\n    open(name, 'w').write('needle\\n')\n"
    )

    listed = await desk.good("list_files", path="odd")
    found = await desk.good("search_files", pattern="needle", path="odd")
    changed = await desk.good("view_diff", path="odd")

    for answer in (listed, found, changed):
        assert r"a\nb:1:forged" in answer
    assert len(listed.split("\n")) == len(found.split("\n")) == 7
    assert all(line.endswith(":1:needle") for line in found.split("\n"))


async def test_matches_left_out_are_counted_and_a_narrower_search_shows_them(desk: Desk) -> None:
    await desk.python("import os\nos.mkdir('hits')\nfor n in range(20): open(f'hits/{n}.txt', 'w').write('needle\\n' * 50)")

    answer = await desk.good("search_files", pattern="needle", path="hits")

    left = re.search(r"\[([\d,]+) more matches left out: narrow it with path", answer)
    assert left is not None
    assert answer.count(":needle") + int(left[1].replace(",", "")) == 1_000
    assert (await desk.good("search_files", pattern="needle", path="hits/9.txt")).count("hits/9.txt:") == 50
    assert (await desk.good("search_files", pattern="needle", path="hits", glob="7.*")).count("hits/7.txt:") == 50


async def test_a_search_without_end_is_cut_short_and_says_so(desk: Desk) -> None:
    await desk.run("mkdir endless; head -c 30000000 /dev/zero | tr '\\0' 'a' > endless/line; seq 1 300000 > endless/numbers")

    whole = await desk.good("search_files", pattern="a", path="endless/line")
    many = await desk.good("search_files", pattern="1", path="endless/numbers")

    assert "more characters in this line" in whole
    assert "[at least " in many


async def test_a_diff_of_thousands_of_files_is_counted_and_named_in_part(desk: Desk) -> None:
    await desk.python("import os\nos.mkdir('thousands')\nfor n in range(3_000): open(f'thousands/{n}.txt', 'w').write(f'{n}\\n')")

    answer = await desk.good("view_diff", path="thousands")

    names = re.findall(r"^A thousands/\d+\.txt$", answer, re.MULTILINE)
    more = re.search(r"\[([\d,]+) more changed files: ", answer)
    left = re.search(r"\[the diffs of ([\d,]+) files are left out: view_diff\(path=<file>\) shows one\]", answer)
    assert more is not None
    assert left is not None
    assert answer.startswith("3,000 changed:\n")
    assert len(names) + int(more[1].replace(",", "")) == 3_000
    assert answer.count("\n=== ") + int(left[1].replace(",", "")) == 3_000
    assert "+2999" in await desk.good("view_diff", path="thousands/2999.txt")
    assert (await desk.proposed(answer)).count("thousands/") == 3_000


@pytest.mark.parametrize("lines", [3_000, 100_000])
async def test_the_diff_of_one_huge_file_says_how_much_it_leaves_out(desk: Desk, lines: int) -> None:
    await desk.run(f"seq 1 {lines} > huge.txt")

    answer = await desk.good("view_diff", path="huge.txt")

    assert "more lines of this diff left out: view_file" in answer or "too large to show: 0 -> 588,895 bytes; view_file" in answer


async def test_a_change_made_to_keep_a_diff_busy_is_one_hunk(built_state: Path, tmp_path: Path) -> None:
    lines = [f"{n % 130}\n" for n in range(16_000)]
    small_task(tmp_path, "busy", before={**BEFORE, "busy.txt": "first\n" + "".join(lines) + "last\n"})
    async with desk_at(built_state, "busy", SEATRIAL_TASKS=str(tmp_path)) as desk:
        await desk.python("n = open('busy.txt').read().split()\nopen('busy.txt', 'w').write('\\n'.join(sorted(n)) + '\\n')")

        answer = await desk.good("view_diff")

    assert "more lines of this diff left out" in answer
    assert answer.count("@@") == 2


async def test_an_edit_of_a_file_of_lines_that_are_all_alike_is_refused_without_long_thought(desk: Desk) -> None:
    await desk.python("open('alike.txt', 'w').writelines(f'{\"ab\" * 90}{n:06}\\n' for n in range(20_000))")

    said = await desk.bad("edit_file", path="alike.txt", old_text="ab" * 89 + "x\n", new_text="")

    assert "does not occur in alike.txt" in said


async def test_an_edit_may_not_blow_a_file_up(desk: Desk) -> None:
    await desk.run("head -c 4000000 /dev/zero | tr '\\0' 'a' > small.txt")

    said = await desk.bad("edit_file", path="small.txt", old_text="a", new_text="b" * 100_000, replace_all=True)

    assert "would have 400,000,000,000 bytes" in said
    assert await desk.run("wc -c < small.txt") == "4000000\n"


async def test_what_an_agent_sends_is_not_sent_back_at_length(desk: Desk) -> None:
    long = "\U0001f600" * 50_000

    for tool, arguments in (
        ("view_file", {"path": long}),
        ("list_files", {"path": long[:4_000]}),
        ("save_file", {"path": long[:4_000], "content": ""}),
        ("search_files", {"pattern": long[:2_000] + "("}),
        ("search_files", {"pattern": long[:2_000], "glob": long[:200]}),
        ("run_command", {"command": "true", "cwd": long[:4_000]}),
        ("run_command", {"command": f"echo {long[:25_000]}"}),
        ("command_output", {"command_id": long[:50]}),
        ("view_diff", {"path": long[:4_000]}),
    ):
        assert "of the server's" not in (await desk.call(tool, **arguments)).text
    for tool, argument in (("get_task", long), ("open_workspace", long), ("list_tasks", long)):
        name = "query" if tool == "list_tasks" else "task_id"
        assert len(json.dumps((await desk.agent.call(tool, **{name: argument})).text)) <= MOST


@pytest.fixture(scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory, built_state: Path) -> AsyncGenerator[Desk]:
    """A server with many tasks, one of which has a long instruction; its desk has no workspace."""
    tasks = tmp_path_factory.mktemp("crowd")
    for n in range(80):
        small_task(tasks, f"task-{n:02}")
        file = tasks / f"task-{n:02}" / "task.toml"
        file.write_text(file.read_text().replace("Sums of negative numbers", "\U0001f600" * 200))
    (tasks / "task-00" / "instruction.md").write_text("".join(f"{n}. Do this \U0001f600.\n" for n in range(2_000)))
    async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
        yield Desk(agent, "")


async def test_a_long_list_of_tasks_is_paged_through_with_the_cursor(crowd: Desk) -> None:
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await crowd.agent.call("list_tasks", query="", cursor=cursor)
        assert len(json.dumps(answer.text)) - 2 <= MOST
        seen += re.findall(r"^(task-\d\d): ", answer.text, re.MULTILINE)
        more = re.search(r'\[(\d+) more: list_tasks\(cursor="(\d+)"\)\]', answer.text)
        if more is None:
            break
        cursor = more[2]

    assert seen == [f"task-{n:02}" for n in range(80)]


async def test_a_long_instruction_is_paged_through(crowd: Desk) -> None:
    text, start = "", 0
    while True:
        answer = await crowd.agent.call("get_task", task_id="task-00", start=start)
        assert len(json.dumps(answer.text)) - 2 <= MOST
        more = re.search(r"\n\[[\d,]+ more characters: get_task\(start=(\d+)\) shows them\]$", answer.text)
        text += answer.text[: more.start()] if more else answer.text
        if more is None:
            break
        start = int(more[1])

    assert "".join(f"{n}. Do this \U0001f600.\n" for n in range(2_000)).strip() in text
    assert text.endswith("are not judged.")
