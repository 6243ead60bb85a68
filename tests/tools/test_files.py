"""Looking at files and changing them: list_files, view_file, save_file, edit_file, search_files, view_diff."""

import anyio
import pytest
from desk import Desk

pytestmark = pytest.mark.anyio


async def test_a_saved_file_is_there_with_its_parents(desk: Desk) -> None:
    said = await desk.good("save_file", path="a/b/c.txt", content="h\u00e9llo\n")

    assert said == "Saved a/b/c.txt (7 bytes)."
    assert await desk.run("cat a/b/c.txt; stat -c %a a/b/c.txt a/b") == "h\u00e9llo\n644\n755\n"


async def test_a_path_may_be_written_in_several_ways(desk: Desk) -> None:
    await desk.good("save_file", path="/workspace/ways/x.txt", content="same\n")

    answers = [
        await desk.good("view_file", path=path)
        for path in ("ways/x.txt", "./ways//x.txt", "ways/../ways/x.txt", "/workspace/ways/x.txt", " ways/x.txt ")
    ]

    assert set(answers) == {"1\tsame"}


async def test_saving_replaces_the_whole_file_and_keeps_its_mode(desk: Desk) -> None:
    await desk.run("printf 'long old text' > tool.sh; chmod 750 tool.sh")

    await desk.good("save_file", path="tool.sh", content="#!/bin/sh\necho new\n")

    assert await desk.run("./tool.sh; stat -c %a tool.sh") == "new\n750\n"


async def test_saving_through_a_symlink_inside_changes_its_target(desk: Desk) -> None:
    await desk.run("mkdir -p real; echo old > real/file; ln -s real/file link; ln -s real folder-link")

    await desk.good("save_file", path="link", content="through the link\n")
    await desk.good("edit_file", path="folder-link/file", old_text="through", new_text="by")

    assert await desk.run("cat real/file; readlink link") == "by the link\nreal/file\n"
    assert await desk.good("view_file", path="folder-link/file") == "1\tby the link"


async def test_an_empty_file_and_one_without_a_last_line_end_are_shown_as_they_are(desk: Desk) -> None:
    await desk.good("save_file", path="empty", content="")
    await desk.good("save_file", path="open-end", content="one\ntwo")

    assert await desk.good("view_file", path="empty") == "empty is empty."
    assert await desk.good("view_file", path="open-end") == "1\tone\n2\ttwo"
    assert await desk.run("wc -c < open-end") == "7\n"


async def test_a_line_beyond_the_end_is_refused_with_the_number_of_lines(desk: Desk) -> None:
    await desk.good("save_file", path="three", content="1\n2\n3\n")

    assert "three has 3 lines; there is no line 4." in await desk.bad("view_file", path="three", start_line=4)
    assert await desk.good("view_file", path="three", start_line=3) == "3\t3"


async def test_an_edit_replaces_exactly_one_place_and_nothing_else(desk: Desk) -> None:
    await desk.run("printf 'a = 1\\n\\tb = 2\\nno end' > code.py; chmod 755 code.py")

    said = await desk.good("edit_file", path="code.py", old_text="\tb = 2", new_text="\tb = 3  # \u00fc")

    assert said == "Edited code.py: 1 place."
    assert await desk.run("cat code.py; stat -c ' %a' code.py") == "a = 1\n\tb = 3  # \u00fc\nno end 755\n"


async def test_an_edit_keeps_the_line_ends_of_the_file(desk: Desk) -> None:
    await desk.run("printf 'one\\r\\ntwo\\r\\nthree\\r\\n' > windows.txt")

    assert await desk.good("view_file", path="windows.txt") == "1\tone\n2\ttwo\n3\tthree"
    await desk.good("edit_file", path="windows.txt", old_text="one\ntwo", new_text="1\n2\n2b")

    assert (
        await desk.run("od -c windows.txt | head -1")
        == r"0000000   1  \r  \n   2  \r  \n   2   b  \r  \n   t   h   r   e   e  \r" + "\n"
    )


async def test_an_edit_leaves_bytes_that_are_no_text_alone(desk: Desk) -> None:
    await desk.run(r"printf '\377\376 name=old \200' > bytes.bin")

    await desk.good("edit_file", path="bytes.bin", old_text="name=old", new_text="name=new")

    assert await desk.run(r"printf '\377\376 name=new \200' | cmp - bytes.bin && echo same") == "same\n"


async def test_an_edit_that_fits_nowhere_shows_the_nearest_lines(desk: Desk) -> None:
    await desk.good("save_file", path="near.py", content="def first():\n    return  one\n\n\ndef second():\n    return two\n")

    said = await desk.bad("edit_file", path="near.py", old_text="    return one", new_text="    return 1")

    assert "old_text does not occur in near.py." in said
    assert "2\t    return  one" in said


async def test_an_edit_that_fits_several_places_names_them_and_replaces_all_when_told(desk: Desk) -> None:
    await desk.good("save_file", path="twice.txt", content="x = 1\ny = 2\nx = 1\n")

    said = await desk.bad("edit_file", path="twice.txt", old_text="x = 1", new_text="x = 3")
    done = await desk.good("edit_file", path="twice.txt", old_text="x = 1", new_text="x = 3", replace_all=True)

    assert "occurs 2 times in twice.txt, at lines 1, 3." in said
    assert done == "Edited twice.txt: 2 places."
    assert await desk.run("cat twice.txt") == "x = 3\ny = 2\nx = 3\n"


