"""Every block of code of the documentation runs: see `docs_code.py` for how."""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from docs_code import ENCODER, Block, Page, blocks_of
from matplotlib.figure import Figure
from paths import FIXTURES, ROOT
from photos import random_photo
from PIL import Image
from safetensors.torch import save_file
from segmentation_scenes import write_scenes
from tiny import VIT_SIZES
from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel, Trainer, ViTConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for index in range(48):
        classes = ("labeled_photos", ("cat", "dog")[index % 2])
        for root, parent in (classes, ("my_photos", f"day{index % 2}"))[: 2 if index < 16 else 1]:
            path = folder / root / parent / f"{index:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            random_photo(rng, (80, 72)).save(path)
    (folder / "gray_photos").mkdir()
    for index in range(24):
        random_photo(rng, (80, 72)).convert("L").save(folder / "gray_photos" / f"{index}.png")
    random_photo(rng, (160, 120)).save(folder / "photo.jpg")
    rows = [{"bytes": path.read_bytes(), "path": None} for path in sorted((folder / "my_photos").rglob("*.jpg"))]
    (folder / "shards").mkdir()
    for shard in range(2):
        table = Dataset.from_dict({"image": rows[shard::2]}, features=Features({"image": ImageFeature()}))
        table.to_parquet(folder / "shards" / f"train-{shard}.parquet", batch_size=4)
    Image.new("L", (32, 32), 255).resize((64, 64)).crop((-32, -32, 64, 64)).save(folder / "painted.png")
    write_scenes(folder / "scenes", 40)
    (folder / "satellite").mkdir()
    for index in range(24):
        bands = rng.integers(0, 4000, (70, 80, 13)).astype(np.uint16)
        tifffile.imwrite(folder / "satellite" / f"{index}.tif", bands, planarconfig="contig")
    # The demo's encoder is a ViT for gray images of 28 px.
    demo = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_hidden_layers": 1}
    encoders = {
        "runs/my_photos": SwinConfig(**ENCODER),
        "runs/before/checkpoint-1000": SwinConfig(**ENCODER),
        "runs/other": ViTConfig(**(VIT_SIZES | {"image_size": 64, "num_hidden_layers": 1})),
        "runs/demo": ViTConfig(**(VIT_SIZES | demo)),
    }
    for name, encoder in encoders.items():
        # What `pretrain` chooses for few photos.
        target = "hog" if name == "runs/my_photos" else "rgb"
        SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder, target=target)).save_pretrained(folder / name)
        side, patch = encoder.image_size, encoder.patch_size
        SimMIMImageProcessor(
            size={"height": side, "width": side},
            mask_patch_size=16 if side % 16 == 0 else patch,
            model_patch_size=patch,
            image_mean=[0.5] * encoder.num_channels,
            image_std=[0.25] * encoder.num_channels,
        ).save_pretrained(folder / name)
    skipped = folder / "runs" / "my_photos" / "skipped_steps" / "step-0000123"
    skipped.mkdir(parents=True)
    pixels = torch.from_numpy(rng.integers(0, 255, (2, 3, 64, 64), dtype=np.uint8))
    batch = {"pixel_values": pixels, "bool_masked_pos": torch.arange(256).expand(2, 256).contiguous() % 2 == 0}
    save_file(batch, skipped / "batch-0-0.safetensors", metadata={"step": "123", "names": "a.jpg\nb.jpg"})
    official = FIXTURES / "swin_pretrain.pth"
    shutil.copy(official, folder / "simmim_pretrain__swin_base__img192_window6__800ep.pth")
    return folder


