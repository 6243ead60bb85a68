"""The user's package indexes, as pip is configured for them; only listing and fetching, nothing of a package is run."""

import ast
import logging
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.errors import SeaTrialError

if TYPE_CHECKING:
    from unearth import Link, Package, TargetPython
    from unearth.fetchers import Fetcher, PyPIClient
    from unearth.finder import Source

PIP_TIMEOUT_S = 60
SECTIONS = ("global", "install", "download", ":env:")
"""Where pip's options stand, weakest first: a later one replaces the earlier, also for lists."""


class DownloadError(SeaTrialError):
    """An archive is not to be had, or is not the one that was meant."""


class UnreachableError(DownloadError):
    """One place that should have an archive did not give it."""


@dataclass(frozen=True)
class PipSettings:
    """What of pip's configuration says where packages are. An empty ``index`` is the default one."""

    index: str = ""
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    cert: str = ""
    client_cert: str = ""
    proxy: str = ""
    timeout_s: float = 15


def read_pip_settings() -> PipSettings:
    """Ask pip itself for its configuration: files and PIP_* variables.

    Raises:
        DownloadError: pip does not answer.
    """
    command = [sys.executable, "-P", "-m", "pip", "--no-input", "config", "list"]  # -P: not the user's folder's `pip`
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"pip did not tell its configuration ({error}). Check `python -m pip config list`.") from error
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DownloadError(f"pip did not tell its configuration ({reason}). Check `python -m pip config list`.")
    return pip_settings(answer.stdout)


def pip_settings(listing: str) -> PipSettings:
    """Read what ``pip config list`` prints: a line ``section.option='value'`` each."""
    options: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.partition(".")
        if section in options:
            options[section][option.replace("_", "-")] = _unquoted(value)
    merged: dict[str, str] = {}
    for section in SECTIONS:
        merged.update(options[section])
    return PipSettings(
        index=merged.get("index-url", ""),
        extra_indexes=tuple(merged.get("extra-index-url", "").split()),
        find_links=tuple(merged.get("find-links", "").split()),
        trusted_hosts=tuple(merged.get("trusted-host", "").split()),
        no_index=merged.get("no-index", "").lower() in ("1", "true", "yes", "on"),
        cert=merged.get("cert", ""),
        client_cert=merged.get("client-cert", ""),
        proxy=merged.get("proxy", ""),
        timeout_s=_seconds(merged),
    )


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value.strip("'\"")


def _seconds(options: Mapping[str, str]) -> float:
    try:
        return max(1.0, float(options.get("timeout") or options.get("default-timeout") or 15))
    except ValueError:
        return 15


class Indexes:
    """Open indexes. What one of them fails with is kept for `not_found`; the others are asked all the same."""

    def __init__(self, session: "PyPIClient", settings: PipSettings, target: "TargetPython | None") -> None:
        self._session = session
        self._settings = settings
        self._target = target
        self._failures: list[str] = []

    @classmethod
    @contextmanager
    def opened(cls, settings: PipSettings, target: "TargetPython | None") -> Iterator["Indexes"]:
        """Yield the indexes of ``settings``; ``target`` is the interpreter that wheels must suit."""
        from unearth.auth import MultiDomainBasicAuth  # heavy, and only a download needs it
        from unearth.fetchers import PyPIClient

        logging.getLogger("unearth").addHandler(logging.NullHandler())  # it warns of each index that lacks a name
        with PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=_tls(settings),
            timeout=settings.timeout_s,
            proxy=settings.proxy or None,
            follow_redirects=True,
        ) as session:
            session.auth = MultiDomainBasicAuth(False, [url for url in (settings.index, *settings.extra_indexes) if url])
            yield cls(session, settings, target)

    def packages(self, name: str, version: str, *, wheels: bool) -> Iterator["Package"]:
        """Yield every wheel, or every source distribution, of this release, index by index, best first."""
        import httpx2
        from packaging.version import Version
        from unearth import PackageFinder

        finder = PackageFinder(
            cast("Fetcher", self._session),  # it is one; only its annotations are wider
            trusted_hosts=self._settings.trusted_hosts,
            target_python=self._target,
            ignore_compatibility=not wheels,
            only_binary=[name] if wheels else [],
            no_binary=[] if wheels else [name],
        )
        for source in self._sources():
            finder.sources = [source]
            try:
                found = list(finder.find_all_packages(name, allow_yanked=True))
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
                self._failures.append(f"{_host(source['url'])}: {error or type(error).__name__}")
                continue
            yield from (one for one in found if one.version and Version(one.version) == Version(version))

    def stream(self, link: "Link") -> Iterator[bytes]:
        """Yield an archive's bytes as they lie on the server.

        Raises:
            UnreachableError: the server or the file system does not give it.
        """
        import httpx2

        try:
            with self._session.get_stream(link.normalized, headers={"Accept-Encoding": "identity"}) as response:
                response.raise_for_status()
                yield from response.iter_raw(1 << 18)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            self._failures.append(f"{_host(link.redacted)}: {error or type(error).__name__}")
            raise UnreachableError(self._failures[-1]) from error

    def not_found(self, what: str) -> DownloadError:
        """Return the error that says why ``what`` was not to be had, and what to do."""
        if self._failures:
            return DownloadError(
                f"{what[0].upper()}{what[1:]} could not be fetched ({self._failures[0]}). Connect to the network, or correct "
                "pip's configuration, and run `seatrial tasks build` once; later no network is needed."
            )
        return DownloadError(
            f"The package indexes that pip is configured for do not have {what}. Correct name and version in the task, or add "
            "an index that has it to pip's configuration, and run `seatrial tasks build`."
        )

    def _sources(self) -> list["Source"]:
        from unearth import PackageFinder

        settings = self._settings
        everything = PackageFinder(cast("Fetcher", self._session))  # starts out with the default index
        if settings.no_index:
            everything.sources = []
        elif settings.index:
            everything.sources = [{"url": settings.index, "type": "index"}]
        if not settings.no_index:
            for url in settings.extra_indexes:
                everything.add_index_url(url)
        for place in settings.find_links:
            everything.add_find_links(place if "://" in place else str(Path(place).expanduser().absolute()))
        return everything.sources


def _tls(settings: PipSettings) -> ssl.SSLContext | bool:
    if not settings.cert and not settings.client_cert:
        return True
    try:
        context = ssl.create_default_context(cafile=settings.cert or None)
        if settings.client_cert:
            context.load_cert_chain(settings.client_cert)
    except OSError as error:
        raise DownloadError(f"The certificates in pip's configuration cannot be read ({error}). Correct cert.") from error
    return context


def _host(url: str) -> str:
    """Return what of ``url`` can be shown: no user name, password or query."""
    scheme, _, rest = url.partition("://")
    if not rest or scheme == "file":
        return url.partition("?")[0]
    return rest.partition("/")[0].rpartition("@")[2]
