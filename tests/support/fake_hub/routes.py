"""Which method of the loopback Hub answers which request; accounts, repositories and their revisions."""

import re
from urllib.parse import unquote, urlsplit

from .files import FileRoutes
from .store import HubError, Repository
from .uploads import UploadRoutes

REPOSITORY = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"

# Method, path, and the handler's method that gets the path's named parts.
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", r"/api/repos/create", "create_repository"),
    ("DELETE", r"/api/repos/delete", "delete_repository"),
    ("GET", REPOSITORY + r"(?:/revision/(?P<revision>[^/]+))?", "information"),
    ("GET", REPOSITORY + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", REPOSITORY + r"/paths-info/(?P<revision>[^/]+)", "paths_information"),
    ("GET", REPOSITORY + r"/refs", "refs"),
    ("GET", REPOSITORY + r"/commits/(?P<revision>[^/]+)", "commits"),
    ("GET", REPOSITORY + r"/auth-check(?P<write>/write)?", "check_access"),
    ("GET", REPOSITORY + r"/discussions", "discussions"),
    ("PUT", REPOSITORY + r"/settings", "change_settings"),
    ("POST", REPOSITORY + r"/branch/(?P<branch>[^/]+)", "create_branch"),
    ("DELETE", REPOSITORY + r"/branch/(?P<branch>[^/]+)", "delete_branch"),
    ("POST", REPOSITORY + r"/tag/(?P<revision>[^/]+)", "create_tag"),
    ("DELETE", REPOSITORY + r"/tag/(?P<tag>[^/]+)", "delete_tag"),
    ("POST", REPOSITORY + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPOSITORY + r"/commit/(?P<branch>[^/]+)", "commit"),
    ("GET", REPOSITORY + r"/xet-(?:read|write)-token/.+", "refuse_xet"),
    ("POST", PAGE + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", PAGE + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("GET", PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("POST", r"/control/faults", "add_fault"),
    ("DELETE", r"/control/faults", "remove_faults"),
    ("GET", r"/control/requests", "list_requests"),
]
STORAGE_ROUTES = [
    ("GET", r"/objects/(?P<sha256>\w+)", "stored"),
    ("PUT", r"/objects/(?P<sha256>\w+)", "store"),
    ("PUT", r"/parts/(?P<sha256>\w+)/(?P<number>\d+)", "store_part"),
    ("POST", r"/parts/(?P<sha256>\w+)", "join_parts"),
]


class HubHandler(FileRoutes, UploadRoutes):
    """Answers of the API and of the storage of large files."""

    def respond(self) -> None:
        """Find the route and take it."""
        is_storage = self.server.server_port == urlsplit(self.hub.storage_url).port
        if is_storage and "authorization" in self.headers:
            raise HubError(400, "Only one auth mechanism allowed")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, name in STORAGE_ROUTES if is_storage else ROUTES:
            match = re.fullmatch(pattern, self.url.path)
            if route_method == method and match:
                parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                if "kind" in parts:
                    parts["kind"] = parts["kind"] or "models"
                getattr(self, name)(**parts)
                return
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def whoami(self) -> None:
        """The owner of the token."""
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        user, *others = self.hub.namespaces
        organizations = [{"type": "org", "id": name, "name": name, "fullname": name} for name in others]
        access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        self.answer({"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": access})

    def validate_card(self) -> None:
        """Check a card's metadata."""
        from .cards import check_card

        request = self.json()
        errors, warnings = check_card(request["content"], request.get("repoType") or "model")
        if errors and "text/plain" in self.headers.get("accept", ""):
            content = "\n".join(errors).encode()
            self.send(400, {"Content-Type": "text/plain", "Content-Length": str(len(content))}, [content])
            return
        value = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        self.answer(value, 400 if errors else 200)

    def create_repository(self) -> None:
        """Make a repository; 409 if it exists."""
        request = self.json()
        kind = f"{request.get('type') or 'model'}s"
        name = f"{request.get('organization') or self.hub.namespaces[0]}/{request['name']}"
        self.check_write(name)
        address = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        try:
            self.hub.store.create(kind, name, is_private)
        except HubError as error:
            self.answer({"error": str(error), "url": address}, error.status)
            return
        self.answer({"url": address, "name": name, "id": name})

    def delete_repository(self) -> None:
        """Delete a repository."""
        request = self.json()
        kind = f"{request.get('type') or 'model'}s"
        name = f"{request.get('organization') or self.hub.namespaces[0]}/{request['name']}"
        self.hub.store.delete(self.open_repository(kind, name, write=True))
        self.answer()

    def change_settings(self, kind: str, name: str) -> None:
        """Make a repository private or public, gated or open."""
        request = self.json()
        repository = self.open_repository(kind, name, write=True)
        if "visibility" in request:
            request["private"] = request["visibility"] == "private"
        repository.save(**{key: request[key] for key in ("private", "gated") if key in request})
        self.answer({key: repository.settings[key] for key in ("private", "gated")})

    def check_access(self, kind: str, name: str, write: str | None) -> None:
        """Whether this request may read, or write, a repository."""
        self.open_repository(kind, name, write=write is not None, content=True)
        self.answer()

    def refuse_xet(self, kind: str, name: str) -> None:
        """Tell what a client without HF_HUB_DISABLE_XET asks for."""
        raise HubError(404, "Xet is not served here: set HF_HUB_DISABLE_XET=1.")

    def discussions(self, kind: str, name: str) -> None:
        """None: transformers asks for them."""
        self.open_repository(kind, name)
        self.answer({"discussions": [], "count": 0, "start": 0})

    def create_branch(self, kind: str, name: str, branch: str) -> None:
        """Start a branch."""
        start = self.json().get("startingPoint", "main")
        self._add_ref(self.open_repository(kind, name, write=True), "branches", branch, start)

    def create_tag(self, kind: str, name: str, revision: str) -> None:
        """Tag a revision."""
        tag = self.json()["tag"]
        self._add_ref(self.open_repository(kind, name, write=True), "tags", tag, revision)

    def _add_ref(self, repository: Repository, kind: str, name: str, revision: str) -> None:
        with self.hub.store.lock:
            refs = repository.settings[kind]
            if name in refs:
                raise HubError(409, f"Reference already exists: {name}")
            repository.save(**{kind: refs | {name: repository.resolve(revision)}})
        self.answer(status=201)

    def delete_branch(self, kind: str, name: str, branch: str) -> None:
        """Delete a branch but main."""
        if branch == "main":
            raise HubError(403, "Cannot delete the main branch")
        self._delete_ref(self.open_repository(kind, name, write=True), "branches", branch)

    def delete_tag(self, kind: str, name: str, tag: str) -> None:
        """Delete a tag."""
        self._delete_ref(self.open_repository(kind, name, write=True), "tags", tag)

    def _delete_ref(self, repository: Repository, kind: str, name: str) -> None:
        with self.hub.store.lock:
            refs = repository.settings[kind]
            if name not in refs:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            repository.save(**{kind: {key: oid for key, oid in refs.items() if key != name}})
        self.answer()

    def add_fault(self) -> None:
        """Let requests fail."""
        try:
            self.hub.fail(**self.json())
        except (TypeError, ValueError) as error:
            raise HubError(400, str(error)) from error
        self.answer()

    def remove_faults(self) -> None:
        """Let no request fail any more."""
        self.hub.recover()
        self.answer()

    def list_requests(self) -> None:
        """Requests until now."""
        self.answer([{"method": note.method, "path": note.path, "status": note.status} for note in self.hub.requests])