@pytest.fixture(scope="module")
def repositories(world, tmp_path_factory):
    """Files of the models and data sets of the Hub that the pages name, all tiny."""
    folder = tmp_path_factory.mktemp("repositories")
    Dinov2Model(Dinov2Config(**(VIT_SIZES | {"image_size": 56, "patch_size": 14}))).save_pretrained(folder / "dinov2")
    SwinModel(SwinConfig(**(ENCODER))).save_pretrained(folder / "swin")
    return {
        ("models", "facebook/dinov2-base"): contents(folder / "dinov2"),
        ("models", "microsoft/swin-base-patch4-window7-224"): contents(folder / "swin"),
        ("models", "org/simmim-swin-base"): contents(world / "runs" / "my_photos"),
        ("datasets", "org/photos"): contents(world / "my_photos"),
        ("datasets", "org/shards"): contents(world / "shards"),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by their names in it."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def one_step(trainer: Trainer, *args, train, **kwargs):
    """Trainer's `train`, of a single step whatever a page says."""
    trainer.args.max_steps = 1
    return train(trainer, *args, **kwargs)


@pytest.fixture
def page(world, repositories, hub, tmp_path, monkeypatch):
    """What runs the blocks of a page, in a copy of the world."""
    folder = tmp_path / "page"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    for (kind, name), files in repositories.items():
        hub.add(name, files, kind=kind)
    monkeypatch.setattr(Trainer, "train", functools.partialmethod(one_step, train=Trainer.train))
    # Curves are tested elsewhere, and take most of the time of so short a run.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: Path(path).touch())
    return Page(folder, hub.environment(tmp_path / "home"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_page_runs(path: Path, page: Page):
    for block in blocks_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))):
        page.run(block)


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("bash", "curl https://example.org", "no rule for the command 'curl'"),
        ("bash", "accelerate launch examples/run_mimi.py", "there is no examples/run_mimi.py"),
        ("bash", "accelerate launch examples/run_mim.py --train_dir my_photos --mask_ration 0.5", "--mask_ratio"),
        ("bash", "accelerate launch --num_procs 2 examples/run_mim.py", "SystemExit"),
        ("bash", "hf-simmim pretrian --train_dir my_photos", "there is no command 'pretrian'"),
        ("bash", "hf-simmim pretrain --train_dir my_photos --mask_ration 0.5", "--mask_ratio"),
        ("bash", "hf-simmim embed --checkpoint runs/nothing --image_dir my_photos", "runs/nothing"),
        ("bash", "accelerate launch -m hf_simmim pretrain --train_dir my_photos --mask_ration 0.5", "--mask_ratio"),
        ("bash", "torchrun --nproc_per_node 2 -m hf_simmim pretrain --train_dir my_photos --nothing", "--nothing"),
        ("bash", "pip install hf-simmin", "hf-simmin"),
        ("bash", 'pip install -e ".[gpu]"', "gpu"),
        ("bash", "make coffee", "coffee"),
        ("bash", "SECRET=1 make test", "SECRET"),
        ("python", "import hf_simmim\nhf_simmim.nothing", "nothing"),
        ("python", "import hf_simmim\nhf_simmim.pretrain(train_dir='my_photos', mask_ration=0.5)", "mask_ratio"),
        ("json", "{'mask_ratio': 0.5}", "JSONDecodeError"),
        ("", "anything", "no rule for language"),
        ("sh", "make test", "no rule for language"),
    ],
)
def test_what_is_wrong_on_a_page_is_found(page: Page, language: str, code: str, message: str):
    with pytest.raises(AssertionError, match=message):
        page.run(Block("page.md", 1, language, "", code))


def test_a_mistyped_key_of_a_recipe_is_found(page: Page):
    block = Block("page.md", 1, "json", 'title="recipe.json"', '{"mask_ration": 0.5}')
    with pytest.raises(AssertionError, match="Did you mean mask_ratio"):
        page.run(block)


def test_blocks_in_lists_and_notes_are_found():
    text = '```python\na\n```\n\n??? note\n\n    ```bash title="x"\n    make test\n    ```\n'
    assert [(block.line, block.language, block.code) for block in blocks_of(text, "page")] == [
        (1, "python", "a"),
        (7, "bash", "make test"),
    ]


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    """Pages link to other sites, but load nothing from there: no fonts, no scripts, no styles, no pictures."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-2000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "quickstart.html", "model.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]+)", page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"
    assert "create_optimizers" in (tmp_path / "site" / "search" / "search_index.json").read_text()
