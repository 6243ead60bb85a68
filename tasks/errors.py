"""The one base of every failure that we expect, here because every other package may import `tasks`."""


class SeaTrialError(Exception):
    """Something a user or an agent can act on: the text says what happened and what to do next."""

    @property
    def kind(self) -> str:
        """The class of the failure as it is recorded: ``VerifierError`` is ``verifier``."""
        return type(self).__name__.removesuffix("Error").lower()


class TaskError(SeaTrialError):
    """A task folder that cannot be used; the text names the file and the field."""


class UnknownTaskError(SeaTrialError):
    """No task has this id."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"No task {task_id!r}. Call list_tasks to see the ids.")