async def test_nothing_to_look_for_is_no_edit(desk: Desk) -> None:
    await desk.good("save_file", path="some", content="text")

    assert "old_text is empty" in await desk.bad("edit_file", path="some", old_text="", new_text="x")


async def test_sixteen_edits_of_one_file_at_once_are_all_made(desk: Desk) -> None:
    await desk.good("save_file", path="shared.txt", content="".join(f"<{n}>\n" for n in range(16)))

    async with anyio.create_task_group() as group:
        for n in range(16):
            arguments = {"path": "shared.txt", "old_text": f"<{n}>", "new_text": f"[{n}]"}
            group.start_soon(lambda arguments: desk.good("edit_file", **arguments), arguments)

    assert await desk.run("cat shared.txt") == "".join(f"[{n}]\n" for n in range(16))


async def test_a_listing_tells_folders_links_and_others_apart(desk: Desk) -> None:
    await desk.run(
        "mkdir -p kinds/sub/below; cd kinds; echo 123 > file; ln -s file link; ln -s /nowhere dead; mkfifo pipe; touch sub/x"
    )

    flat = await desk.good("list_files", path="kinds")
    deep = await desk.good("list_files", path="kinds", depth=3)

    assert flat == "dead -> (symlink)\nfile  4\nlink -> (symlink)\npipe (special file)\nsub/"
    assert deep == flat + "\nsub/below/\nsub/x  0"


async def test_an_empty_folder_is_said_to_be_empty_and_a_file_is_no_folder(desk: Desk) -> None:
    await desk.run("mkdir -p hollow; touch no-folder")

    assert await desk.good("list_files", path="hollow") == "hollow/ is empty."
    assert "not a folder" in await desk.bad("list_files", path="no-folder")
    assert "no such file or folder" in await desk.bad("list_files", path="nowhere")


async def test_a_search_takes_perl_patterns_and_only_the_files_of_a_glob(desk: Desk) -> None:
    await desk.run(
        "mkdir -p find/deep/er; cd find; printf 'needle\\0' > bin.py;"
        "echo 'def needle(x):' | tee a.py deep/b.py deep/er/c.py > a.txt"
    )

    everywhere = await desk.good("search_files", pattern=r"def (?=needle\()\w+", path="find")
    python = await desk.good("search_files", pattern="needle", path="find", glob="*.py")
    deep = await desk.good("search_files", pattern="needle", path="find", glob="find/deep/**/*.py")
    one = await desk.good("search_files", pattern="NEEDLE(?i)", path="find/a.txt")
    insensitive = await desk.good("search_files", pattern="(?i)NEEDLE", path="find/a.txt")

    assert everywhere.split("\n") == [f"find/{name}:1:def needle(x):" for name in ("a.py", "a.txt", "deep/b.py", "deep/er/c.py")]
    assert python.split("\n") == [f"find/{name}:1:def needle(x):" for name in ("a.py", "deep/b.py", "deep/er/c.py")]
    assert deep.split("\n") == [f"find/{name}:1:def needle(x):" for name in ("deep/b.py", "deep/er/c.py")]
    assert one.startswith("No match for ")
    assert insensitive == "find/a.txt:1:def needle(x):"


async def test_a_search_that_finds_nothing_says_so_and_one_that_cannot_be_made_says_why(desk: Desk) -> None:
    assert "No match for 'not-there-at-all' in h11." in await desk.good("search_files", pattern="not-there-at-all", path="h11")
    assert "missing" in await desk.bad("search_files", pattern="(unclosed", path="h11")
    assert "No such file" in await desk.bad("search_files", pattern="x", path="nowhere")
    assert "--help" in await desk.good("search_files", pattern="--help", path="h11")


async def test_a_diff_shows_what_was_added_changed_and_deleted_against_the_snapshot(desk: Desk) -> None:
    await desk.run(
        "mkdir d; cd d; printf 'x' > new; ln -s new link; printf '\\0' > bin; touch ../README.rst; chmod +x ../setup.py"
    )
    await desk.run("rm LICENSE.txt; rm -rf docs/source/_static; touch d/noise.pyc; mkdir -p __pycache__; touch __pycache__/x")
    await desk.good("edit_file", path="h11/_version.py", old_text='__version__ = "0.15.0"', new_text='__version__ = "0.15.1"')

    diff = await desk.good("view_diff")
    one = await desk.good("view_diff", path="h11/_version.py")
    folder = await desk.good("view_diff", path="d")

    assert one.startswith("1 changed:\nM h11/_version.py\n")
    assert '-__version__ = "0.15.0"\n+__version__ = "0.15.1"\n' in one
    assert folder.startswith("3 changed:\nA d/bin\nA d/link (symlink)\nA d/new\n")
    assert "+x\n\\ No newline at end of file" in folder
    assert "(binary: 0 -> 1 bytes)" in folder
    assert "D LICENSE.txt\n" in diff
    assert "M setup.py (executable)\n" in diff
    assert "README.rst" not in diff
    assert "pyc" not in diff


async def test_a_place_without_changes_has_no_diff(desk: Desk) -> None:
    assert await desk.good("view_diff", path="examples") == "No changes."
