"""Checkpoints carry their code: they load where hf_simmim is not installed, and are whole when saved again there."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from paths import PACKAGE, SUPPORT, TRAVELING
from PIL import Image
from tiny import batch, swin_config, vit_config
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from without_package import outputs

from hf_simmim import (
    SimMIMBackbone,
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessor,
    SimMIMImageProcessorPil,
    SimMIMModel,
)
from hf_simmim.model.remote_code import AUTO_MAPS, code_files

CODE = {f"{module}.py" for module in TRAVELING}
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
        assert (folder / name).read_bytes() == (PACKAGE / "model" / name).read_bytes()
    for name in settings or AUTO_MAPS:
        assert json.loads((folder / name).read_text())["auto_map"] == AUTO_MAPS[name]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One of each class."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, model_class in MODELS.items():
        make_model(model_class).save_pretrained(root / name)
        make_processor().save_pretrained(root / name)
    visible = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=vit_config(), encode="visible"))
    visible.save_pretrained(root / "visible")
    SimMIMImageProcessor(size=32, model_patch_size=8, mask_patch_size=8).save_pretrained(root / "visible")
    return {name: root / name for name in (*MODELS, "visible")}


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def own_modules(tmp_path, monkeypatch) -> Iterator[None]:
    """A cache of carried code for one test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


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


def test_every_class_leads_to_all_code():
    """Each is loaded, and saved again, with the files that its own imports name."""
    assert {path.name for path in code_files()} == CODE
    entries = {reference.split(".")[0] for reference in AUTO_MAPS["config.json"].values()}
    for module in (*entries, "image_processing_simmim"):
        found = get_relative_import_files(PACKAGE / "model" / f"{module}.py")
        assert {Path(path).name for path in found} | {f"{module}.py"} == CODE


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_with_the_package_its_own_classes_are_used(checkpoints, trust_remote_code, monkeypatch, caplog):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    for auto_class, name, expected in (
        ("AutoConfig", "model", SimMIMConfig),
        ("AutoModel", "model", SimMIMModel),
        ("AutoModelForMaskedImageModeling", "pretrained", SimMIMForMaskedImageModeling),
        ("AutoModelForImageClassification", "classifier", SimMIMForImageClassification),
        ("AutoImageProcessor", "model", SimMIMImageProcessor),
    ):
        settings = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
        assert type(getattr(transformers, auto_class).from_pretrained(checkpoints[name], **settings)) is expected
    config = AutoConfig.from_pretrained(checkpoints["backbone"])
    assert type(AutoBackbone.from_config(config)) is SimMIMBackbone
    processor = AutoImageProcessor.from_pretrained(checkpoints["model"], backend="pil")
    assert type(processor) is SimMIMImageProcessorPil
    assert not caplog.records


def test_a_processor_saved_by_either_backend_loads_by_the_backend_that_is_there(tmp_path):
    make_processor(SimMIMImageProcessorPil).save_pretrained(tmp_path)
    assert_whole(tmp_path, "preprocessor_config.json")
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SimMIMImageProcessor


@pytest.mark.parametrize("installed", [True, False])
def test_the_carried_processor_is_of_the_backend_that_is_there(installed, own_modules, tmp_path, monkeypatch):
    folder = tmp_path / f"installed-{installed}"
    make_processor().save_pretrained(folder)
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: installed)
    for backend, reference in AUTO_MAPS["preprocessor_config.json"]["AutoImageProcessor"].items():
        bases = get_class_from_dynamic_module(reference, folder).__mro__
        assert (TorchvisionBackend in bases) == (backend == "torchvision" and installed)
        assert (PilBackend in bases) == (backend == "pil" or not installed)


class Unregistered(SimMIMForImageClassification):
    """What somebody may write in a notebook."""


