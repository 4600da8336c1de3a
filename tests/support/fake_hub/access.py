"""Who may do what on the loopback Hub, and pages of its listings."""

from typing import Any
from urllib.parse import urlencode

from .handler import HttpHandler
from .store import HubError, Repository


class AccessHandler(HttpHandler):
    """What all routes share."""

    def role(self) -> str | None:
        """What the token of this request may do: "write", "read", or None without one; 401 for an unknown one."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.roles:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.roles.get(token)

    def check_write(self, name: str) -> None:
        """Refuse a request that may not write to a repository of this name."""
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if name.split("/")[0] not in self.hub.namespaces:
            raise HubError(403, f"You don't have the rights to write to {name}")

    def open_repository(self, kind: str, name: str, write: bool = False, content: bool = False) -> Repository:
        """The repository, if this request may see it, write it, or read its content."""
        role = self.role()
        hidden = HubError(404 if role else 401, "Repository not found", "RepoNotFound")
        is_member = role is not None and name.split("/")[0] in self.hub.namespaces
        try:
            repository = self.hub.store.get(kind, name)
        except HubError:
            raise hidden from None
        settings = repository.settings
        if settings["private"] and not is_member:
            raise hidden
        if content and settings["gated"] and not is_member:
            raise HubError(403 if role else 401, f"Access to {kind[:-1]} {name} is restricted.", "GatedRepo")
        if write:
            self.check_write(name)
        return repository

    def flag(self, name: str) -> bool:
        """Whether a parameter of the query is true."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def answer_page(self, values: list[Any]) -> None:
        """Answer with the page of a listing that the cursor asks for, and a link to the next one."""
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        headers = {}
        if end < len(values):
            query = urlencode({key: value[0] for key, value in self.query.items()} | {"cursor": end})
            headers["Link"] = f'<{self.hub.url}{self.url.path}?{query}>; rel="next"'
        self.answer(values[start:end], headers=headers)
