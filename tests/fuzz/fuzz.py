"""Feeds random images, recipes, configs and masks to the package, and counts what is taken, refused, or wrong.

    python tests/fuzz/fuzz.py                    10,000 cases, with a table at the end
    python tests/fuzz/fuzz.py --cases 400

Wrong are a crash, an error that is not stated for such inputs, a case of more than 5 seconds, and one that needs more
than 2 GB beyond what the process had. Exit status 1 if there are any; hypothesis prints the smallest such case.
"""

import argparse
import faulthandler
import io
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from hf_simmim import SimMIMConfig, SimMIMImageProcessor
from hf_simmim.cli import pretrain
from hf_simmim.cli.recipes import CommandError
from hf_simmim.data.reading import open_row
from hf_simmim.data.survey import glance
from hf_simmim.data.transforms import crop_and_resize, upright_size
from hf_simmim.model.masking import MASK_STRATEGIES, mask_units, num_masked_units, patch_grid

MAX_SECONDS, MAX_BYTES = 5.0, 2 * 2**30


def valid_files() -> list[bytes]:
    """Small images of many formats and depths."""
    generator = np.random.default_rng(0)
    color = generator.integers(0, 255, (9, 11, 3), dtype=np.uint8)
    deep = generator.integers(0, 65535, (9, 11), dtype=np.uint16)
    found = []
    for image, kinds in (
        (Image.fromarray(color), ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "ICO")),
        (Image.fromarray(color[..., 0]), ("PNG", "JPEG", "TIFF", "PPM")),
        (Image.fromarray(color).convert("RGBA"), ("PNG", "WEBP", "TIFF")),
        (Image.fromarray(color).convert("P"), ("PNG", "GIF")),
        (Image.fromarray(color).convert("CMYK"), ("JPEG", "TIFF")),
        (Image.fromarray(deep), ("PNG", "TIFF", "PPM")),
        (Image.fromarray(color[..., 0]).convert("1"), ("PNG", "TIFF")),
    ):
        for kind in kinds:
            file = io.BytesIO()
            image.save(file, kind)
            found.append(file.getvalue())
    for array, options in (
        (deep, {}),
        (deep.astype(np.float32), {"compression": "zlib"}),
        (np.stack([deep] * 4), {"photometric": "minisblack"}),
        (generator.random((9, 11, 5)).astype(np.float32), {"planarconfig": "contig", "tile": (16, 16)}),
        (color, {"photometric": "rgb", "bigtiff": True}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, array, **options)
        found.append(file.getvalue())
    for array in (deep, color, generator.random((3, 9, 11)), np.zeros((2, 2), dtype=object)):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        found.append(file.getvalue())
    return found


FILES = valid_files()


@st.composite
def broken_files(draw: Any) -> bytes:
    """A valid file with some bytes replaced, removed, repeated, or taken from another one."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        # Headers decide most.
        place = draw(st.one_of(st.integers(0, min(200, len(content))), st.integers(0, len(content))))
        kind = draw(st.sampled_from(("replace", "cut", "insert", "number", "splice")))
        if kind == "replace":
            content[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, len(content) + 1))]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif kind == "number":
            number = draw(st.sampled_from((0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)))
            content[place : place + 4] = number.to_bytes(4, draw(st.sampled_from(("big", "little"))))
        else:
            other = draw(st.sampled_from(FILES))
            content[place:] = other[draw(st.integers(0, len(other))) :]
    return bytes(content)


def in_words(error: Exception) -> bool:
    """That an error says something; raises an AssertionError otherwise."""
    if not str(error):
        raise AssertionError(f"{type(error).__name__} without a message") from error
    return True


def image_case(content: bytes, num_channels: int, factor: float, nodata: float | None) -> bool:
    """Read a file as a training does; whether it was taken."""
    source = {"bytes": content, "path": None}
    try:
        glance(source)
        image = open_row({"image": source, "name": ""}, num_channels, factor, nodata)
        size = upright_size(image)
        found = crop_and_resize(image, (0, 0, *size[::-1]), (8, 8), num_channels)
    except MemoryError:
        raise
    except Exception:  # readers raise anything on a broken file; the training replaces the image
        return False
    array = np.asarray(found)
    assert array.shape[:2] == (8, 8)
    assert array.reshape(8, 8, -1).shape[2] == num_channels
    return True


NUMBERS = st.one_of(
    st.integers(-3, 300), st.integers(), st.floats(), st.floats(0, 1), st.sampled_from((0, 1, 2, 4, 8, 16, 32, 64))
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
# Without those that change this process or start something.
OPTIONS = sorted(
    pretrain.COMMAND.option_names()
    - {"recipe", "output_dir", "report_to", "fsdp", "fsdp_config", "deepspeed", "parallelism_config", "hub_token"}
)


def recipe_case(recipe: dict[str, Any], folder: Path) -> bool:
    """Parse a recipe, and build the config that it describes; whether it was taken."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe), encoding="utf-8", errors="surrogatepass")
    words = ["--recipe", str(path), "--output_dir", str(folder / "run"), "--use_cpu", "True"]
    try:
        _, model, _ = pretrain.COMMAND.parse(words)
    except CommandError:
        return False
    try:
        pretrain.build_config(model)
    except (ValueError, OSError, StrictDataclassError) as error:
        # `hf-simmim pretrain` prints these as one line.
        return not in_words(error)
    return True


FIELDS = (
    *("encoder_config", "head", "head_options", "head_inputs", "target", "target_options", "prediction_stride", "loss"),
    *("loss_options", "loss_region", "image_size", "window_size", "num_channels", "image_mean", "image_std"),
    *("drop_path_rate", "num_labels", "out_features", "dtype", "whatever"),
)
ENCODERS = st.one_of(
    st.sampled_from(("swin-tiny", "swin-mini", "vit-base", "none")),
    st.fixed_dictionaries(
        {"model_type": st.sampled_from(("swin", "swinv2", "vit", "beit", "bert"))},
        optional={
            "image_size": st.one_of(st.sampled_from((32, 48, 64, [32, 64])), st.integers(-1, 300), VALUES),
            "patch_size": st.one_of(st.sampled_from((2, 4, 8)), st.integers(-1, 20), VALUES),
            "embed_dim": st.sampled_from((0, 16, 17, 48)),
            "depths": st.one_of(st.just([1, 1]), st.lists(st.integers(0, 2), max_size=3)),
            "num_heads": st.one_of(st.just([1, 2]), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 4)),
            "window_size": st.one_of(st.sampled_from((4, 8)), st.integers(-1, 12), VALUES),
            "hidden_size": st.sampled_from((0, 16, 32, 33)),
            "num_hidden_layers": st.integers(0, 2),
            "drop_path_rate": st.one_of(st.floats(0, 0.5), st.floats()),
        },
    ),
)
GOOD = st.fixed_dictionaries(
    {},
    optional={
        "head": st.sampled_from(("linear", "mlp")),
        "target": st.sampled_from(("rgb", "normalized_rgb", "color_bins", "hog")),
        "loss": st.sampled_from(("l1", "l2", "smooth_l1", "cross_entropy")),
        "loss_region": st.sampled_from(("masked", "all")),
        "num_channels": st.integers(1, 5),
        "image_size": st.sampled_from((32, 64, [48, 64])),
    },
)
CONFIGS = st.one_of(GOOD, st.dictionaries(st.sampled_from(FIELDS[1:]), VALUES, max_size=2))


