"""What the environment may say, and what it may not."""

import pytest

from server.settings import Settings, SettingsError


def test_the_defaults_are_the_open_ones() -> None:
    settings = Settings.from_environment({"HOME": "/home/someone"})

    assert (settings.reveal, settings.containment) == ("counts", "open")


def test_what_is_set_counts() -> None:
    settings = Settings.from_environment({"SEATRIAL_REVEAL": "none", "SEATRIAL_CONTAINMENT": "sealed"})

    assert (settings.reveal, settings.containment) == ("none", "sealed")


@pytest.mark.parametrize(("name", "value"), [("SEATRIAL_REVEAL", "NONE"), ("SEATRIAL_CONTAINMENT", "close")])
def test_a_slip_of_the_pen_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '{value}'; it can be"):
        Settings.from_environment({name: value})
