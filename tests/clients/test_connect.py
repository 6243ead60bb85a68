"""What is printed for an agent's settings."""

import json

import pytest

from clients.connect import UnknownClientError, guide


def test_the_text_for_cline_holds_the_entry_as_valid_json() -> None:
    found = guide("cline", ("/a/python", "-I", "-m", "server"), {"SEATRIAL_STATE": '/a b/"state"'}, ["submit"])

    start, end = found.text.index("\n{\n"), found.text.index("\n}\n")
    assert json.loads(found.text[start : end + 2]) == found.entry


def test_the_entry_for_cline_starts_the_command_and_gives_it_time() -> None:
    server = json.loads(json.dumps(guide("cline", ("/a/python", "-I"), {"X": "1"}, ["submit"]).entry))["mcpServers"]["seatrial"]

    assert server["command"] == "/a/python"
    assert server["args"] == ["-I"]
    assert server["env"] == {"X": "1"}
    assert server["autoApprove"] == ["submit"]
    assert server["type"] == "stdio"
    assert 1 <= server["timeout"] <= 3600


@pytest.mark.parametrize("said", ["cline_mcp_settings.json", "disabledTools", "--yolo", "sealed", "open a workspace"])
def test_the_text_for_cline_says(said: str) -> None:
    assert said in guide("cline", ("/a/python",), {}, []).text


def test_an_agent_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnknownClientError, match="cline"):
        guide("nobody", (), {}, [])
