"""What is in the wheel and the source distribution, how an installed wheel works, and what leaves for the Hub."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from paths import PACKAGE, ROOT, TRAVELING
from PIL import Image

import hf_simmim
from hf_simmim.hub.card import template_path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Source distribution and, made of it, the wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("distributions")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(distributions):
    return zipfile.ZipFile(distributions[1])


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Programs of an environment that has the wheel, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # The other packages are those of the environment that runs the tests: a path that is listed in a file does not
    # bring that environment's own links, among them the one to this checkout.
    (packages / "dependencies.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*command, "--force-reinstall", str(distributions[1])], check=True, capture_output=True)
    return folder / "bin"


def test_source_distribution(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = {path.relative_to(ROOT).as_posix() for path in (*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.json"))}
    assert tracked | {"LICENSE", "README.md", "CITATION.cff", "model_card_template.md", "pyproject.toml"} <= names


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
    assert {entry.split(",")[0] for entry in metadata.get_all("Project-URL")} >= {
        "Repository",
        "Documentation",
        "Issues",
    }
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


TINY = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
SHORT = ["--use_cpu", "--dataloader_num_workers", "0", "--disable_tqdm", "true"]


def test_an_installed_wheel_does_everything_on_a_folder_of_pictures(installed, tmp_path):
    """Outside of the checkout: commands, recipes by name, and a remedy where the demo's images are not."""
    generator = np.random.default_rng(0)
    for index in range(60):
        path = tmp_path / "pictures" / ("dark", "bright")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (40, 48, 3)) + 120 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*words: str, program: str = "hf-simmim") -> subprocess.CompletedProcess:
        command = [str(installed / program), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    def succeed(*words: str, **kwargs) -> str:
        done = run(*words, **kwargs)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    where = succeed("-c", "import hf_simmim; print(hf_simmim.__file__)", program="python")
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert len(succeed("--help").splitlines()) < 24
    assert "Did you mean --train_dir?" in run("pretrain", "--trian_dir", "pictures").stderr
    demo = run("pretrain")
    assert demo.returncode == 1
    assert re.fullmatch(r"error: No images are named\. Give a folder with --train_dir\..*make demo.*\n", demo.stderr)

    train = ["--train_dir", "pictures", "--encoder", json.dumps(TINY), "--mask_patch_size", "8", *SHORT]
    sizes = ["--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8", "--num_train_epochs", "1"]
    succeed("pretrain", "--recipe", "small_budget__cpu", *train, *sizes, "--holdout", "0.1", "--output_dir", "run")
    assert {"model.safetensors", "README.md", "reconstruction.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    succeed("probe", "--checkpoint", "run", "--train_dir", "pictures", "--k", "3", "--dataloader_num_workers", "0")
    succeed("reconstruct", "--checkpoint", "run", "--images", "pictures")
    succeed("embed", "--checkpoint", "run", "--image_dir", "pictures", "--num_workers", "0", "--map", "pca")
    options = {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True, "dataloader_num_workers": 0}
    compared = succeed(
        *("compare", "--checkpoint", "run", "--train_dir", "pictures", "--labels_per_class", "4", "--seeds", "0", "1"),
        *("--finetune_options", json.dumps(options)),
    )
    assert "pre-training helps" in compared
    for name in ("probe/accuracy.png", "features/map.png", "features/neighbours.png", "comparison/comparison.png"):
        assert (tmp_path / "runs" / name).exists()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
