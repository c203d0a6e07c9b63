"""A server that speaks the Hugging Face Hub's protocol for the models below a folder."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

LISTING = re.compile(
    r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+?)(/revision/(?P<revision>[^/?]+))?"
)
FILE = re.compile(r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")


class Hub:
    """Models ``OWNER/NAME`` as folders of those names.

    Attributes:
        folder: has them.
        gated: models that are given to those who ask.
        asked: method and path of each request, in order.
        url: of the server.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.gated, self.asked, self.url = folder, set[str](), list[str](), ""

    def commit(self, repo: str) -> str:
        """The commit of a model's main branch: another content has another."""
        digest = hashlib.sha1()
        for path in self.files(repo):
            digest.update(path.encode() + (self.folder / repo / path).read_bytes())
        return digest.hexdigest()

    def files(self, repo: str) -> list[str]:
        root = self.folder / repo
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        found = (FILE.fullmatch(line.removeprefix("GET ")) for line in self.asked)
        return [match["file"] for match in found if match]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a path."""
        match = LISTING.fullmatch(path) or FILE.fullmatch(path)
        if match is None:
            return 404, {}, b""
        repo, revision = match["repo"], match["revision"] or "main"
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not (self.folder / repo).is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.commit(repo)
        if revision not in ("main", commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if match.re is LISTING:
            siblings = [{"rfilename": file} for file in self.files(repo)]
            said: dict[str, Any] = {"id": repo, "modelId": repo, "sha": commit}
            body = json.dumps(said | {"siblings": siblings, "tags": []}).encode()
            return 200, {"Content-Type": "application/json"}, body
        file = self.folder / repo / match["file"]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, content


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve the models below a folder while the block lasts."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reach(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, offline: bool = False) -> None:
    """Let the Hub's library, in this process, ask a server and keep files in a folder."""
    files = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
