"""What is in the wheel, and what leaves the package for the Hub."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from paths import PACKAGE, ROOT, TRAVELING

import hf_simmim
from hf_simmim.hub.card import template_path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    recipes = [*PACKAGE.rglob("cli/recipe_files/**/*.json")]
    files = [*PACKAGE.rglob("*.py"), *recipes, PACKAGE / "py.typed"]
    sources = {f"hf_simmim/{path.relative_to(PACKAGE).as_posix()}" for path in files}
    assert len(recipes) > 10
    assert names == sources | {"hf_simmim/hub/model_card_template.md"}
    template = wheel.read("hf_simmim/hub/model_card_template.md").decode()
    assert template == template_path().read_text()


def test_wheel_metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == ("hf-simmim", hf_simmim.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert any(requirement.startswith("transformers<6,>=5.21") for requirement in metadata.get_all("Requires-Dist"))


@pytest.mark.parametrize("module", TRAVELING)
def test_files_for_the_hub_import_each_other_as_the_hub_needs(module):
    """transformers copies what `from .x import y` names, found by a regular expression, and nothing else."""
    source = (PACKAGE / "model" / f"{module}.py").read_text()
    assert not re.search(r"^\s*(import hf_simmim|from hf_simmim)", source, re.MULTILINE)
    # The first word, so that `from . import x`, `from ..x import y` and `from .x.y import z` are not among them.
    for imported in re.findall(r"^\s*from \.(\S*) import", source, re.MULTILINE):
        assert imported in TRAVELING
    assert "isinstance(config, SimMIMConfig)" not in source


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
