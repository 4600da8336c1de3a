"""The segmentation script, run as a user runs it, on small scenes."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from cards import check_card, table
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from segmentation_scenes import CLASS_NAMES, write_scenes
from tiny import swin_config, vit_config
from transformers import AutoImageProcessor, Trainer, UperNetForSemanticSegmentation, ViTModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.cli import segment

ENCODER = {"image_size": 48, "patch_size": 4, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}


@pytest.fixture(scope="module")
def script():
    """The command as a module."""
    return segment


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", 40)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Pre-trained weights of a tiny Swin, with their image processor."""
    return save_checkpoint(tmp_path_factory.mktemp("mim"), swin_config(**ENCODER))


def save_checkpoint(folder, encoder_config, **processor):
    torch.manual_seed(0)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder_config)).save_pretrained(folder)
    size = {"height": 48, "width": 48}
    SimMIMImageProcessor(size=size, mask_patch_size=16, **processor).save_pretrained(folder)
    return folder


def options(checkpoint, data, output_dir, *flags, **kwargs) -> list[str]:
    """A command line for a run of seconds."""
    settings = {
        "checkpoint": checkpoint,
        "train_dir": data,
        "output_dir": output_dir,
        "crop_size": 48,
        "decoder_channels": 16,
        "drop_path_rate": 0.0,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 4e-3,
        "dataloader_num_workers": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    } | kwargs
    pairs = ((f"--{key}", str(value)) for key, value in settings.items() if value is not None)
    return ["--use_cpu", *flags, *(text for pair in pairs for text in pair)]


def parse(script, arguments: list[str]):
    """Options of the script, as it parses them."""
    return script.COMMAND.parse(arguments)


def test_learns_to_segment(script, scenes, checkpoint, tmp_path, capsys):
    script.COMMAND.main(options(checkpoint, scenes, tmp_path, num_train_epochs=18, layer_decay=0.9, max_eval_samples=4))
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["iou"]) == list(CLASS_NAMES)
    assert results["steps"] == 72
    # Ground everywhere, the constant prediction, has less than 0.3.
    assert results["mean_iou"] > 0.5
    printed = capsys.readouterr().out
    assert f"mean   {results['mean_iou']:7.2%}" in printed
    text = check_card(ModelCard.load(tmp_path / "README.md"), tmp_path)
    rows = table(text)
    assert (rows["mean IoU"], rows["steps"]) == (f"**{results['mean_iou']:.1%}**", "72, 18 epochs")
    assert [rows[name] for name in CLASS_NAMES] == [f"{results['iou'][name]:.1%}" for name in CLASS_NAMES]
    assert f"- type: mean_iou\n      value: {round(results['mean_iou'], 4)}" in text
    assert rows["learning rate"].startswith("0.004")
    assert rows["layer-wise decay"].startswith("0.9, ")
    assert "72 steps (18 epochs), batch size 8, peak learning rate 0.004, 1 x CPU, warm-up 7" in printed
    assert Image.open(tmp_path / "segmentation.png").size[0] > 600

    # The figures are those of the saved model on whole images, at the size of their annotations.
    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert model.config.id2label == dict(enumerate(CLASS_NAMES))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size.shortest_edge == 48
    data = parse(script, options(checkpoint, scenes, tmp_path, max_eval_samples=4))[0]
    counts = np.zeros((3, 3))
    _, validation = script.load_splits(data)
    for image, annotation in zip(validation.images, validation.annotations, strict=True):
        ids = np.asarray(Image.open(annotation["image"]["path"]))
        picture = Image.open(image["image"]["path"])
        scale = 48 / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        pixel_values = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) / 255
        pixel_values = torch.tensor(pixel_values).permute(2, 0, 1) - torch.tensor(processor.image_mean).view(3, 1, 1)
        pixel_values = (pixel_values / torch.tensor(processor.image_std).view(3, 1, 1)).float()[None]
        pixel_values = F.pad(pixel_values, (0, -size[0] % 32, 0, -size[1] % 32))
        with torch.no_grad():
            logits = model(pixel_values).logits[:, :, : size[1], : size[0]]
        predicted = F.interpolate(logits, size=ids.shape, mode="bilinear")[0].argmax(0).numpy()
        np.add.at(counts, (ids[ids != 255], predicted[ids != 255]), 1)
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    # JPEG files are decoded at a smaller scale where that is enough.
    assert results["mean_iou"] == pytest.approx(iou.mean(), abs=0.02)


