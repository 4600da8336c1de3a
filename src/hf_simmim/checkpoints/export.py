"""Exports models as ONNX or torch.export programs that run without this package, verified against the model."""

import importlib.util
import itertools
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.configuration_simmim import SimMIMConfig
from ..model.masking import patch_grid
from ..model.modeling_base import SimMIMModel
from ..model.modeling_simmim import SimMIMForImageClassification, SimMIMForMaskedImageModeling
from .loading import load_config

# Largest allowed difference between program and model, relative to the model's largest output.
TOLERANCE = 1e-4
# Batch sizes that a program is traced with and checked with.
TRACED_BATCH = 2
CHECKED_BATCHES = (1, 3)
MAX_PROTOBUF_BYTES = 2**31 - 2**24  # larger files cannot be read; a margin for what is not weights
SMALLEST_OPSET = 18
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILE_NAMES = {"onnx": "model.onnx", "torch": "model.pt2"}


class ExportTask(NamedTuple):
    """Model class, outputs and inputs of an export task."""

    model_class: type
    outputs: tuple[str, ...]  # fields of the model's output, except those that are None
    takes_mask: bool = False


TASKS: dict[str, ExportTask] = {
    "features": ExportTask(SimMIMModel, ("last_hidden_state", "pooler_output", "feature_map")),
    "classification": ExportTask(SimMIMForImageClassification, ("logits",)),
    "reconstruction": ExportTask(SimMIMForMaskedImageModeling, ("prediction", "reconstruction"), takes_mask=True),
}


