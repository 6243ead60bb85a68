"""The bases of everything that is read from a task folder."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_AGENT_TIMEOUT_S = 3600.0

Line = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]


class Facts(BaseModel):
    """Base of everything read from a task folder: frozen, and a key that we do not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ResourceLimits(Facts):
    """What a sandbox of this task may use; our defaults where the task says nothing."""

    cpus: float = Field(default=2, gt=0, le=1024)
    memory_mb: int = Field(default=4096, ge=64, le=1 << 24)
    storage_mb: int = Field(default=4096, ge=16, le=1 << 24)
    processes: int = Field(default=1024, ge=16)