def test_pushes_are_whole_and_tell_no_paths(script, scenes, checkpoint, tmp_path, hub, monkeypatch, capsys):
    pushed = {"push_to_hub": True, "hub_model_id": "org/scenes", "hub_always_push": True, "hub_license": "mit"}
    saves = {"num_train_epochs": 2, "max_train_samples": 16, "eval_strategy": "epoch", "save_strategy": "epoch"}
    script.COMMAND.main(options(checkpoint, scenes, tmp_path, **pushed, **saves))
    assert hub.titles("org/scenes")[:-1] == ["End of training", *(f"Training in progress, epoch {i}" for i in (2, 1))]
    assert "/commit/" in capsys.readouterr().out.splitlines()[-2]
    repository = hub.store.get("models", "org/scenes")
    cards = [repository.file("README.md", commit.oid).decode() for commit in list(repository.history("main"))[:-1]]
    # The picture is drawn at the end.
    assert ["](segmentation.png)" in card for card in cards] == [True, False, False]
    assert ["not finished" in card for card in cards] == [False, False, True]
    for card, step in zip(cards, (4, 4, 2), strict=True):
        ModelCard(check_card(ModelCard(card), tmp_path)).validate()
        assert f"after step {step}:" in card
        assert f"| initial weights | {checkpoint.name} |" in card
        assert "license: mit" in card
        assert str(checkpoint.parent) not in card
    files = hub.files("org/scenes")
    assert all(str(checkpoint.parent).encode() not in files[name] for name in ("config.json", "results.json"))

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 71)).save("photo.jpg")
    found = {}
    (code,) = re.findall(r"^```python\n(.*?)\n```$", cards[0], re.DOTALL | re.MULTILINE)
    exec(code, found)
    assert found["logits"].shape == (1, 3, 68, 48)
    assert found["classes"].shape == (1, 68, 48)
    pushed, kept = found["model"].state_dict(), load_file("model.safetensors")
    assert all(torch.equal(tensor, pushed[name]) for name, tensor in kept.items())


def test_killed_and_resumed_equals_uninterrupted(script, scenes, checkpoint, tmp_path):
    settings = {
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 9,
        "max_train_samples": 32,
    }
    script.COMMAND.main(options(checkpoint, scenes, tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for path in (*(tmp_path / "killed").glob("checkpoint-[!3]*"), tmp_path / "killed" / "model.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-3"]
    script.COMMAND.main(options(checkpoint, scenes, tmp_path / "killed", **settings))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    with pytest.raises(SystemExit, match="holds a run with another max_class_share"):
        script.COMMAND.main(options(checkpoint, scenes, tmp_path / "killed", max_class_share=0.5, **settings))


def test_pre_trained_weights_and_the_control(script, scenes, checkpoint, tmp_path):
    pretrained = load_file(checkpoint / "model.safetensors")
    table = "simmim.encoder.encoder.layers.0.blocks.0.intermediate.dense.weight"
    for flags in ([], ["--from_scratch"]):
        parsed = parse(script, options(checkpoint, scenes, tmp_path / f"{flags}", "--gradient_checkpointing", *flags))
        trainer, _ = script.build_trainer(*parsed)
        assert torch.equal(trainer.model.state_dict()[f"backbone.{table}"], pretrained[table]) == (not flags)
        assert trainer.model.backbone.is_gradient_checkpointing
        assert trainer.train().global_step > 0
        rates = {round(group["lr_scale"], 3) for group in trainer.optimizer.param_groups}
        assert rates == {1.0}


def test_the_unmodified_trainer_trains_the_same(script, scenes, checkpoint, tmp_path):
    """What the script's own adds is cards, pushes and whole evaluations."""
    trained = []
    for is_plain in (False, True):
        parsed = parse(script, options(checkpoint, scenes, tmp_path / str(is_plain), max_steps=3))
        trainer, _ = script.build_trainer(*parsed)
        before = trainer.model.state_dict()["decode_head.classifier.weight"].clone()
        if is_plain:
            trainer = Trainer(
                model=trainer.model,
                args=trainer.args,
                train_dataset=trainer.train_dataset,
                data_collator=trainer.data_collator,
                optimizers=(trainer.optimizer, trainer.lr_scheduler),
            )
        trainer.train()
        trained.append(trainer.model.state_dict())
        assert not torch.equal(trained[-1]["decode_head.classifier.weight"], before)
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "transformers"])
def test_encoders_of_one_stride_get_a_pyramid(script, scenes, tmp_path, stock):
    encoder_config = vit_config(num_hidden_layers=6, image_size=48)
    if stock:
        torch.manual_seed(0)
        ViTModel(encoder_config).save_pretrained(tmp_path / "vit")
    else:
        save_checkpoint(tmp_path / "vit", encoder_config)
    script.COMMAND.main(
        options(tmp_path / "vit", scenes, tmp_path / "out", "--bf16", max_steps=1, crop_size=64, max_eval_samples=2)
    )
    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.backbone.out_features == ["stage2", "stage3", "stage4", "stage6"]
    assert model.backbone.pyramid is not None


