"""A canary in every pickled format that a user can be handed: reading it would make a folder, and never does."""

import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from pretraining import ENCODER, options, photos, run_mim
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from hf_simmim import SimMIMForMaskedImageModeling
from hf_simmim.cli import COMMANDS, convert, embed, replay
from hf_simmim.data.reading import open_row
from hf_simmim.data.sources import load_images
from hf_simmim.data.streaming import stream_images
from hf_simmim.training.saving.checkpoints import MANIFEST, finish_checkpoint

__all__ = ["photos", "run_mim"]


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, nest: Path):
        self.nest = nest

    def __reduce__(self):
        return Path.mkdir, (self.nest, 0o777, True, True)


@pytest.fixture
def nest(tmp_path):
    """The folder that a canary would make; it must not be there at the end."""
    nest = tmp_path / "nest"
    yield nest
    assert not nest.exists()


def archived(content: bytes) -> bytes:
    """As torch.save has it: a zip file with the pickle in it."""
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file)
    written = io.BytesIO()
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, content if entry.filename.endswith("data.pkl") else before.read(entry))
    return written.getvalue()


def spoil(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_the_canary_sings(tmp_path):
    for number, wrap in enumerate((bytes, archived)):
        nest = tmp_path / str(number)
        content = wrap(pickle.dumps(Canary(nest)))
        if wrap is bytes:
            pickle.loads(content)
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        assert nest.exists()


@pytest.mark.parametrize("wrap", [pytest.param(bytes, marks=pytest.mark.slow), archived], ids=["pickle", "torch"])
def test_checkpoints_of_a_training(run_mim, photos, tmp_path, nest, wrap):
    """Whoever hands out a folder can write its manifest, too."""
    run = tmp_path / "run"
    run_mim.COMMAND.main(options(photos, run, max_steps=2, save_strategy="steps", save_steps=2))
    content = wrap(pickle.dumps(Canary(nest)))
    (original,) = run.glob("checkpoint-*")
    pickled = sorted(path.name for path in original.iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} <= set(pickled)
    for name in [*pickled, "scaler.pt", "pytorch_model.bin"]:
        handed = tmp_path / name / "run"
        shutil.copytree(run, handed)
        staged, final = handed / "staged", handed / original.name
        final.rename(staged)
        (staged / MANIFEST).unlink()
        spoil(staged / name, content)
        if name == "pytorch_model.bin":
            (staged / "model.safetensors").unlink()
        finish_checkpoint(staged, final)
        for path in (handed, final):
            spoil(path / "training_args.bin", content)
        # Resumed, as it is and by name, and used as weights.
        starts: list[dict] = [{"resume_from_checkpoint": final} if name == "optimizer.pt" else {}]
        if name.endswith(".bin"):
            starts.append({"checkpoint": final, "output_dir": tmp_path / "new"})
        for others in starts:
            words = {"max_steps": 4, **others, **({"encoder": None} if "checkpoint" in others else {})}
            line = options(photos, words.pop("output_dir", handed), **words)
            try:
                run_mim.COMMAND.main(line)
            except (SystemExit, pickle.UnpicklingError, RuntimeError):
                continue
            finally:
                shutil.rmtree(tmp_path / "new", ignore_errors=True)
        assert not nest.exists(), name


@pytest.mark.parametrize("wrap", [bytes, archived], ids=["pickle", "torch"])
def test_weights(tmp_path, nest, wrap):
    content = wrap(pickle.dumps(Canary(nest)))
    model = tmp_path / "model"
    config = SimMIMForMaskedImageModeling.config_class(encoder_config=ENCODER)
    SimMIMForMaskedImageModeling(config).save_pretrained(model)
    assert load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    spoil(model / "pytorch_model.bin", content)
    assert AutoConfig.from_pretrained(model).model_type == "simmim"
    for load in (AutoModel.from_pretrained, SimMIMForMaskedImageModeling.from_pretrained):
        with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
            load(model)
    for command, words in (
        (embed, ["--checkpoint", str(model), "--image_dir", str(tmp_path)]),
        (replay, [str(model)]),
    ):
        with pytest.raises((SystemExit, pickle.UnpicklingError, RuntimeError)):
            command.COMMAND.main(words)
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(SystemExit):
        convert.COMMAND.main([str(tmp_path / "weights.pth"), str(tmp_path / "converted")])
    assert "convert" in COMMANDS


def test_code_of_a_checkpoint(tmp_path, nest):
    """Not run, unless `trust_remote_code` says so; where the package is installed, it is used instead."""
    config = SimMIMForMaskedImageModeling.config_class(encoder_config=ENCODER)
    SimMIMForMaskedImageModeling(config).save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model").glob("*.py"):
        path.write_text(f"import pathlib\npathlib.Path({str(nest)!r}).mkdir()\n")
    assert type(AutoModel.from_pretrained(tmp_path / "model")).__module__.startswith("hf_simmim")


def test_images(tmp_path, nest):
    content = pickle.dumps(Canary(nest))
    array = io.BytesIO()
    np.save(array, np.array([Canary(nest)], dtype=object), allow_pickle=True)
    for number, data in enumerate((content, array.getvalue(), archived(content))):
        for suffix in (".npy", ".png", ".tif"):
            (tmp_path / f"{number}{suffix}").write_bytes(data)
            for source in ({"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / f"{number}{suffix}")}):
                with pytest.raises(Exception):  # noqa: B017, PT011  readers raise anything
                    open_row({"image": source, "name": ""}, 3, 1 / 255)


def test_shards(tmp_path, nest):
    """webdataset knows kinds of files that are pickles."""
    content = pickle.dumps(Canary(nest))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, data in (("png", content), ("pyd", content), ("pickle", content), ("pth", archived(content))):
            info = tarfile.TarInfo(f"0.{kind}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    images = stream_images(data_files=[str(tmp_path / "a.tar")], cache_folder=tmp_path / "cache")
    assert images[0]["image"]["bytes"] == content
    try:
        rows = load_images(data_files=[str(tmp_path / "a.tar")])
        assert rows[0]["image"]["bytes"] == content
    except ValueError:
        pass
    table = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    images = stream_images(data_files=[str(tmp_path / "a.parquet")], cache_folder=tmp_path / "cache")
    with pytest.raises(Exception):  # noqa: B017, PT011
        open_row(images[0], 3, 1 / 255)
