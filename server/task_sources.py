"""The sources of tasks that a user added, as they are recorded in the state folder; reading them creates nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from server.settings import Settings
from tasks.catalog import Place
from tasks.errors import SeaTrialError


class SourcesError(SeaTrialError):
    """The record of the added sources, or what was asked of it, cannot be used; the text says what to do."""


class TaskSource(BaseModel):
    """One added source. ``digests`` has the digest of each of its tasks that could be read, by id, when it was added.

    Of git sources ``rev`` is what was asked for, ``commit`` what it was then, and ``checkout`` the name of the folder, below
    the one of all sources, that holds the tree in a folder ``leaf``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["path", "git"]
    location: str
    rev: str = ""
    subfolder: str = ""
    commit: str = ""
    checkout: str = ""
    leaf: str = ""
    digests: Mapping[str, str]

    @property
    def shown(self) -> str:
        """Return what a user would type to add it."""
        return self.location + (f"@{self.rev}" if self.rev else "") + (f":{self.subfolder}" if self.subfolder else "")

    def place(self, state: Path) -> Place:
        """Return where its tasks lie."""
        if self.kind == "path":
            return Place(Path(self.location), None, f"Mend it, or take it out: seatrial tasks remove {self.name}")
        folder = sources_folder(state) / self.checkout / self.leaf
        return Place(folder, self.digests, f"Fetch it again: seatrial tasks update {self.name}")


class SourceFile(BaseModel):
    """The file of all sources, in the order they were added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    sources: tuple[TaskSource, ...] = ()


def sources_folder(state: Path) -> Path:
    """Return the folder of the record and of every checkout, for a state folder."""
    return state / "private" / "sources"


def read_sources(state: Path) -> tuple[TaskSource, ...]:
    """Return the sources that were added to a state folder, which need not exist.

    Raises:
        SourcesError: the record is there and cannot be read.
    """
    path = sources_folder(state) / "sources.json"
    try:
        return SourceFile.model_validate(json.loads(path.read_bytes())).sources
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise SourcesError(
            f"{path} cannot be read ({error.strerror}). Give it back to the user who runs this, or set SEATRIAL_STATE."
        ) from error
    except (ValidationError, ValueError) as error:
        raise SourcesError(f"{path} is broken. Remove it, then add your sources again with: seatrial tasks add") from error


def task_folders(settings: Settings) -> tuple[Path | Place, ...]:
    """Return every place of tasks beside the bundled ones, for `load_catalog`: those of the settings, then the added ones."""
    return (*settings.tasks, *(source.place(settings.state) for source in read_sources(settings.state)))
