"""Base of the targets that a frozen network makes of the whole images."""

import contextlib
import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.integrations import deepspeed

from .masking import patch_grid
from .target import Target, to_colors

_loading = threading.RLock()


class FrozenNetworkTarget(Target):
    """Base of the targets that a frozen network makes.

    The network is no part of the model: neither parameters nor checkpoints know of it. It is loaded for the first
    loss, or by `load`. What a model's shape depends on is read from the network's config when the model is built, and
    kept in `target_options`, so that checkpoints load where the network is not.

    A prediction of stride S has ceil(H / S) x ceil(W / S) steps. The network, of stride s, sees the image padded to
    whole steps of S with its own border pixels, and resized by s / S (bicubic, antialiased): its grid is then that of
    the prediction. BEiT does so with 112 px for the 14 x 14 tokens of a 224 px image.

    Args:
        config: The SimMIM config. What was read of the network is written into its `target_options`.

    Raises:
        ValueError: If the network is none that fits, or cannot be found and is not described in `target_options`.
    """

    is_decodable = False
    own_stride: int  # of the network, in pixels
    network_channels: int  # of the images that the network takes
    kept_options: tuple[str, ...] = ("model_config",)  # read from the network where they are not set
    placeholder: tuple[int | None, torch.dtype] = (None, torch.float32)  # channels if fixed, and type of the target

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = self.options["model"]
        self._networks: dict[torch.device, nn.Module] = {}
        unset = [key for key in self.kept_options if self.options[key] is None]
        if unset:
            try:
                found = self.read()
            except OSError as error:
                raise self.error(
                    f"cannot be read: {one_line(error)}. Set model in target_options to a folder that save_pretrained"
                    " wrote, or a name on the Hub."
                ) from error
            config.target_options = config.target_options | {key: found[key] for key in unset}
            self.options = config.options("target")
        # Before anything that needs them, with the reason if they are not known.
        config.pixel_statistics()
        self.describe()
        self.stride = config.prediction_stride or self.own_stride
        if config.num_channels not in (1, self.network_channels):
            raise self.error(
                f"takes images of {self.network_channels} channels, and the encoder those of {config.num_channels}."
                " Use another target, or images of as many channels."
            )
        if config.prediction_stride is None and config.encoder_stride % self.own_stride:
            self._refuse_stride()

    def read(self) -> dict[str, Any]:
        """What the checkpoint says, for the options in `kept_options`."""
        raise NotImplementedError

    def describe(self) -> None:
        """Set `num_outputs`, `own_stride` and `network_channels` from the options."""
        raise NotImplementedError

    def load_network(self) -> nn.Module:
        """The network with its weights."""
        raise NotImplementedError

    def run(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The target of images in [0, 1] (B, C, h * own_stride, w * own_stride), under the autocast of the model."""
        raise NotImplementedError

    def stored_config(self) -> dict[str, Any]:
        """The config of the network as its checkpoint has it."""
        return PreTrainedConfig.get_config_dict(self.model)[0]

    def error(self, fault: str) -> ValueError:
        """An error that names the target and the network; the caller raises it."""
        return ValueError(f"target={self.config.target!r}: {self.model!r} {fault}")

    @torch.inference_mode(False)
    def load(self) -> None:
        """Load the network, unless it is there.

        Raises:
            ValueError: If it cannot be found, or is not what the config says.
        """
        with _loading:
            if self._networks:
                return
            try:
                # Loading draws numbers for weights that it then replaces: training is not to depend on when.
                with torch.random.fork_rng(devices=[]), torch.device("cpu"), _whole_weights():
                    network = self.load_network()
            except OSError as error:
                others = [
                    f", {key!r}: {value!r}"
                    for key, value in self.config.target_options.items()
                    if key not in ("model", "model_config")
                ]
                raise self.error(
                    f"cannot be loaded: {one_line(error)}. Without it there is no loss; all else works. Put it back,"
                    f" or say where it is: from_pretrained(..., target_options={{'model': ...{''.join(others)}}})."
                ) from error
            self._networks[torch.device("cpu")] = network.float().eval().requires_grad_(False)

    # A graph break: what the network computes is no part of the model's graph.
    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.is_meta:
            channels, dtype = self.placeholder
            grid_size = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.stride)
            shape = (pixel_values.shape[0], channels or self.num_outputs, *grid_size)
            return torch.empty(shape, dtype=dtype, device="meta")
        return self.run(self._network_on(pixel_values.device), self.images(pixel_values))

    def images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images with the model's normalisation undone, of the size and the channels that the network needs.

        Args:
            pixel_values: Normalised images of shape (B, C, H, W).

        Returns:
            float32 tensor (B, network_channels, ceil(H / S) * s, ceil(W / S) * s) for a stride of S of the prediction
            and s of the network.
        """
        images = to_colors(pixel_values.float(), self.config.pixel_statistics())
        height, width = images.shape[2:]
        rows, columns = patch_grid((height, width), self.stride)
        below, right = rows * self.stride - height, columns * self.stride - width
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        if self.stride != self.own_stride:
            size = (rows * self.own_stride, columns * self.own_stride)
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        return images.expand(-1, self.network_channels, -1, -1)

    def _network_on(self, device: torch.device) -> nn.Module:
        with _loading:
            self.load()
            if device not in self._networks:
                held, network = next(iter(self._networks.items()))
                if held.type == "cpu":
                    del self._networks[held]
                else:
                    network = copy.deepcopy(network)
                self._networks[device] = network.to(device)
            return self._networks[device]

    def _refuse_stride(self) -> None:
        encoder_stride = self.config.encoder_stride
        divisors = [step for step in range(1, encoder_stride + 1) if encoder_stride % step == 0]
        nearest = min(divisors, key=lambda step: abs(math.log(step / self.own_stride)))
        raise self.error(
            f"has one step for {self.own_stride} px, and the encoder one for {encoder_stride} px, which is no multiple."
            f" Set prediction_stride={nearest}: the images are then resized by {self.own_stride}/{nearest} for it."
        )

    def refuse_other_range(self, largest_mean: float = 1.0) -> None:
        """Refuse images that are not in [0, 1] for a network that needs them there; their means tell."""
        mean, _ = self.config.pixel_statistics()
        if max(mean) > 1 >= largest_mean:
            raise self.error(
                f"takes images in [0, 1], and image_mean={mean} is that of others. Rescale the images to [0, 1] before"
                " they are normalised."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files of a model go without the network, and load it when they need it.
        return self.__dict__ | {"_networks": {}}


def one_line(error: Exception) -> str:
    """An error's text as a part of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


@contextlib.contextmanager
def _whole_weights() -> Iterator[None]:
    """Keep transformers from sharding a network that every process needs, as it does for DeepSpeed's third stage."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
