from typing import Any


def open_sandbox(*a: Any) -> Any: ...