def test_an_unregistered_subclass_is_loaded_as_its_parent(tmp_path):
    model = make_model(Unregistered)
    model.save_pretrained(tmp_path)
    assert_whole(tmp_path, "config.json")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is SimMIMForImageClassification
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_registered_subclass_is_saved_with_its_own_code(tmp_path, monkeypatch):
    source = "import hf_simmim\n\n\nclass Own(hf_simmim.SimMIMForImageClassification):\n    pass\n"
    (tmp_path / "own_model.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    own_class = importlib.import_module("own_model").Own
    own_class.register_for_auto_class("AutoModelForImageClassification")
    make_model(own_class).save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "own_model.py").read_text() == source
    auto_map = AutoConfig.from_pretrained(tmp_path / "own").auto_map
    assert auto_map == AUTO_MAPS["config.json"] | {"AutoModelForImageClassification": "own_model.Own"}
    # Its code does not come along with a model of ours.
    AutoModel.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "ours")
    assert_whole(tmp_path / "ours", "config.json")


def test_references_to_another_repository_stay_only_for_other_classes(tmp_path):
    config = make_model().config
    config.auto_map = {name: f"org/first--{entry}" for name, entry in AUTO_MAPS["config.json"].items()}
    config.auto_map["AutoModelForImageSegmentation"] = "org/other--other.Segmenter"
    config.save_pretrained(tmp_path)
    others = {"AutoModelForImageSegmentation": "org/other--other.Segmenter"}
    assert AutoConfig.from_pretrained(tmp_path).auto_map == AUTO_MAPS["config.json"] | others


def test_a_push_holds_the_code(hub, tmp_path):
    """Of a model, a config and a processor: by itself, and while it is saved to a folder that has the code already."""
    for name, pushed in (
        ("config.json", make_model(SimMIMForImageClassification)),
        ("config.json", make_model().config),
        ("preprocessor_config.json", make_processor()),
    ):
        repository = f"org/{type(pushed).__name__}"
        pushed.push_to_hub(repository)
        pushed.save_pretrained(tmp_path)
        pushed.save_pretrained(str(tmp_path), push_to_hub=True, repo_id=f"{repository}-of-folder")
        for files in (hub.files(repository), hub.files(f"{repository}-of-folder")):
            assert files.keys() >= CODE
            assert json.loads(files[name])["auto_map"] == AUTO_MAPS[name]


def test_without_the_package_all_is_the_same(checkpoints, picture, hub, tmp_path):
    """Of folders and of the Hub, where one repository has the code of each class once."""
    names = [*map(str, checkpoints.values()), "org/tiny-1.5"]
    make_model().push_to_hub("org/tiny-1.5")
    make_processor().push_to_hub("org/tiny-1.5")
    subprocess.run(
        [sys.executable, "-P", SUPPORT / "without_package.py", picture, tmp_path / "results.pt", tmp_path, *names],
        env=hub.environment(tmp_path / "home"),
        check=True,
        capture_output=True,
        text=True,
    )
    results = torch.load(tmp_path / "results.pt")
    for index, name in enumerate(names):
        assert_same(results[name], outputs(name, str(picture)))
        saved = {folder.name: folder for folder in (tmp_path / f"again{index}").iterdir()}
        assert_whole(saved.pop("AutoImageProcessor"), "preprocessor_config.json")
        for folder in saved.values():
            assert_whole(folder, "config.json")


def assert_same(found: dict, expected: dict) -> None:
    """The same numbers, bit for bit, of the carried code and of ours."""
    for auto_class, name in found.pop("classes").items():
        assert name.startswith("transformers_modules.")
        assert expected["classes"][auto_class] == f"hf_simmim.model.{'.'.join(name.split('.')[-2:])}"
    assert found.pop("AutoConfig") == expected["AutoConfig"]
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=0)
    again = [name for name in found if name.endswith(", again")]
    assert len(again) == 3
    for name in again:
        torch.testing.assert_close(found[name], found[name.removesuffix(", again")], rtol=0, atol=0)
