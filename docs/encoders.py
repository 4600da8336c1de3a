"""Print docs/encoders.md: every vision model of the installed transformers as an encoder, with the checks it passed.

    python docs/encoders.py > docs/encoders.md       all of them, about ten minutes on two cores
    python docs/encoders.py vit swin                 some of them

Each model is built from its default config with fewer layers and random weights, so nothing is downloaded.
"""

import contextlib
import gc
import logging
import platform
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.encoders import transformers_class
from hf_simmim.model.masking import random_mask, to_pixels

ROUTES = {
    "own": "our own module",
    "native": "its own mask token",
    "tokens": "mask token behind its patch embedding",
    "pixels": "mask patch in pixel space",
}
# Larger images only cost time.
LARGEST_SIDE = 256
NUM_LOCATED = 4


@dataclass
class Verdict:
    """Result of trying one model as an encoder."""

    name: str
    rejection: str | None = None
    geometry: Any = None
    leak: float = float("nan")  # largest change of a feature where masked pixels change
    located: int = 0  # how many of NUM_LOCATED positions of the feature map depend most on their own pixels
    is_finite: bool = False
    reloads: bool = False
    export: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether everything that is promised of an accepted encoder holds."""
        # Random convolutions blur.
        needed = NUM_LOCATED if self.geometry.layout == "tokens" else NUM_LOCATED - 1
        return self.leak == 0 and self.located >= needed and self.is_finite and self.reloads


def vision_models() -> list[str]:
    """Model types whose bare model takes images as its main input, of those that this environment can build."""
    names = []
    for name in sorted(CONFIG_MAPPING):
        # Some configs have no defaults, and some classes need libraries that are not here.
        with contextlib.suppress(Exception):
            model_class = transformers_class(CONFIG_MAPPING[name]())
            if model_class is None or not model_class.__module__.startswith("transformers."):
                continue
            if model_class.main_input_name == "pixel_values":
                names.append(name)
    return names


def smaller(name: str) -> list[Any]:
    """Configs to try, the smallest first: few layers and small images, small images, the default."""
    default = CONFIG_MAPPING[name]()
    small: dict[str, Any] = {}
    side = getattr(default, "image_size", None)
    if isinstance(side, int) and side > LARGEST_SIDE:
        patch_size = getattr(default, "patch_size", None)
        small["image_size"] = 16 * patch_size if isinstance(patch_size, int) else LARGEST_SIDE
    shallow: dict[str, Any] = {}
    for key in ("depths",) if hasattr(default, "depths") else ("num_hidden_layers", "num_layers"):
        depth = getattr(default, key, None)
        if isinstance(depth, int):
            shallow[key] = min(2, depth)
        elif isinstance(depth, (list, tuple)):
            shallow[key] = [min(2, stage_depth) for stage_depth in depth]
    for key, value in vars(default).items():
        if isinstance(value, PreTrainedConfig) and isinstance(getattr(value, "num_hidden_layers", None), int):
            shallow[key] = value.to_dict() | {"num_hidden_layers": min(2, value.num_hidden_layers)}
    configs = []
    for changes in (small | shallow, small):
        with contextlib.suppress(Exception):
            configs.append(CONFIG_MAPPING[name](**changes))
    return [*configs, default]


def build(name: str) -> SimMIMForMaskedImageModeling:
    """The model with the smallest config that works."""
    configs = smaller(name)
    for index, encoder_config in enumerate(configs):
        torch.manual_seed(0)
        try:
            config = SimMIMConfig(encoder_config=encoder_config)
            config.encoder_stride  # noqa: B018  rejects what cannot be an encoder, before memory is allocated for it
            return SimMIMForMaskedImageModeling(config)
        except Exception:
            if index == len(configs) - 1:
                raise
    raise AssertionError


def examine(name: str) -> Verdict:
    """Try one model as an encoder."""
    try:
        model = build(name).eval()
    except (ValueError, ImportError, StrictDataclassError) as error:
        reason = str(error)
        if isinstance(error, ImportError):
            library = reason.split(" but it was not found")[0].strip()
            reason = f"{library}, which was not installed when this was printed."
        return Verdict(name, rejection=" ".join(reason.split()))
    verdict = Verdict(name, geometry=model.simmim.geometry)
    config, geometry = model.config, model.simmim.geometry
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # A parameter that starts at zero, or nearly so, would conceal what depends on it.
            starts_at_zero = parameter.numel() and parameter.abs().max() < 1e-3
            if parameter.ndim < 2 or starts_at_zero or "token" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    wake(model)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, config.num_channels, *config.image_size, generator=generator)
    unit_size = max(1, geometry.stride // geometry.patch_size)
    mask = random_mask(config.grid_size, 0.6, 2, unit_size=unit_size, generator=generator)
    with torch.no_grad():
        features = model.simmim(pixel_values, bool_masked_pos=mask).feature_map
        masked = to_pixels(mask, geometry.patch_size, config.image_size)[:, None]
        noise = torch.randn(pixel_values.shape, generator=generator) * 10
        changed = model.simmim(torch.where(masked, noise, pixel_values), bool_masked_pos=mask).feature_map
        verdict.leak = (changed - features).abs().max().item()
        if torch.equal(features, model.simmim(pixel_values).feature_map):
            verdict.failures.append("masking changes nothing")
    verdict.located = located(model.simmim, pixel_values[:1])

    model.train()
    outputs = model(pixel_values, bool_masked_pos=mask)
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    verdict.is_finite = bool(outputs.reconstruction.isfinite().all()) and all(
        gradient.isfinite().all() for gradient in gradients
    )
    model.zero_grad()
    model.eval()

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask).reconstruction
        model.save_pretrained(folder)
        reloaded, info = SimMIMForMaskedImageModeling.from_pretrained(folder, output_loading_info=True)
        weights = reloaded.state_dict()
        verdict.reloads = (
            not any(info.values())
            and all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
            and close(reloaded(pixel_values, bool_masked_pos=mask).reconstruction, expected)
        )
        del reloaded, weights
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            model.export_encoder(folder)
            stock = AutoModel.from_pretrained(folder)
            again = SimMIMForMaskedImageModeling.from_encoder(folder)
            same = close(again.simmim(pixel_values).feature_map, model.simmim(pixel_values).feature_map)
            verdict.export = f"{type(stock).__name__}" + ("" if same else ", read back differently")
            if not same:
                verdict.failures.append("the exported checkpoint is read back differently")
        except ValueError as error:
            verdict.export = " ".join(str(error).split())
    return verdict


@torch.no_grad()
def wake(model: SimMIMForMaskedImageModeling) -> None:
    """Give batch norms the statistics of noise: without them, the output of random layers vanishes in deep networks."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    for _ in norms[:1]:
        images = torch.randn(4, model.config.num_channels, *model.config.image_size)
        model.simmim(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two outputs differ by rounding at most, which depends on where in memory the weights lie."""
    return bool((first - second).norm() <= 1e-5 * second.norm())


def located(model: Any, pixel_values: torch.Tensor) -> int:
    """How many of some positions of the feature map depend most on their own pixels."""
    stride = model.geometry.stride
    pixel_values = pixel_values.clone().requires_grad_()
    feature_map = model(pixel_values).feature_map
    rows, columns = feature_map.shape[2:]
    direction = torch.randn(feature_map.shape[1], generator=torch.Generator().manual_seed(0))
    count = 0
    for index in range(NUM_LOCATED):
        row, column = (rows // 2 + index) % rows, (columns // 3 + 2 * index) % columns
        (gradient,) = torch.autograd.grad(feature_map[0, :, row, column] @ direction, pixel_values, retain_graph=True)
        padding = (0, columns * stride - gradient.shape[3], 0, rows * stride - gradient.shape[2])
        weight = torch.nn.functional.pad(gradient.abs().sum(1), padding)[0]
        weight = weight.view(rows, stride, columns, stride).sum((1, 3))
        most = divmod(int(weight.argmax()), columns)
        # A wrong number of prefix tokens shifts by one; maps of convolutions have none, and blur.
        tolerance = 0 if model.geometry.layout == "tokens" else 1
        count += max(abs(most[0] - row), abs(most[1] - column)) <= tolerance
    return count


def row(verdict: Verdict) -> str:
    """A line of the table of accepted encoders."""
    geometry = verdict.geometry
    cells = [
        f"`{verdict.name}`",
        ROUTES[geometry.route],
        geometry.patch_size,
        geometry.stride,
        geometry.hidden_size,
        geometry.num_prefix_tokens,
        f"{verdict.leak:g}",
        f"{verdict.located}/{NUM_LOCATED}",
        "yes" if verdict.is_finite else "**no**",
        "yes" if verdict.reloads else "**no**",
        verdict.export,
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:] or vision_models()
    verdicts = []
    for index, name in enumerate(names):
        print(f"{index + 1}/{len(names)} {name}", file=sys.stderr, flush=True)
        try:
            verdicts.append(examine(name))
        except Exception as error:
            sys.exit(f"{name} is accepted, and then fails: {type(error).__name__}: {error}")
        gc.collect()
    accepted = [verdict for verdict in verdicts if verdict.rejection is None]
    rejected = [verdict for verdict in verdicts if verdict.rejection is not None]
    print(
        f"""# Encoders

`SimMIMConfig(encoder_config=...)` accepts {len(accepted)} of the {len(names)} vision models of transformers
{transformers.__version__} and rejects {len(rejected)} with an explanation. `python docs/encoders.py` printed this
page (torch {torch.__version__}, {platform.machine()}, float32, random weights, default configs with fewer layers).

- **masked by**: how patches are masked. Masked pixels are replaced before any encoder sees them; then the encoder's
  mask token, ours behind its patch embedding, or a learned patch of pixels marks their positions.
- **patch**: grid of `bool_masked_pos`, in pixels. **stride**: output stride of the feature map, in pixels; it has **D**
  channels. **prefix**: class, distillation and register tokens, which are not part of it.
- **leak**: largest change of any feature when all masked pixels change.
- **place**: how many of {NUM_LOCATED} positions of the feature map depend most on their own pixels (or those of a
  neighbor, for convolutional feature maps), by the gradient.
- **finite**: loss, reconstruction and all gradients. **reload**: `save_pretrained` and `from_pretrained` give the
  same reconstruction, no tensor missing or left over.
- **export**: the class that plain `AutoModel.from_pretrained` loads from the files of `export_encoder`, with the same
  features; `from_encoder` reads them back with the same features, too.

| encoder | masked by | patch | stride | D | prefix | leak | place | finite | reload | export |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |"""
    )
    for verdict in accepted:
        print(row(verdict))
    print("\n## Rejected\n\n| model | reason |\n| --- | --- |")
    for verdict in rejected:
        print(f"| `{verdict.name}` | {str(verdict.rejection).replace('|', ' ')} |")
    for verdict in accepted:
        for failure in verdict.failures:
            print(f"{verdict.name}: {failure}", file=sys.stderr)
    if not all(verdict.is_sound and not verdict.failures for verdict in accepted):
        sys.exit("Some accepted encoders fail a check; see the table.")


if __name__ == "__main__":
    main()
