"""What cards tell of where things come from, and what they keep to themselves."""

import subprocess
from pathlib import Path

import pytest
from paths import ROOT

from hf_simmim.cli.options.images import SourceArguments
from hf_simmim.data.sources import EMBEDDED_NAME
from hf_simmim.hub.provenance import (
    ImageSource,
    code_version,
    evaluation_source,
    held_out,
    hub_id,
    image_source,
    last_part,
    safe_command,
    shown_path,
)


@pytest.mark.parametrize(
    ("path", "last", "shown"),
    [
        ("/home/me/my photos", "my photos", "my photos"),
        ("/home/me/photos/", "photos", "photos"),
        (r"C:\Users\me\photos", "photos", "photos"),
        (r"\\server\share\photos", "photos", "photos"),
        ("~/photos", "photos", "photos"),
        ("../secret/photos", "photos", "photos"),
        ("runs/demo", "demo", "runs/demo"),
        (r"runs\demo", "demo", "runs/demo"),
        ("./runs/demo/", "demo", "runs/demo"),
        ("https://me:pass@host/a/b.parquet?token=x", "b.parquet", "b.parquet"),
        ("a|b", "a|b", "a|b"),
    ],
)
def test_only_names_of_paths_are_told(path, last, shown):
    assert last_part(path) == last
    assert shown_path(path) == shown


def test_names_on_the_hub_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/here").mkdir(parents=True)
    assert hub_id("microsoft/swin-base") == "microsoft/swin-base"
    assert hub_id("cifar10") == "cifar10"
    for name in ("org/here", "/a/b", "./a", "../a", "~/a", r"C:\a", "a/b/c", "a b", "", None):
        assert hub_id(name) is None


def test_commands_hold_no_paths_and_no_secrets():
    command = safe_command(
        ["hf-simmim", "pretrain"],
        [
            *("--train_dir", "/home/me/my photos", "--output_dir=/mnt/x/runs/a", "--hub_token", "hf_abcdefghijkl"),
            *("--hub-token", "secret123"),
            *("--hub_token=hf_abcdefghijkl", "--target_options", '{"model": "/home/me/teacher", "layer": 3}'),
            *("--data_files", "https://me:pass@host/a.parquet?sig=1", "../up/b.parquet", "hf_abcdefghijkl"),
            *(
                "--mask_ratio",
                "0.4",
                "0.7",
                "--nodata",
                "-9999",
                "--rescale_factor",
                "1/65535",
                "--checkpoint",
                "org/m",
            ),
            *(
                "--validation_dir",
                r"D:\data\val",
                "--my_api_key",
                "one",
                "two",
                "--average_tokens_across_devices",
                "no",
            ),
        ],
    )
    assert command == (
        "hf-simmim pretrain --train_dir 'my photos' --output_dir=a"
        """ --target_options '{"model": "teacher", "layer": 3}' --data_files https://host/a.parquet b.parquet"""
        " --mask_ratio 0.4 0.7 --nodata -9999 --rescale_factor 1/65535 --checkpoint org/m --validation_dir val"
        " --average_tokens_across_devices no"
    )


HELD_OUT = "0.05 of the images, drawn with seed 0"
ON_HUB = ImageSource("org/cats", hub_id="org/cats", split="train")
FOLDER = ImageSource("cats", "imagefolder")


@pytest.mark.parametrize(
    ("options", "source", "where", "evaluated_on"),
    [
        ({"train_dir": "/a/cats"}, FOLDER, HELD_OUT, ("cats", None)),
        ({"train_dir": "cats", "validation_dir": "/b/dogs"}, FOLDER, "folder `dogs`", ("dogs", None)),
        ({"train_dir": "cats", "holdout": 0.0}, FOLDER, None, ("cats", None)),
        ({"dataset_name": "org/cats", "validation_split": "val"}, ON_HUB, "split val", ("org/cats", "val")),
        # A part of the training images is no split of the data set.
        ({"dataset_name": "org/cats"}, ON_HUB, HELD_OUT, ("org/cats", None)),
        ({"dataset_name": "/a/cats"}, ImageSource("cats", split="train"), HELD_OUT, ("cats", None)),
        (
            {"data_files": ["/a/1.tar", "/a/2.tar"]},
            ImageSource("1.tar and 1 more", "webdataset"),
            HELD_OUT,
            ("1.tar and 1 more", None),
        ),
        (
            {"data_files": ["hf://datasets/org/cats/a.parquet"]},
            ImageSource("a.parquet", "parquet", "org/cats"),
            HELD_OUT,
            ("a.parquet", None),
        ),
        ({}, ImageSource(EMBEDDED_NAME, split="train"), "split test", (EMBEDDED_NAME, "test")),
    ],
)
def test_sources_are_named_without_the_way_to_them(options, source, where, evaluated_on):
    arguments = SourceArguments(**options)
    assert image_source(arguments) == source
    assert held_out(arguments, arguments.holdout, default_split="test") == where
    evaluation = evaluation_source(arguments, default_split="test")
    assert (evaluation.name, evaluation.split) == evaluated_on


def test_the_commit_is_that_of_this_checkout():
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        assert code_version() is None
    else:
        assert (code_version() or "").removesuffix(" with local changes") == done.stdout.strip()
