"""Pictures of a training for the trackers that Trainer reports to."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

logger = logging.get_logger(__name__)


class TrackerImages:
    """Logs pictures to the trackers that `report_to` names: TensorBoard, trackio and Weights & Biases.

    A tracker that fails is warned of once and tried again the next time; the training goes on.

    Args:
        callback_handler: That of the trainer, which holds the trackers' callbacks.
    """

    def __init__(self, callback_handler: CallbackHandler):
        self.callback_handler = callback_handler
        self.failed: set[str] = set()

    def log(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture; to be called by the first process only, while the trackers' runs are open.

        Args:
            name: What it is called there.
            picture: The picture.
            step: Training step that it belongs to.
        """
        for callback in self.callback_handler.callbacks:
            for kind, (tracker, send) in _TRACKERS.items():
                if not isinstance(callback, kind):
                    continue
                try:
                    send(callback, name, picture, step)
                except Exception as error:  # of networks, disks and versions: each tracker has its own kinds
                    if tracker not in self.failed:
                        logger.warning(
                            f"{tracker} did not take the picture {name!r} of step {step}"
                            f" ({type(error).__name__}: {error}). The training goes on; this is said once."
                        )
                    self.failed.add(tracker)


def _to_tensorboard(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
    callback.tb_writer.flush()


def _to_wandb(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    wandb = importlib.import_module("wandb")
    # The axis that transformers gives all its metrics; W&B's own step counts calls.
    wandb.log({name: wandb.Image(picture), "train/global_step": step})


def _to_trackio(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    trackio = importlib.import_module("trackio")
    trackio.log({name: trackio.Image(picture), "train/global_step": step})


_TRACKERS: dict[type, tuple[str, Callable[[Any, str, Image.Image, int], None]]] = {
    TensorBoardCallback: ("TensorBoard", _to_tensorboard),
    TrackioCallback: ("trackio", _to_trackio),
    WandbCallback: ("Weights & Biases", _to_wandb),
}
