"""Fetch what URLs name into this machine's cache, by fsspec; one process a node does it.

A URL names a file, a folder, a token store without its endings, or a pattern. What is there is
listed at each start: copies of the same version are kept, others fetched, those of what is gone
removed. Where the server can't be reached, copies that are whole are taken, and that is said.
"""

import errno
import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megalite.distributed.agreement import text_of_node
from megalite.distributed.launch import Launch
from megalite.errors import DataError, first_line
from megalite.files.copies import Elsewhere, drop, is_whole, write
from megalite.files.urls import CHAIN, cache, place_of

STORE = (".bin", ".idx")
VERSIONS = (  # of a file, as file systems call it
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FORBIDDEN, GONE = (401, 403), 404

Read = Callable[[str], str]
Choose = Callable[[list[str], Read], Iterable[str]]


class _UnreachableError(Exception):
    """The server doesn't answer; the text says why."""


@dataclass(frozen=True)
class Source:
    """What a URL names, by the file system that has it.

    Attributes:
        key: that names the URL.
        url: of it.
        fs: fsspec's file system.
        root: of it there.
    """

    key: str
    url: str
    fs: Any
    root: str

    @classmethod
    def of(cls, key: str, url: str) -> "Source":
        """Open the file system; nothing is asked of it.

        Raises:
            DataError: there is none for this URL, or its package is missing.
        """
        shown = f"--{key} {url}"
        if CHAIN.match(url):
            raise DataError(f"{shown}: chains of URLs are not read: give one, such as s3://...")
        try:
            import fsspec
        except ImportError:
            raise DataError(f"{shown}: URLs need fsspec: pip install 'megalite[fsspec]'") from None
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            scheme = url.partition(":")[0]
            raise DataError(
                f"{shown}: fsspec needs another package for {scheme}://: {error}"
            ) from None
        except ValueError as error:
            raise DataError(f"{shown}: fsspec has no file system for it: {error}") from None
        return cls(key, url, fs, root.rstrip("/"))

    def files(self, choose: Choose | None = None) -> list[Elsewhere]:
        """What is there.

        Args:
            choose: which files of a folder are wanted, by their names from there, with what reads
                one; None: all.

        Raises:
            DataError: nothing is, or this user may not see it.
            _UnreachableError: the server doesn't answer.
        """
        self.fs.invalidate_cache()
        found = self.asked(self._listed)
        place = place_of(self.url)
        if choose is None:  # data: what is hidden in a folder is none, here as there
            found = {at: i for at, i in found.items() if not _is_hidden(at, place)}
        elif place not in found:
            names = {str(at.relative_to(place)): at for at in found}
            wanted = choose(list(names), lambda name: self._read(found[names[name]]["name"]))
            found = {names[name]: found[names[name]] for name in wanted}
        if not found:
            raise DataError(
                f"--{self.key} {self.url}: there is no such file, folder or token store "
                "(.bin and .idx)"
            )
        return [self.asked(partial(self._file, at, info)) for at, info in found.items()]

    def _listed(self) -> dict[Path, Mapping[str, Any]]:
        """What is there, by the place of its copy; empty: nothing."""
        if _is_pattern(self.url):
            return self._matching()
        for ends in (("",), STORE):
            paths = [f"{self.root}{end}" for end in ends]
            infos = [self._info(path) for path in paths]
            if all(info is not None for info in infos) and not _is_folder(infos[0]):
                place = place_of(self.url)
                at = [place.with_name(f"{place.name}{end}") for end in ends]
                return {a: {**i, "name": p} for a, i, p in zip(at, infos, paths, strict=True) if i}
            if infos[0] is not None:
                return self._placed(
                    self.root, place_of(self.url), self.fs.find(self.root, detail=True)
                )
        return {}

    def _matching(self) -> dict[Path, Mapping[str, Any]]:
        """The files that a pattern matches; of a token store both."""
        start, base = self.root.rpartition("/")[0], place_of(self.url).parent
        while _is_pattern(start):
            start, base = start.rpartition("/")[0], base.parent
        found: dict[str, Any] = {}
        for end in ("", *STORE):
            found |= self.fs.glob(f"{self.root}{end}", detail=True)
        for path in list(found):
            stem, dot, end = path.rpartition(".")
            if f"{dot}{end}" in STORE:
                for other in (f"{stem}{e}" for e in STORE):
                    info = found.get(other) or self._info(other)
                    found |= {other: info} if info is not None else {}
        return self._placed(start, base, found)

    def _placed(
        self, start: str, base: Path, found: Mapping[str, Any]
    ) -> dict[Path, Mapping[str, Any]]:
        """Files below a folder there by their places below one here."""
        placed: dict[Path, Mapping[str, Any]] = {}
        for path, info in sorted(found.items()):
            parts = path.removeprefix(start).strip("/").split("/")
            if not _is_folder(info) and not any(part in ("", ".", "..") for part in parts):
                placed[base.joinpath(*parts)] = {**info, "name": path}
        return placed

    def _info(self, path: str) -> Mapping[str, Any] | None:
        try:
            return self.fs.info(path)
        except FileNotFoundError as error:
            cause = error.__cause__  # fsspec takes a web server that doesn't answer for no file
            if isinstance(cause, Exception) and getattr(cause, "status", GONE) != GONE:
                raise cause from None
            if isinstance(cause, OSError) and not isinstance(cause, type(error)):
                raise cause from None
            return None

    def _file(self, place: Path, info: Mapping[str, Any]) -> Elsewhere:
        path = info["name"]
        if info.get("size") is None:  # a listing may leave it out
            info = {**self.fs.info(path), "name": path}
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        return Elsewhere(path, place, info.get("size"), version)

    def _read(self, path: str) -> str:
        return self.asked(lambda: self.fs.cat_file(path)).decode("utf-8", "replace")

    def asked(self, ask: Callable[[], Any]) -> Any:
        """What the file system answers.

        Raises:
            DataError: this user may not see it, it is gone, or the copy can't be written.
            _UnreachableError: it doesn't answer.
        """
        shown = f"--{self.key} {self.url}"
        try:
            return ask()
        except FileNotFoundError as error:
            raise DataError(f"{shown}: {error}: there is no such file") from None
        except Exception as error:  # of the library that carries the requests, whichever it is
            reason = first_line(error)
            if isinstance(error, PermissionError) or getattr(error, "status", 0) in FORBIDDEN:
                raise DataError(
                    f"{shown}: this user may not read it: {reason}: look at the credentials, or "
                    f"at the rights of {cache()}"
                ) from None
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise DataError(
                    f"{shown}: can't be written into {cache()}: {error.strerror}"
                ) from None
            raise _UnreachableError(reason) from None


def _is_hidden(at: Path, place: Path) -> bool:
    """Whether a file below a folder, or a folder that it is in, is hidden."""
    below = at.relative_to(place).parts if at.is_relative_to(place) else at.parts[-1:]
    return any(part[0] == "." for part in below)


def _is_pattern(name: str) -> bool:
    """Whether a URL is a pattern; a question mark begins its arguments."""
    return glob.has_magic(name.replace("?", ""))


def _is_folder(info: Mapping[str, Any] | None) -> bool:
    """Whether it is a folder; a page of a web server is one of links."""
    found = info or {}
    return found.get("type") == "directory" or found.get("mimetype") == "text/html"


def fetched(key: str, url: str, choose: Choose | None = None) -> list[str]:
    """Make the copy of what a URL names whole and the same as there.

    Args:
        key: that names it.
        url: of a file, folder, token store or pattern.
        choose: as for :meth:`Source.files`.

    Returns:
        What is to be said.

    Raises:
        DataError: it isn't there, can't be read or can't be fetched.
    """
    source = Source.of(key, url)
    try:
        files = source.files(choose)
        lacking = [file for file in files if not file.has_copy()]
        damaged = [f for f in lacking if f.place.exists() and not is_whole(f.place)]
        for file in lacking:
            source.asked(partial(file.copy, source.fs.get_file))
    except _UnreachableError as error:
        return _without_server(key, url, str(error))
    for gone in set(_noted(url)) - {file.place for file in files}:
        drop(gone)
    write(_list_path(url), json.dumps([str(file.place) for file in files]))
    said = [f"{url}: its copy {file.place} was not whole" for file in damaged]
    if lacking:
        size = sum(file.place.stat().st_size for file in lacking)
        said.append(
            f"{url}: {len(lacking)} of {len(files)} files fetched, {size / 2**20:.3g} MiB, into "
            f"{cache()}"
        )
    if any(not file.version for file in files):
        said.append(f"{url}: its server tells no versions: a copy of the same size is kept")
    return said


def _without_server(key: str, url: str, reason: str) -> list[str]:
    """Take the copies as they are, if all are whole.

    Raises:
        DataError: they aren't.
    """
    places = _noted(url)
    if places and all(is_whole(place) for place in places):
        return [f"{url}: can't be reached: {reason}: the copy in {cache()} is taken"]
    raise DataError(f"--{key} {url}: can't be reached, and {cache()} has no whole copy: {reason}")


def _list_path(url: str) -> Path:
    name = hashlib.blake2b(url.encode(), digest_size=16).hexdigest()
    return cache() / "listings" / f"{name}.json"


def _noted(url: str) -> list[Path]:
    """The places of the copies when all were made last."""
    try:
        return [Path(text) for text in json.loads(_list_path(url).read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def fetch_together(
    launch: Launch, named: Sequence[tuple[str, str]], choose: Choose | None = None
) -> list[str]:
    """Make the copies of what some URLs name whole on every node; all processes call this.

    The first process of a node fetches, the others wait for it.

    Args:
        launch: this process among the run's, which have joined a process group if they are several.
        named: keys and their URLs.
        choose: as for :meth:`Source.files`.

    Returns:
        What the first process should say.

    Raises:
        UserError: one isn't there or can't be fetched, on some node.

    Comm: a text through the store.
    """

    def fetch() -> str:
        try:
            return json.dumps([text for key, url in named for text in fetched(key, url, choose)])
        except OSError as error:
            where = error.filename or cache()
            raise DataError(f"{where}: can't be written: {error.strerror or error}") from None

    said: list[str] = json.loads(text_of_node(launch, fetch) or "[]") if named else []
    return said
