"""A Hub on this machine for huggingface_hub's real client: repositories, commits, LFS, downloads; fails on demand.

In a test, the fixture `hub` (conftest.py) leads this process to a new, empty Hub, with caches of its own:

    def test_push(hub, tmp_path):
        model.push_to_hub("org/tiny")                            # the real client, real HTTP
        AutoModel.from_pretrained("org/tiny")
        hub.files("org/tiny")["config.json"]                     # content of main; revision="v1" for another
        hub.titles("org/tiny")                                   # of all commits, the last one first
        subprocess.run([...], env=hub.environment(tmp_path))     # another process, the same Hub, caches in tmp_path

        hub.fail(status=503, share=0.5, seed=0)                  # half of all requests, until hub.recover()
        hub.fail(status=429, retry_after=1, times=2, method="POST", path="/commit/")
        hub.fail(status=500, after=True, path="/commit/")        # carried out, but the client does not learn it
        hub.fail(cut=1000, times=1, method="GET|PUT")            # the connection ends after 1000 bytes of the body
        hub.fail(status=507, method="PUT")                       # full
        hub.fail(delay=3.0)                                      # slow
        [request.path for request in hub.requests if request.method == "PUT"]

`huggingface_hub` waits 1, 2, 4, ... seconds between tries; in the test's own process the fixture makes it nothing.

Without the fixture: `with HubServer(folder) as hub:`, and `hub.environment(...)` for other processes. In a process of
its own, `PYTHONPATH=tests/support python -m fake_hub --folder F [--port P]` prints the client's settings; a POST of the
arguments of `fail` as JSON to /control/faults sets a fault, DELETE takes all back, GET /control/requests lists what was
asked.

`hub.token` writes in the namespaces "user" and "org", `hub.read_token` only reads, others are refused with 401; what
is public is read without. `hub.add("org/photos", {"a.png": content}, kind="datasets")` makes a repository without a
client, in any namespace, `private=True` or `gated="auto"` if wanted. What main shows is always a whole commit. Large
files lie on a second port, which refuses tokens as the Hub's storage does. Pull requests and Xet are not served:
huggingface_hub uses Xet without asking, so the fixture and `hub.environment` set HF_HUB_DISABLE_XET.
"""

import os
import re
import sys
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .faults import Fault, Request
from .routes import HubHandler
from .store import Store


class HubServer:
    """A Hub on this machine, over a folder; serves inside `with`.

    Args:
        folder: Where its repositories lie; what is there is served.
        port: Port of the API; 0 takes a free one.
        page_size: Entries in a page of a listing.
        multipart_size: Bytes above which a file is uploaded in parts of that size.
    """

    token = "hf_writes"
    read_token = "hf_reads"

    def __init__(self, folder: Path, port: int = 0, page_size: int = 1000, multipart_size: int = 5 * 2**20) -> None:
        self.store = Store(Path(folder))
        self.page_size, self.multipart_size = page_size, multipart_size
        self.roles = {self.token: "write", self.read_token: "read"}
        self.namespaces = ("user", "org")
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._servers = [_Listener(self, port), _Listener(self, 0)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fail(self, **settings: Any) -> Fault:
        """Let requests fail from now on; the arguments are those of `Fault`."""
        fault = Fault(**settings)
        with self._lock:
            self._faults.append(fault)
        return fault

    def recover(self) -> None:
        """Let no request fail any more."""
        with self._lock:
            self._faults.clear()

    def strike(self, request: Request) -> float:
        """Note a request and the fault that it meets, if any; return seconds to wait."""
        with self._lock:
            self.requests.append(request)
            struck = [fault for fault in self._faults if fault.strikes(request.method, request.path)]
        request.fault = next((fault for fault in struck if fault.status is not None or fault.cut is not None), None)
        return sum(fault.delay for fault in struck)

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        kind: str = "models",
        private: bool = False,
        gated: str | bool = False,
    ) -> str:
        """Commit files, into a new repository if there is none of this name, and return the commit's name."""
        exists = name in self.store.names(kind)
        repository = self.store.get(kind, name) if exists else self.store.create(kind, name)
        repository.save(private=private, gated=gated)
        return repository.add_files(files)

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Contents of all files of a revision."""
        repository = self.store.get(kind, name)
        return {path: repository.file(path, revision) for path in repository.commit(revision).files}

    def titles(self, name: str, revision: str = "main", kind: str = "models") -> list[str]:
        """Titles of the commits of a revision, the last one first."""
        return [commit.title for commit in self.store.get(kind, name).history(revision)]

    def environment(self, home: Path, **others: str) -> dict[str, str]:
        """Environment of a process that uses this Hub, and keeps its caches in a folder."""
        outside = re.compile(r"HF_.*|HUGGING.*|TRANSFORMERS_.*|.*_proxy", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not outside.fullmatch(name)}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1",
        }
        return kept | settings | others


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), HubHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that leave in the middle are part of the tests.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
