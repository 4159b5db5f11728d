"""As much of the hub, on loopback, as its client asks for: folders as repositories, some of them gated."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repositories: Mapping[str, Path], gated: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve {org/name: folder}; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            api = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            repo, rest = "/".join(parts[:2]), parts[2:]
            if repo not in repositories and repo not in gated:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            if api and rest[:1] != ["tree"]:
                files = [{"rfilename": name} for name in _files(repositories.get(repo))]
                return self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files}, body)
            if api:
                root = repositories[repo]
                tree = [
                    {"type": "file", "path": n, "size": (root / n).stat().st_size, "oid": _oid(root / n)}
                    for n in _files(root)
                ]
                return self._json(tree, body)
            if repo in gated:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            file = repositories[repo] / "/".join(rest[2:])  # after resolve/<revision>/
            if not file.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            headers = {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": COMMIT}
            return self._send(200, file.read_bytes(), headers, body)

        def _json(self, value: object, body: bool) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(address: str, home: Path) -> dict[str, str]:
    """Variables that make the hub's client ask this server and keep its files in `home`."""
    return {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def _files(root: Path | None) -> list[str]:
    return [str(file.relative_to(root)) for file in sorted(root.rglob("*")) if file.is_file()] if root else []


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
