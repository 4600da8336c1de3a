"""Pushes to the Hub that are whole, go on in the background, and never stop a training.

What is pushed is a snapshot and becomes one commit, so that what is on the Hub can be loaded at any time. A push that
fails is tried again after growing pauses until it is through, or until a newer one stands for it. The last one of a run
is waited for.
"""

import contextlib
import itertools
import math
import shlex
import shutil
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.utils import logging

from .snapshots import SNAPSHOT_PREFIX, Push

logger = logging.get_logger(__name__)

# Seconds until a push that failed is tried again; the last pause repeats.
PAUSES = (5.0, 15.0, 60.0, 300.0, 900.0)
# Seconds that the last push of a run is tried for after it failed, and where the Hub refuses it, which waiting seldom
# mends. Its pauses are shorter: where half of all requests fail, one try in five gets through.
PATIENCE = 1200.0
PATIENCE_IF_REFUSED = 15.0
LONGEST_LAST_PAUSE = 45.0
# Seconds to wait for a connection, for reading, for writing and for a free connection; huggingface_hub waits for ever.
TIMEOUTS = (30.0, 600.0, 600.0, 30.0)


class HubPushes:
    """The repository that a run is pushed to, and the thread that does it; one process of a run has one.

    Args:
        output_dir: Folder of the run.
        repo_id: Name of the repository, "organization/name" or "name".
        token: Token with the right to write; the one that is logged in with if None.
        private: Whether a new repository is private; as its owner has it by default if None.
        revision: Branch to push to, made if it is missing; main if None.
        keep_all: Whether every push is tried, in order; else the newest of those that wait stands for them.

    Raises:
        ValueError: If a repository cannot have this name.
    """

    def __init__(
        self,
        output_dir: Path,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        keep_all: bool = False,
    ):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(
                f"{repo_id!r} cannot be the name of a repository on the Hub: {error} Give another one as"
                " --hub_model_id, such as my-organization/my-model."
            ) from error
        self.output_dir, self.repo_id = output_dir, repo_id
        self.token, self.private, self.revision = token, private, revision
        self.keep_all = keep_all
        self.num_failed = 0
        self._branches: set[str | None] = set()
        self._waiting: deque[Push] = deque()
        self._changed = threading.Condition()
        self._is_uploading = False
        self._is_interrupted = False
        self._thread: threading.Thread | None = None

    @classmethod
    def from_arguments(
        cls, arguments: TrainingArguments, token: str | None = None, private: bool | None = None
    ) -> "HubPushes":
        """The repository that training arguments name, made if it is missing and the Hub can be reached.

        Args:
            arguments: With `hub_model_id`, by default the name of `output_dir`, and the other options of the Hub.
            token: Instead of that of the arguments.
            private: Instead of that of the arguments.

        Raises:
            ValueError: If it will never be possible to push.
        """
        output_dir = Path(str(arguments.output_dir))
        pushes = cls(
            output_dir,
            arguments.hub_model_id or output_dir.absolute().name,
            arguments.hub_token if token is None else token,
            arguments.hub_private_repo if private is None else private,
            arguments.hub_revision,
            arguments.hub_always_push,
        )
        if pushes.token is None and get_token() is None:
            raise ValueError(
                f"To push to {pushes.repo_id!r} a token of the Hub is needed, with the right to write. Run `hf auth"
                " login`, or give one as --hub_token."
            )
        # What a run left here that was killed.
        for leftover in output_dir.glob(f"{SNAPSHOT_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            pushes.open(pushes.revision)
        except Exception as error:
            if is_refusal(error) and not isinstance(error, OfflineModeIsEnabled):
                raise ValueError(
                    f"The Hub ({HfApi().endpoint}) does not let {pushes.repo_id!r} be pushed to: {reason(error)}. Run"
                    " `hf auth login` or give a --hub_token with the right to write there, or name another"
                    " --hub_model_id."
                ) from error
            logger.warning(
                f"The Hub ({HfApi().endpoint}) cannot be reached: {reason(error)}. Training goes on without it;"
                f" {pushes.repo_id} is made by the first push that gets through."
            )
        return pushes

    @property
    def upload_command(self) -> str:
        """What to type to push by hand."""
        parts = ["hf", "upload", self.repo_id, str(self.output_dir), "."]
        # What may be private, and what only a run can use.
        parts += [part for pattern in ("checkpoint-*", "_*", "*.txt") for part in ("--exclude", pattern)]
        parts += [] if self.revision is None else ["--revision", self.revision]
        parts += ["--private"] if self.private else []
        return shlex.join(parts)

    def open(self, revision: str | None) -> HfApi:
        """Make repository and branch, if they are missing.

        Returns:
            The client.
        """
        get_session().timeout = TIMEOUTS
        api = HfApi()
        if revision not in self._branches:
            self.repo_id = api.create_repo(self.repo_id, token=self.token, private=self.private, exist_ok=True).repo_id
            try:
                # That a repository exists is no error, with whatever token.
                api.auth_check(self.repo_id, token=self.token, write=True)
            except Exception as error:
                # Not every Hub has this check.
                if _status(error) in (401, 403):
                    raise
            # Pull requests are no branches that could be made.
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(self.repo_id, branch=revision, token=self.token, exist_ok=True)
            self._branches.add(revision)
        return api

    def submit(self, push: Push) -> None:
        """Push in the background. `push.result` will hold the commit, or None if it did not get through."""
        with self._changed:
            while self._waiting and not self.keep_all:
                push.supersede(self._waiting.popleft())
            self._waiting.append(push)
            self._is_interrupted = False
            self._changed.notify_all()
        if self._thread is None:
            # A daemon, for nobody wants to wait for it when training has failed.
            self._thread = threading.Thread(target=self._work, name="pushes to the Hub", daemon=True)
            self._thread.start()

    def wait(self, push: Push) -> CommitInfo | None:
        """Wait for a push. An interrupt ends the waiting and the pushing.

        Returns:
            The commit, or None if the push is given up.
        """
        try:
            while True:
                # In pieces, for on some platforms an interrupt is heard only between them.
                with contextlib.suppress(TimeoutError):
                    return push.result.result(timeout=1.0)
        except KeyboardInterrupt:
            with self._changed:
                self._is_interrupted = True
                self._changed.notify_all()
            logger.error(f"Interrupted: {self.output_dir} is not pushed yet. {self._by_hand}")
            raise

    def settle(self, limit: float = 60.0) -> None:
        """Wait until every push was tried; those that failed will be tried again.

        Args:
            limit: Seconds to wait at most, for other processes wait meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_uploading, timeout=limit)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                push = self._waiting.popleft()
                self._is_uploading = True
            self._deliver(push)

    def _deliver(self, push: Push) -> None:
        """Try until it is through, or given up, or a newer one waits that stands for it."""
        first_failure = None
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            failure, commit, patience = None, None, math.inf
            try:
                commit = self._commit(push)
            except Exception as error:
                failure = reason(error)
                if push.is_last:
                    patience = PATIENCE_IF_REFUSED if is_refusal(error) else PATIENCE
            with self._changed:
                self._is_uploading = False
                self._changed.notify_all()
                if failure is None:
                    push.finish(commit)
                    return
                if first_failure is None:
                    first_failure = time.monotonic()
                    self.num_failed += 1
                    self._warn(push, failure, patience)
                rest = first_failure + patience - time.monotonic()
                longest = min(rest, LONGEST_LAST_PAUSE) if push.is_last else rest
                self._changed.wait_for(lambda: self._waiting or self._is_interrupted, timeout=min(pause, longest))
                if self._waiting:
                    self._waiting[0].supersede(push)
                    return
                if rest <= 0 and not self._is_interrupted:
                    logger.error(f"{self.output_dir} could not be pushed to {self.repo_id}: {failure}. {self._by_hand}")
                if rest <= 0 or self._is_interrupted:
                    push.finish(None)
                    return
                self._is_uploading = True

    def _commit(self, push: Push) -> CommitInfo:
        """One commit of everything, so that nobody ever finds half of it."""
        api = self.open(push.revision)
        target: dict[str, Any] = {"repo_id": self.repo_id, "revision": push.revision, "token": self.token}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name, is_folder=False) for name in push.obsolete(api.list_repo_files(**target))
        ]
        operations += [CommitOperationAdd(name, str(path)) for name, path in push.paths().items()]
        try:
            return api.create_commit(operations=operations, commit_message=push.message, **target)
        except ValueError as error:
            if "README.md" not in push.files or "metadata in README.md" not in str(error):
                raise
            logger.warning(f"The Hub refuses the model card ({reason(error)}); it is left out of the repository.")
            del push.files["README.md"]
            return self._commit(push)

    def _warn(self, push: Push, failure: str, patience: float) -> None:
        text = f"Could not push to {self.repo_id} ({push.message}): {failure}."
        if push.is_last:
            text += f" It is tried again for {patience:.0f} s; interrupt to stop waiting."
        else:
            text += " Training goes on, its checkpoints stay on disk, and it is tried again."
        logger.warning(text)

    @property
    def _by_hand(self) -> str:
        return f"Everything is in {self.output_dir}; to push it by hand: {self.upload_command}"


def open_hub(arguments: TrainingArguments) -> HubPushes | None:
    """Find out before any work whether a run can be pushed; all processes must call it.

    Args:
        arguments: Those of the run.

    Returns:
        In the first process of a run that is pushed, where to; else None.

    Raises:
        ValueError: If it will never be possible to push; in all processes alike.
    """
    if not arguments.push_to_hub:
        return None
    pushes, refusal = None, [""]
    if arguments.process_index == 0:
        try:
            pushes = HubPushes.from_arguments(arguments)
        except ValueError as error:
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise ValueError(refusal[0])
    return pushes


def is_refusal(error: Exception) -> bool:
    """Whether the Hub, or this machine's settings, refuse a push, rather than the network failing."""
    if isinstance(error, OfflineModeIsEnabled | HFValidationError):
        return True
    status = _status(error)
    # Timeouts, conflicts with another commit, and too many requests pass.
    return status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    status, told = _status(error), getattr(error, "server_message", None)
    text = f"{status} {told}" if status is not None and told else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(".")