def config_case(encoder: Any, others: dict[str, Any]) -> bool:
    """Build a config and save it as JSON; whether it was taken."""
    try:
        config = SimMIMConfig(encoder_config=encoder, **others)
        assert config.grid_size[0] >= 1
        assert json.loads(config.to_json_string(use_diff=False))
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        return not in_words(error)
    return True


def mask_case(strategy: str, size: tuple[int, int], patch: int, unit: int, ratio: float, number: int) -> bool:
    """Draw masks by function and by processor; whether the settings were taken."""
    try:
        grid, units = mask_units(size, patch, unit)
        count = num_masked_units(math.prod(patch_grid(grid, units)), ratio)
    except ValueError as error:
        return not in_words(error)
    draw = MASK_STRATEGIES[strategy]
    masks = [draw(grid, ratio, unit_size=units, generator=torch.Generator().manual_seed(number)) for _ in range(2)]
    assert masks[0].dtype == torch.bool
    assert tuple(masks[0].shape) == (1, *grid)
    assert torch.equal(*masks)
    if strategy == "random":
        assert int(masks[0][0, ::units, ::units].sum()) == count
    processor = SimMIMImageProcessor(
        size={"height": size[0], "width": size[1]},
        mask_strategy=strategy,
        mask_patch_size=unit,
        mask_ratio=ratio,
        model_patch_size=patch,
    )
    picture = np.zeros((size[0], size[1], 3), np.uint8)
    made = processor(picture, do_mask=True, seed=number, return_tensors="pt")
    assert made["bool_masked_pos"].numel() == masks[0].numel()
    return True


