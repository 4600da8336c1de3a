"""`import hf_simmim` costs next to nothing, and still the Auto classes know the models, whatever is imported first."""

import os
import subprocess
import sys

import pytest
from paths import PACKAGE

import hf_simmim
from hf_simmim.model.image_processing_simmim import SimMIMImageProcessorPil

CHECK = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, CONFIG_MAPPING, MODEL_MAPPING

assert isinstance(AutoImageProcessor.from_pretrained("."), hf_simmim.SimMIMImageProcessorPil)
config = AutoConfig.for_model("simmim", encoder_config="swin-tiny")
assert type(config) is hf_simmim.SimMIMConfig is CONFIG_MAPPING["simmim"]
assert type(AutoModel.from_config(config)) is hf_simmim.SimMIMModel is MODEL_MAPPING[type(config)]
assert type(AutoBackbone.from_config(config)) is hf_simmim.SimMIMBackbone

from hf_simmim.model import images
assert len(images.OTHER_READERS) == 1 and "DICOM" in images.FORMATS
"""


def run(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_cheap(tmp_path):
    code = "import sys, hf_simmim; print({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), dir(hf_simmim))"
    answer = run(code, tmp_path)
    assert answer.startswith("set()")
    assert all(f"'{name}'" in answer for name in hf_simmim.__all__)


@pytest.mark.parametrize(
    "first",
    [
        "import hf_simmim",
        "from transformers import AutoModel, AutoImageProcessor, Trainer, pipeline\nimport hf_simmim",
        "import hf_simmim\nfrom transformers import SwinModel, Trainer, pipeline",
        "import hf_simmim.model.modeling_base",
        "import hf_simmim.formats.readers",
        "import hf_simmim.cli.pretrain",
    ],
)
def test_auto_classes_know_the_models(first, tmp_path):
    SimMIMImageProcessorPil().save_pretrained(tmp_path)
    run(first + CHECK, tmp_path)


def test_tables_are_pickled_with_what_stands_in(tmp_path):
    code = """
import pickle, hf_simmim
from transformers import CONFIG_MAPPING

assert pickle.loads(pickle.dumps(CONFIG_MAPPING))["simmim"] is hf_simmim.SimMIMConfig
"""
    run(code, tmp_path)


EACH_FIRST = """
import os, sys
import torch
from transformers import AutoImageProcessor, AutoModel, Trainer

for name in sys.stdin.read().split():
    child = os.fork()
    if not child:
        import importlib
        try:
            importlib.import_module(name)
            from hf_simmim.model import images
            os._exit(len(images.OTHER_READERS) != 1)
        except BaseException as error:
            print(name, error, file=sys.stderr)
            os._exit(1)
    assert not os.waitpid(child, 0)[1], name
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each module in a process of its own")
def test_any_module_may_be_imported_first():
    folders = ("model", "formats", "curation", "checkpoints")
    paths = [path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EACH_FIRST], input="\n".join(names), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'SimMIMConfigs'"):
        hf_simmim.SimMIMConfigs  # noqa: B018
