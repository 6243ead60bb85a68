"""Values with variables in them."""

import pytest

from tasks.errors import TaskError
from tasks.templates import resolved


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("${SET}", "yes"),
        ("${SET:-no}", "yes"),
        ("${UNSET:-no}", "no"),
        ("${UNSET:-}", ""),
        ("${EMPTY:-no}", ""),
        ("a ${SET} b ${UNSET:-c:-d} e", "a yes b c:-d e"),
        ("${NESTED}", "${SET}"),
        ("$SET $(SET) ${} ${1}", "$SET $(SET) ${} ${1}"),
    ],
)
def test_variables_are_replaced_once(value: str, text: str) -> None:
    environment = {"SET": "yes", "EMPTY": "", "NESTED": "${SET}"}

    assert resolved({"A": value}, environment, "task.toml: environment.env") == {"A": text}


def test_a_variable_that_is_not_set_is_named_with_its_field() -> None:
    with pytest.raises(TaskError, match=r"task\.toml: verifier\.env\.KEY needs the environment variable TOKEN, which is not set"):
        resolved({"KEY": "x${TOKEN}"}, {}, "task.toml: verifier.env")
