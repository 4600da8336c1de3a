"""Makes torchvision importable where only its compiled part is missing."""

import importlib
import importlib.util
import sys

import torch


def import_torchvision() -> None:
    """A torchvision built for another torch fails to import, and takes transformers with it, for want of two operators.

    Its transforms, all that the image processor uses, are pure Python: they work once the operators' schemas exist.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        importlib.import_module("torchvision")
