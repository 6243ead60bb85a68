"""The tasks that a server may hand out: all of them, or the one that it was started for."""

from server.settings import Settings
from server.task_sources import task_folders
from tasks.catalog import Catalog, load_catalog
from tasks.errors import SeaTrialError
from tasks.model import Task


class NotAssignedError(SeaTrialError):
    """This server was started for one task only."""

    def __init__(self, assigned: str) -> None:
        super().__init__(f"This server is for the task {assigned!r} only. Call open_workspace with that task_id.")


class Offer:
    """What one server offers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        """The tasks, read from their folders at first use."""
        if self._catalog is None:
            self._catalog = load_catalog(task_folders(self._settings))
        return self._catalog

    def search(self, query: str = "") -> tuple[Task, ...]:
        """Return the tasks that may be handed out and in which every word of ``query`` occurs."""
        assigned = self._settings.assignment.task
        return tuple(task for task in self.catalog.search(query) if not assigned or task.id == assigned)

    def task(self, task_id: str) -> Task:
        """Return a task that may be handed out.

        Raises:
            UnknownTaskError, TaskError, NotAssignedError: it may not, or cannot.
        """
        assigned = self._settings.assignment.task
        if assigned and task_id != assigned:
            raise NotAssignedError(assigned)
        return self.catalog.find(task_id)
