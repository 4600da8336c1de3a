"""The plan of a pre-training: what it prints, and that nothing is written."""

import json
import shlex

import numpy as np
import pytest
from photos import random_photo
from tiny import vit_config

from hf_simmim.cli import plan, pretrain
from hf_simmim.planning import rehearsal


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "MAX_SECONDS", 0.5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    for index in range(30):
        random_photo(np.random.default_rng(index), (40, 32)).save(tmp_path / "my photos" / f"{index}.png")
    return tmp_path / "my photos"


def test_the_command_trains_as_planned(photos, capsys):
    encoder = json.dumps(vit_config().to_diff_dict() | {"model_type": "vit"})
    words = ["my photos", "--encoder", encoder, "--mask_patch_size", "8", "--hours", "0.03", "--use_cpu", "true"]
    result = plan.COMMAND.main([*words, "--output_dir", "out", "--dataloader_num_workers", "0"])
    printed = capsys.readouterr().out
    assert sorted(path.name for path in photos.parent.iterdir()) == ["my photos"]
    assert "40 x 32 px; 3 channels; 8 bits" in printed
    assert "Forecast" in printed
    assert result.plan.expected.hours > 0
    program, name, *options = shlex.split(printed.splitlines()[-1])
    assert (program, name) == ("hf-simmim", "pretrain")
    assert "--hours" not in options
    data, model, arguments = pretrain.COMMAND.parse(options)
    assert (data.train_dir, arguments.output_dir) == ("my photos", "out")
    assert arguments.num_train_epochs == result.plan.automatic.values["num_train_epochs"]
    assert (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size) == (16, 16)
    assert json.loads(model.encoder)["model_type"] == "vit"


def test_a_recipe_stays_a_recipe(photos, capsys):
    plan.COMMAND.main(
        ["my photos", "--recipe", "small_budget__cpu", "--per_device_train_batch_size", "4", "--use_cpu", "true",
         "--dataloader_num_workers", "0"]
    )  # fmt: skip
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["hf-simmim", "pretrain"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert options == {
        "--train_dir": "my photos",
        "--recipe": "small_budget__cpu",
        "--per_device_train_batch_size": "4",
        "--use_cpu": "True",
        "--dataloader_num_workers": "0",
    }


def test_a_single_image_leaves_none_for_validation(tmp_path):
    random_photo(np.random.default_rng(0), (40, 32)).save(tmp_path / "one.png")
    with pytest.raises(SystemExit, match=r"of 1 image leaves none\. Use 0 to hold out none"):
        plan.COMMAND.main([str(tmp_path)])