class ExportProgram(nn.Module):
    """A model as a function from tensors to tensors, which can be exported.

    Args:
        model: Model of the task, on the CPU in float32.
        task: Name of the task.
    """

    def __init__(self, model: Any, task: str):
        super().__init__()
        self.model = model.eval()
        self.task = TASKS[task]
        self.image_size: tuple[int, int] = tuple(model.config.image_size)
        with torch.no_grad():
            outputs = self._outputs(*self.random_inputs(1, seed=0))
        self.input_names = ("pixel_values", "bool_masked_pos") if self.task.takes_mask else ("pixel_values",)
        self.output_names = tuple(outputs)

    def random_inputs(
        self, batch_size: int, seed: int, image_size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Random images (B, C, H, W), by default of the program's size, and a mask (B, N) if the program takes one."""
        generator = torch.Generator().manual_seed(seed)
        config, size = self.model.config, image_size or self.image_size
        inputs = [torch.randn(batch_size, config.num_channels, *size, generator=generator)]
        if self.task.takes_mask:
            rows, columns = patch_grid(size, config.patch_size)
            inputs.append(torch.rand(batch_size, rows * columns, generator=generator) < 0.6)
        return tuple(inputs)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> tuple:
        return tuple(self._outputs(pixel_values, bool_masked_pos).values())

    def _outputs(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        mask: dict[str, Any] = {}
        if self.task.takes_mask:
            mask = {"bool_masked_pos": bool_masked_pos, "return_loss": False}
        outputs = self.model(pixel_values, **mask)
        return {name: outputs[name] for name in self.task.outputs if outputs.get(name) is not None}


class ExportedFile(NamedTuple):
    """A program that was written and checked. Shapes have names for dynamic sizes."""

    path: Path
    num_bytes: int  # including a separate file of weights
    differences: dict[str, float]  # largest difference of each output, relative to the model's largest value
    batch_sizes: tuple[int, ...]  # checked
    image_sizes: tuple[tuple[int, int], ...]  # (height, width), each checked with every batch size
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]


def load_program(checkpoint: str, task: str | None = None, image_size: tuple[int, int] | None = None) -> ExportProgram:
    """Load a checkpoint for export.

    Args:
        checkpoint: Folder or name on the Hub of a SimMIM model or, for features, of a vision model of transformers.
        task: One of `TASKS`; if None, classification for a fine-tuned classifier and features for everything else.
        image_size: (height, width) in pixels; the checkpoint's if None.

    Returns:
        The program.

    Raises:
        ValueError: If there is no such checkpoint, or it lacks what the task needs.
    """
    stored = load_config(checkpoint)
    is_ours = stored.model_type == SimMIMConfig.model_type
    architectures = (stored.architectures or []) if is_ours else []
    if task is None:
        task = "classification" if SimMIMForImageClassification.__name__ in architectures else "features"
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown. Use one of: {', '.join(TASKS)}.")
    model_class: Any = TASKS[task].model_class
    if task != "features" and model_class.__name__ not in architectures:
        found = architectures[0] if architectures else f"a {stored.model_type!r} model of transformers"
        raise ValueError(
            f"task={task!r} needs a checkpoint of {model_class.__name__}, but {checkpoint} holds {found}. Use"
            " task=features, or train such a model first."
        )
    geometry = {} if image_size is None else {"image_size": tuple(image_size)}
    load = model_class.from_pretrained if is_ours else model_class.from_encoder
    return ExportProgram(load(checkpoint, dtype=torch.float32, **geometry), task)


def check_packages(formats: Collection[str]) -> None:
    """Check that the packages for the formats are installed.

    Args:
        formats: Names of the formats, "onnx" or "torch".

    Raises:
        ValueError: If a package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None] if "onnx" in formats else []
    if missing:
        raise ValueError(
            f"ONNX files need {', '.join(missing)}, which is not installed. Install the packages for export with"
            ' pip install "hf-simmim[export]", or use format=torch.'
        )


def export_program(
    program: ExportProgram,
    output_dir: str | Path,
    formats: Sequence[str] = ("onnx",),
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> list[ExportedFile]:
    """Write a program and verify that the written files compute the same.

    The files are first written to a temporary folder, read back, and run on random batches of other sizes than they
    were traced with; only then are they moved to the output folder.

    Args:
        program: Result of `load_program`.
        output_dir: Folder to write to. Files of the same names are replaced.
        formats: Some of `"onnx"` (`model.onnx`) and `"torch"` (`model.pt2`).
        dynamic_batch: Whether the program takes batches of any size, else only one image at a time.
        dynamic_size: Whether it takes images of any height and width that are multiples of the encoder's stride.
            Convolutional networks can; positions and windows are laid out for one size.
        opset: Version of the ONNX operators; torch's default if None.
        tolerance: Largest allowed difference from the model, relative to its largest output.

    Returns:
        The written files, in the order of the formats.

    Raises:
        ValueError: If the model cannot be exported, or the program computes something else; nothing is written then.
    """
    unknown = [name for name in formats if name not in FILE_NAMES]
    if unknown or not formats:
        raise ValueError(f"formats={list(formats)} must be some of: {', '.join(FILE_NAMES)}.")
    check_packages(formats)
    if opset is not None and opset < SMALLEST_OPSET:
        raise ValueError(f"opset={opset} is older than what torch writes. Use {SMALLEST_OPSET} or above.")
    traced = trace(program, dynamic_batch, dynamic_size)
    shapes = _shapes(program, dynamic_batch, dynamic_size)
    batch_sizes = CHECKED_BATCHES if dynamic_batch else (1,)
    image_sizes = (program.image_size, *(_other_sizes(program) if dynamic_size else ()))
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".exporting-", dir=output_dir))
    try:
        written = []
        for name in formats:
            path = draft / FILE_NAMES[name]
            if name == "onnx":
                _write_onnx(traced, program, path, shapes[0], opset)
                run = _onnx_runner(path)
            else:
                torch.export.save(traced, path)
                run = torch.export.load(path).module()
            differences = differences_from_model(run, program, batch_sizes, image_sizes, path.name, tolerance)
            num_bytes = sum(file.stat().st_size for file in draft.glob(f"{path.name}*"))
            place = output_dir / path.name
            written.append(ExportedFile(place, num_bytes, differences, batch_sizes, image_sizes, *shapes))
        for file in draft.iterdir():
            file.replace(output_dir / file.name)
    finally:
        shutil.rmtree(draft)
    return written


def trace(
    program: ExportProgram, dynamic_batch: bool = True, dynamic_size: bool = False
) -> torch.export.ExportedProgram:
    """Trace a program to a graph.

    Args:
        program: The program.
        dynamic_batch: Whether the graph takes batches of any size, else one image.
        dynamic_size: Whether the graph takes images of any multiple of the stride, else of the program's size.

    Returns:
        The graph.

    Raises:
        ValueError: If torch cannot trace it.
    """
    inputs = program.random_inputs(TRACED_BATCH if dynamic_batch else 1, seed=0)
    sizes: list[dict[int, Any]] = [{} for _ in inputs]
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        for size in sizes:
            size[0] = batch
    if dynamic_size:
        geometry = program.model.base_model.geometry
        if geometry.route == "own" or geometry.can_interpolate or program.task.takes_mask:
            kind = (
                "a mask"
                if program.task.takes_mask
                else f"the encoder {program.model.config.encoder_config.model_type!r}"
            )
            raise ValueError(
                f"dynamic_size: {kind} only supports images of one size. Leave it out, and export once for each"
                " --image_size."
            )
        sizes[0] |= {axis: geometry.stride * torch.export.Dim(f"steps_{axis}", min=1) for axis in (2, 3)}
    with _quiet():
        try:
            return torch.export.export(program, inputs, dynamic_shapes=tuple(sizes))
        except Exception as error:  # torch raises any type
            remedy = " Leave out --dynamic_size." if dynamic_size else ""
            if dynamic_batch and not dynamic_size:
                remedy = " Try a program for one image at a time: --no_dynamic_batch."
            raise ValueError(f"torch.export cannot trace this model: {_first_line(error)}{remedy}") from error


def _other_sizes(program: ExportProgram) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) to check a program of dynamic size with: the smallest, and a larger one."""
    stride, (height, width) = program.model.config.encoder_stride, program.image_size
    return (2 * stride, 3 * stride), (height + stride, width + 2 * stride)


def differences_from_model(
    run: Callable[..., Sequence[torch.Tensor]],
    program: ExportProgram,
    batch_sizes: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    name: str,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Compare an exported program with its model, on random batches.

    Args:
        run: The exported program, a function from tensors to tensors.
        program: The model that was exported.
        batch_sizes: Sizes of the batches.
        image_sizes: (height, width) of the images, each with every batch size.
        name: Name of the exported program in errors.
        tolerance: As in `export_program`.

    Returns:
        The largest difference of each output, relative to the model's largest value.

    Raises:
        ValueError: If a difference is larger than the tolerance, or the program does not run.
    """
    found = dict.fromkeys(program.output_names, 0.0)
    for batch_size, image_size in itertools.product(batch_sizes, image_sizes):
        inputs = program.random_inputs(batch_size, batch_size, image_size)
        with torch.no_grad():
            expected = program(*inputs)
            try:
                actual = run(*inputs)
            except Exception as error:  # runtimes raise any type
                raise ValueError(f"{name} does not run on a batch of {batch_size}: {_first_line(error)}") from error
        for output, ours, theirs in zip(program.output_names, expected, actual, strict=True):
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"{name} gives {output} of shape {tuple(theirs.shape)} for a batch of {batch_size}, but the model"
                    f" {tuple(ours.shape)}. The export was deleted."
                )
            largest = ours.abs().max().item()
            difference = (ours - theirs).abs().max().item() / (largest or 1.0)
            # In this form NaN is rejected, too.
            if not difference <= tolerance:
                raise ValueError(
                    f"{name} does not compute the same as the model: {output} differs by {difference:.2g} of its"
                    f" largest value in a batch of {batch_size}; {tolerance:.2g} is allowed. The export was deleted."
                )
            found[output] = max(found[output], difference)
    return found


def _write_onnx(
    traced: torch.export.ExportedProgram,
    program: ExportProgram,
    path: Path,
    inputs: dict[str, tuple[str | int, ...]],
    opset: int | None,
) -> None:
    names: dict[str, Any] = {"input_names": list(program.input_names), "output_names": list(program.output_names)}
    shapes = tuple(
        {axis: side for axis, side in enumerate(shape) if isinstance(side, str)} for shape in inputs.values()
    )
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict().values())
    with _quiet():
        try:
            written: Any = torch.onnx.export(
                traced, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=shapes, **names
            )
            written.save(path, external_data=num_bytes > MAX_PROTOBUF_BYTES)
        except Exception as error:  # torch raises any type if ONNX has no operator
            raise ValueError(f"torch.onnx cannot write this model: {_first_line(error)}") from error


def _onnx_runner(path: Path) -> Callable[..., list[torch.Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, feed)]

    return run


def _shapes(
    program: ExportProgram, dynamic_batch: bool, dynamic_size: bool
) -> tuple[dict[str, tuple[str | int, ...]], dict[str, tuple[str | int, ...]]]:
    """Shapes of inputs and outputs by name, with names for dynamic sizes."""
    inputs = program.random_inputs(1, seed=0)
    with torch.no_grad():
        outputs = program(*inputs)

    def named(tensor: torch.Tensor, names: dict[int, str]) -> tuple[str | int, ...]:
        names = (names if dynamic_size else {}) | ({0: "batch"} if dynamic_batch else {})
        return tuple(names.get(axis, side) for axis, side in enumerate(tensor.shape))

    steps = {2: {}, 3: {1: "h * w"}, 4: {2: "h", 3: "w"}}
    return (
        {name: named(x, {2: "height", 3: "width"}) for name, x in zip(program.input_names, inputs, strict=True)},
        {name: named(x, steps[x.ndim]) for name, x in zip(program.output_names, outputs, strict=True)},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Export without gradients, with the attention that every exporter supports, and without the exporters' logs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # The memory layout of fused kernels differs from that of their ONNX replacement, on which views then fail. The
        # torch graph contains the function itself, which uses any kernel when it runs.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    """First line of an error's message, without the pages that exporters append."""
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__  # type: ignore[assignment]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    return f"{type(error).__name__}: {text}" + ("" if text.endswith((".", "!")) else ".")
