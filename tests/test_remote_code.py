"""Checkpoints carry their code: they load where hf_simmim is not installed, and are whole when saved again there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_package import TRAVELLING
from tiny import batch, swin_config
from transformers import Trainer, TrainingArguments
from without_package import outputs

import hf_simmim
from hf_simmim import (
    SimMIMBackbone,
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessor,
    SimMIMModel,
)
from hf_simmim.remote_code import AUTO_MAPS

TESTS = Path(__file__).parent
CODE = {f"{module}.py" for module in TRAVELLING}
MODELS = {
    "model": SimMIMModel,
    "pretrained": SimMIMForMaskedImageModeling,
    "classifier": SimMIMForImageClassification,
    "backbone": SimMIMBackbone,
}


def make_model(model_class: type = SimMIMForMaskedImageModeling, **kwargs):
    torch.manual_seed(0)
    return model_class(SimMIMConfig(encoder_config=swin_config(), **kwargs))


def make_processor(processor_class: type = SimMIMImageProcessor):
    return processor_class(size={"height": 32, "width": 32}, model_patch_size=2, mask_patch_size=8)


def assert_whole(folder: Path, *settings: str) -> None:
    """All code is there as it is in the package, and every Auto class finds its own."""
    for name in CODE:
        assert (folder / name).read_bytes() == (Path(hf_simmim.__file__).parent / name).read_bytes()
    for name in settings or AUTO_MAPS:
        assert json.loads((folder / name).read_text())["auto_map"] == AUTO_MAPS[name]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One of each class."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, model_class in MODELS.items():
        make_model(model_class).save_pretrained(root / name)
        make_processor().save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_any_class_is_whole(checkpoints, name):
    assert_whole(checkpoints[name])


def test_a_config_and_a_processor_alone_carry_the_code(tmp_path):
    make_model().config.save_pretrained(tmp_path / "config")
    assert_whole(tmp_path / "config", "config.json")
    make_processor().save_pretrained(tmp_path / "processor")
    assert_whole(tmp_path / "processor", "preprocessor_config.json")


def test_a_file_of_another_name_is_alone(tmp_path):
    make_model().config.to_json_file(tmp_path / "settings.json")
    assert os.listdir(tmp_path) == ["settings.json"]


def test_a_checkpoint_of_the_stock_trainer_is_whole(tmp_path):
    model = make_model()
    pixel_values, masks = batch(model.config, batch_size=2)
    images = [{"pixel_values": image, "bool_masked_pos": mask} for image, mask in zip(pixel_values, masks, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True
    )
    Trainer(model, arguments, train_dataset=images, processing_class=make_processor()).train()
    assert_whole(tmp_path / "checkpoint-1")


def test_only_the_main_process_writes(tmp_path):
    make_model().save_pretrained(tmp_path, is_main_process=False)
    assert not os.listdir(tmp_path)


def test_without_the_package_all_is_the_same(checkpoints, picture, tmp_path):
    names = [str(folder) for folder in checkpoints.values()]
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-P", TESTS / "without_package.py", picture, tmp_path / "results.pt", again, *names],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    results = torch.load(tmp_path / "results.pt")
    for name in names:
        assert_same(results[name], outputs(name, str(picture)))
    for folder in again.iterdir():
        assert_whole(folder, "preprocessor_config.json" if folder.name == "AutoImageProcessor" else "config.json")


def assert_same(found: dict, expected: dict) -> None:
    """The same numbers, bit for bit, of the carried code and of ours."""
    for auto_class, name in found.pop("classes").items():
        assert name.startswith("transformers_modules.")
        assert expected["classes"][auto_class] == f"hf_simmim.{'.'.join(name.split('.')[-2:])}"
    assert found.pop("AutoConfig") == expected["AutoConfig"]
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=0)
