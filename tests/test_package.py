"""What is in the wheel, and what leaves the package for the Hub."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import hf_simmim
from hf_simmim.hub.card import template_path
from hf_simmim.model.heads import HEAD_CLASSES, HEADS
from hf_simmim.model.losses import LOSS_FUNCTIONS, LOSSES
from hf_simmim.model.modeling_simmim import TARGET_CLASSES
from hf_simmim.model.targets import TARGETS

ROOT = Path(__file__).parents[1]
TRAVELLING = (
    *("configuration_simmim", "modeling_simmim", "pretrained", "backbone", "image_processing_simmim", "components"),
    *("remote_code", "encoders", "encoder_geometry", "windows", "swin", "swinv2", "remapping", "stock_checkpoints"),
    *("masking", "mask_shapes", "missing_pixels", "image_channels", "image_files"),
    *("heads", "hidden_states", "losses", "targets", "target", "pixel_targets", "color_targets"),
    *("hog", "frozen_targets", "teachers", "classification_loss", "encoder_layers"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {f"hf_simmim/{path.name}" for path in (ROOT / "src" / "hf_simmim").glob("*.py")}
    assert names == sources | {"hf_simmim/py.typed", "hf_simmim/model_card_template.md"}
    template = wheel.read("hf_simmim/model_card_template.md").decode()
    assert template == template_path().read_text()


def test_wheel_metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("hf-simmim", hf_simmim.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert any(requirement.startswith("transformers<6,>=5.21") for requirement in metadata.get_all("Requires-Dist"))


@pytest.mark.parametrize("module", TRAVELLING)
def test_files_for_the_hub_import_each_other_as_the_hub_needs(module):
    """transformers copies what `from .x import y` names, found by a regular expression, and nothing else."""
    source = (ROOT / "src" / "hf_simmim" / f"{module}.py").read_text()
    assert not re.search(r"^\s*(from \. import|import hf_simmim|from hf_simmim)", source, re.MULTILINE)
    for imported in re.findall(r"^\s*from \.(\w+) import", source, re.MULTILINE):
        assert imported in TRAVELLING
    assert "isinstance(config, SimMIMConfig)" not in source


def test_the_config_knows_every_component():
    assert tuple(HEAD_CLASSES) == tuple(HEADS)
    assert tuple(TARGET_CLASSES) == tuple(TARGETS)
    assert tuple(LOSS_FUNCTIONS) == tuple(LOSSES)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
