"""HTTP of the loopback Hub: bodies, answers, and their failures; the routes are in `routes.py`."""

import json
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .faults import Request
from .store import HubError


class HttpHandler(BaseHTTPRequestHandler):
    """One connection to the Hub `self.server.hub`."""

    protocol_version = "HTTP/1.1"
    # A header and a body in two packets wait for each other.
    disable_nagle_algorithm = True
    wbufsize = 2**16

    def log_message(self, *arguments: Any) -> None:
        """Print nothing: requests are noted in the Hub."""

    def respond(self) -> None:
        """Answer a request; subclasses find out with what."""
        raise NotImplementedError

    def handle_request(self) -> None:
        """Note the request, let it fail if it is to, else answer it."""
        self.hub = self.server.hub
        self.body = self._read_body()
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.note = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        self.is_error = False
        try:
            if not self.url.path.startswith("/control/"):
                time.sleep(self.hub.strike(self.note))
            fault = self.note.fault
            if fault is not None and not fault.after:
                if fault.cut is not None and self._has_body():
                    self.drain(fault.cut)
                    self.close_connection = True
                    return
                if fault.status is not None:
                    raise HubError(fault.status, HTTPStatus(fault.status).phrase)
            self.respond()
        except HubError as error:
            self._answer_error(error)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def _has_body(self) -> bool:
        return "transfer-encoding" in self.headers or int(self.headers.get("content-length", 0)) > 0

    def _read_body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self._read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("content-length", 0))
        while left:
            chunk = self._read(min(left, 2**16))
            left -= len(chunk)
            yield chunk

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionError("The client left in the middle of a body.")
        return content

    def drain(self, size: float = float("inf")) -> None:
        """Read the rest of the body, or so many bytes of it."""
        while size > 0 and (chunk := next(self.body, b"")):
            size -= len(chunk)

    def json(self) -> Any:
        """The body as JSON."""
        try:
            return json.loads(b"".join(self.body) or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is no JSON: {error}") from error

    def answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with nothing."""
        content = b"" if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
        self.send(status, headers, [content])

    def _answer_error(self, error: HubError) -> None:
        self.is_error = True
        headers = {"X-Error-Message": error.message.split("\n")[0], "X-Error-Code": error.code}
        headers |= {"X-Repo-Commit": error.commit}
        if self.note.fault is not None and self.note.fault.retry_after is not None:
            headers["Retry-After"] = str(self.note.fault.retry_after)
        self.answer({"error": error.message}, error.status, {key: value for key, value in headers.items() if value})

    def send(self, status: int, headers: dict[str, str], content: Iterable[bytes]) -> None:
        """Send an answer, as far as a fault lets it through."""
        # Else the rest of the body is taken for the next request.
        self.drain()
        fault = self.note.fault
        if fault is not None and fault.status is not None and not self.is_error:
            raise HubError(fault.status, HTTPStatus(fault.status).phrase)
        left = float("inf") if fault is None or fault.cut is None else fault.cut
        if left == 0:
            self.close_connection = True
            return
        self.note.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in content if self.command != "HEAD" else ():
            self.wfile.write(chunk[: int(min(left, len(chunk)))])
            left -= len(chunk)
            if left < 0:
                self.note.status = 0
                self.close_connection = True
                return