class Study:
    """Counts the cases of each kind."""

    def __init__(self) -> None:
        self.taken = Counter[str]()
        self.refused = Counter[str]()
        self.slowest: dict[str, float] = {}

    def count(self, kind: str, case: Callable[..., bool], *values: Any) -> None:
        """Run a case, and note what came out and how long it took."""
        began = time.perf_counter()
        (self.taken if case(*values) else self.refused)[kind] += 1
        seconds = time.perf_counter() - began
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), seconds)
        assert seconds < MAX_SECONDS, f"{seconds:.1f} s"


def run(study: Study, num_cases: int, number: int, folder: Path) -> list[str]:
    """Run cases of all kinds; returns what went wrong."""
    each = settings(
        max_examples=max(1, num_cases // 4),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )

    @seed(number)
    @each
    @given(
        st.tuples(
            broken_files(),
            st.sampled_from((1, 3, 5)),
            st.sampled_from((1 / 255, 1 / 65535, 1.0)),
            st.one_of(st.none(), st.integers(0, 300)),
        )
    )
    def images(values: tuple[Any, ...]) -> None:
        study.count("images", image_case, *values)

    @seed(number)
    @each
    @given(st.dictionaries(st.sampled_from(OPTIONS), VALUES, min_size=1, max_size=3))
    def recipes(recipe: dict[str, Any]) -> None:
        study.count("recipes", recipe_case, recipe, folder)

    @seed(number)
    @each
    @given(st.tuples(ENCODERS, CONFIGS))
    def configs(values: tuple[Any, ...]) -> None:
        study.count("configs", config_case, *values)

    @seed(number)
    @each
    @given(
        st.tuples(
            st.sampled_from(list(MASK_STRATEGIES)),
            st.tuples(st.integers(1, 96), st.integers(1, 96)),
            st.sampled_from((1, 2, 4, 8, 14)),
            st.integers(1, 64),
            st.floats(-0.1, 1.1),
            st.integers(0, 2**32),
        )
    )
    def masks(values: tuple[Any, ...]) -> None:
        study.count("masks", mask_case, *values)

    faults = []
    for name, test in (("images", images), ("recipes", recipes), ("configs", configs), ("masks", masks)):
        try:
            test()
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            faults.append(f"{name}: {type(error).__name__}: {error}\n{notes}"[:3000])
    return faults


def main() -> int:
    """Run everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        # Read when the libraries are imported; a recipe may name a checkpoint on the Hub.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"HF_HUB_OFFLINE": "1"})
    faulthandler.enable()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, resource.RLIM_INFINITY))
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    study = Study()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        # Recipes may name folders.
        os.chdir(name)
        faults = run(study, arguments.cases, arguments.seed, Path(name))
        os.chdir("/")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    print("| kind | cases | taken | refused | slowest (s) |\n| --- | --- | --- | --- | --- |")
    for kind in study.slowest:
        taken, refused = study.taken[kind], study.refused[kind]
        print(f"| {kind} | {taken + refused:,} | {taken:,} | {refused:,} | {study.slowest[kind]:.2f} |")
    minutes = (time.monotonic() - began) / 60
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"\nMemory grew by {grown:.2f} GB; {minutes:.1f} minutes; {where}.")
    print(*faults or ["No crash, and no error that is not stated."], sep="\n\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
