"""Trials, events and verdicts in SQLite (WAL): what was acknowledged survives the death of the process."""

import dataclasses
import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError, OperationalError

from server.records import Event, TrialRecord, TrialState, Verdict
from tasks.errors import SeaTrialError

SCHEMA_VERSION = 1
_BUSY_S = 30

_metadata = MetaData()
_trials = Table(
    "trials",
    _metadata,
    Column("id", String, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("task_digest", String, nullable=False),
    Column("agent", String, nullable=False),
    Column("agent_version", String, nullable=False),
    Column("model", String, nullable=False),
    Column("job", String, nullable=False, index=True),
    Column("group", String, nullable=False),
    Column("repetition", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("surface", String, nullable=False),
    Column("containment", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("submitted_by", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ready_at", Float, nullable=False),
    Column("deadline_at", Float, nullable=False),
    Column("ended_at", Float, nullable=False),
    Column("patch", String, nullable=False),
    Column("reward", Float),
    Column("error_class", String, nullable=False),
    Column("error", Text, nullable=False),
    Column("flags", Text, nullable=False),
    Column("timings", Text, nullable=False),
    Index("attempts", "task", "agent", "model", "job", "group", "repetition", "attempt"),
)
_events = Table(
    "events",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("trial", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("events_of_a_trial", "trial", "id"),
)
_verdicts = Table(
    "verdicts",
    _metadata,
    Column("trial", String, primary_key=True),
    Column("at", Float, nullable=False),
    Column("verdict", Text, nullable=False),
)
_ADD_EVENT = insert(_events)


class StoreError(SeaTrialError):
    """The store cannot be opened or is not ours."""


class Store:
    """The database of one state folder, shared by every process that uses the folder."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")

    def add_trial(self, record: TrialRecord) -> TrialRecord:
        """Insert ``record`` with its attempt number: one more than the trials of the same agent, task and place in a job."""
        with self._engine.begin() as connection:
            same = [_trials.c[name] == getattr(record, name) for name in ("task", "agent", "model", "job", "group", "repetition")]
            last = connection.execute(select(func.max(_trials.c.attempt)).where(*same)).scalar_one()
            record = dataclasses.replace(record, attempt=(last or 0) + 1)
            connection.execute(insert(_trials).values(_row(record)))
        return record

    def update_trial(self, trial: str, **changes: Any) -> TrialRecord:
        """Set fields of a trial and return it as it now stands."""
        with self._engine.begin() as connection:
            _set(connection, trial, changes)
            return _record(_one(connection, trial))

    def find_trial(self, trial: str) -> TrialRecord | None:
        """Return the trial, or None if there is none of this id."""
        with self._reading.connect() as connection:
            row = connection.execute(select(_trials).where(_trials.c.id == trial)).one_or_none()
        return None if row is None else _record(row)

    def trials(self, *, job: str | None = None, states: Sequence[TrialState] = ()) -> tuple[TrialRecord, ...]:
        """Return trials in the order of their start, of one job or of certain states if asked."""
        query = select(_trials).order_by(_trials.c.created_at, _trials.c.id)
        if job is not None:
            query = query.where(_trials.c.job == job)
        if states:
            query = query.where(_trials.c.state.in_(states))
        with self._reading.connect() as connection:
            return tuple(_record(row) for row in connection.execute(query))

    def add_event(self, happened: Event) -> None:
        """Append an event; it is on record when this returns."""
        texts = {"arguments": json.dumps(happened.arguments), "detail": json.dumps(happened.detail)}
        with self._engine.begin() as connection:
            connection.execute(_ADD_EVENT, {**vars(happened), **texts})

    def events(self, trial: str) -> tuple[Event, ...]:
        """Return the events of a trial in order."""
        query = select(_events).where(_events.c.trial == trial).order_by(_events.c.id)
        with self._reading.connect() as connection:
            return tuple(
                Event(
                    row.trial,
                    row.at,
                    row.kind,
                    row.name,
                    row.outcome,
                    row.duration_s,
                    json.loads(row.arguments),
                    json.loads(row.detail),
                )
                for row in connection.execute(query)
            )

    def end_trial(self, trial: str, verdict: Verdict | None, **changes: Any) -> TrialRecord:
        """Record the end of a trial, with its verdict if it has one, forced to disk before this returns.

        A trial that has ended stays as it is: the first end counts, and is what this returns.
        """
        with self._engine.connect() as connection:
            _synchronous(connection, "FULL")
            try:
                with connection.begin():
                    before = _record(_one(connection, trial))
                    if before.state in ("done", "error"):
                        return before
                    _set(connection, trial, {"ended_at": time.time(), **changes})
                    if verdict is not None:
                        text = json.dumps(dataclasses.asdict(verdict))
                        connection.execute(insert(_verdicts).values(trial=trial, at=time.time(), verdict=text))
                    return _record(_one(connection, trial))
            finally:
                _synchronous(connection, "NORMAL")

    def verdict(self, trial: str) -> Verdict | None:
        """Return the stored verdict of a trial, if it has one."""
        with self._reading.connect() as connection:
            text = connection.execute(select(_verdicts.c.verdict).where(_verdicts.c.trial == trial)).scalar_one_or_none()
        if text is None:
            return None
        values = json.loads(text)
        for name in ("fail_to_pass", "pass_to_pass", "flags"):
            values[name] = tuple(values[name])
        return Verdict(**values)


@contextmanager
def open_store(path: Path) -> Generator[Store]:
    """Open the SQLite file, creating it and its tables if they are missing.

    Raises:
        StoreError: the file is not a store of this version, or cannot be written.
    """
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_S})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        with engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(
                    f"The store {path} has schema {version}; this seatrial knows {SCHEMA_VERSION}. "
                    "Use the seatrial that wrote it, or another state folder (SEATRIAL_STATE)."
                )
            _metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        yield Store(engine)
    except (OperationalError, DatabaseError) as error:
        raise StoreError(f"The store {path} cannot be used: {error.orig}. Check the file and the disk.") from error
    finally:
        engine.dispose()


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # `_begin` says when a transaction starts: writers must not upgrade a read
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _synchronous(connection: Connection, level: str) -> None:
    """Set how far a commit is forced to disk; SQLite ignores it inside a transaction, so it goes past SQLAlchemy's."""
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.execute(f"PRAGMA synchronous={level}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _row(record: TrialRecord) -> dict[str, Any]:
    return _encoded(dataclasses.asdict(record))


def _encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name in ("flags", "timings") else value for name, value in values.items()}


def _record(row: Row[Any]) -> TrialRecord:
    values = dict(row._mapping)
    values["flags"] = tuple(json.loads(values["flags"]))
    values["timings"] = json.loads(values["timings"])
    return TrialRecord(**values)


def _one(connection: Connection, trial: str) -> Row[Any]:
    return connection.execute(select(_trials).where(_trials.c.id == trial)).one()


def _set(connection: Connection, trial: str, changes: Mapping[str, Any]) -> None:
    connection.execute(update(_trials).where(_trials.c.id == trial).values(_encoded(changes)))