def test_many_channels_of_16_bits(script, tmp_path):
    save_checkpoint(
        tmp_path / "mim",
        swin_config(**ENCODER, num_channels=5),
        image_mean=[0.2] * 5,
        image_std=[0.1] * 5,
        rescale_factor=1e-4,
    )
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for index in range(10):
        array = rng.integers(0, 4000, (60, 52, 5), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "data" / "images" / f"{index}.tif", array, planarconfig="contig")
        np.save(tmp_path / "data" / "masks" / f"{index}.npy", rng.integers(0, 3, (60, 52)))
    script.COMMAND.main(options(tmp_path / "mim", tmp_path / "data", tmp_path / "out", max_steps=1, holdout=0.2))
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["iou"]) == ["class 0", "class 1", "class 2"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.rescale_factor, tuple(processor.image_mean)) == (1e-4, (0.2,) * 5)


def test_columns_of_a_data_set(script, scenes, checkpoint, tmp_path):
    names = sorted(path.stem for path in (scenes / "masks").iterdir())[:12]
    images = [str(next((scenes / "images").glob(f"{name}.*"))) for name in names]
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    masks = [str(scenes / "masks" / f"{name}.png") for name in names]
    Dataset.from_dict({"image": images, "label": masks}, features=features).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "ids.json").write_text(json.dumps({"id2label": {"0": "sky", "1": "sun", "2": "box"}}))
    script.COMMAND.main(
        options(
            *(checkpoint, None, tmp_path / "out"),
            dataset_name=tmp_path / "set",
            annotation_column="label",
            class_names=tmp_path / "ids.json",
            max_steps=1,
        )
    )
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["iou"]) == ["sky", "sun", "box"]


def test_the_recipe_is_one_of_the_script(script, tmp_path):
    recipe = "swin_base__crop512_window7__ade20k"
    data, _, model, arguments = parse(script, ["--recipe", recipe, "--output_dir", str(tmp_path), "--use_cpu"])
    assert (data.crop, data.side, data.reduce_labels, model.window_size) == ((512, 512), 512, True, 7)
    assert (arguments.max_steps, arguments.learning_rate, arguments.warmup_steps) == (160_000, 6e-5, 1500)


def remove_mask(folder):
    next((folder / "masks").iterdir()).unlink()


def resize_mask(folder):
    path = next((folder / "masks").iterdir())
    Image.open(path).resize((10, 10)).save(path)


def forget_a_class(folder):
    (folder / "classes.txt").write_text("ground\ndisc\n")


def one_class(folder):
    (folder / "classes.txt").unlink()
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.uint8(np.asarray(Image.open(path)) == 1) * 255).save(path)


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (remove_mask, {}, "1 of 10 images .* have no mask"),
        (resize_mask, {}, "has 10x10 pixels and its image"),
        (forget_a_class, {}, "has the value 2; the 2 classes are 0 to 1"),
        (one_class, {}, "have at most one class besides ignore_index=255"),
        (None, {"ignore_index": 2}, "ignore_index=2 is one of the 3 classes"),
        (None, {"ignore_index": 0}, "0 is one of the 3 classes. If 0 means no class, use reduce_labels"),
        (None, {"train_dir": None}, "There are no images"),
        (None, {"checkpoint": None}, "checkpoint is not set"),
        (None, {"checkpoint": "/nowhere/at/all"}, "neither the folder of a model"),
        (None, {"per_device_train_batch_size": 16}, "9 images are fewer than the batch size of 16"),
        (None, {"per_device_train_batch_size": 1}, "which must be two or more. Use 2"),
        (
            None,
            {"per_device_train_batch_size": 4, "dataloader_drop_last": False},
            "9 images leave a single one for the last batch",
        ),
        (None, {"out_features": "stage7"}, "subset of stage_names"),
        (None, {"max_steps": 2, "warmup_steps": 2}, "warmup_steps=2 covers all 2 steps"),
        (None, {"holdout": 0.01}, "leaves none for validation"),
    ],
)
def test_errors_before_work_is_lost(script, checkpoint, tmp_path, spoil, changes, message):
    folder = write_scenes(tmp_path / "data", 10)
    if spoil:
        spoil(folder)
    settings = {"checkpoint": checkpoint, "train_dir": folder} | changes
    arguments = options(settings.pop("checkpoint"), settings.pop("train_dir"), tmp_path / "out", **settings)
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main(arguments)
