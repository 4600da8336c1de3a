"""Checkpoints of the authors' code and of mmpretrain, converted to ours."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from original_files import save, swin_weights
from paths import FIXTURES
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForMaskedImageModeling

from hf_simmim import SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.checkpoints.convert import convert_checkpoint, save_conversion
from hf_simmim.checkpoints.pth_files import read_pth
from hf_simmim.checkpoints.pth_settings import literals
from hf_simmim.model.remote_code import code_files

MMPRETRAIN_CLASSIFIERS = ["mmpretrain_swin_classifier", "mmpretrain_swinv2_classifier"]

MMPRETRAIN_CLASSIFIERS += ["mmpretrain_swinv2_finetuned_window"]


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def small_swin(**kwargs) -> dict[str, torch.Tensor]:
    """Weights of a Swin with shifted windows in its first stage and one window in its second."""
    defaults = {"image_size": 32, "window_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 1]}
    return swin_weights(**(defaults | kwargs))


def write(path: Path, weights: dict[str, torch.Tensor], **entries) -> Path:
    return save({"model": weights, **entries}, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


def test_yacs_is_not_needed():
    assert importlib.util.find_spec("yacs") is None
    convert_checkpoint(FIXTURES / "vit_pretrain.pth")


def test_simmim_of_mmpretrain():
    model = convert_checkpoint(FIXTURES / "mmpretrain_simmim_swin.pth").model
    values = load_file(FIXTURES / "mmpretrain_simmim_swin.safetensors")
    outputs = model(values["pixel_values"], bool_masked_pos=values["mask"])
    feature_map = model.simmim(values["pixel_values"], bool_masked_pos=values["mask"]).feature_map
    assert relative_error(feature_map, values["encoder_output"]) < 1e-5
    assert relative_error(outputs.reconstruction, values["reconstruction"]) < 1e-5
    assert relative_error(outputs.loss, values["loss"][0]) < 1e-5


@pytest.mark.parametrize("name", MMPRETRAIN_CLASSIFIERS)
def test_classifiers_of_mmpretrain(name):
    conversion = convert_checkpoint(FIXTURES / f"{name}.pth")
    values = load_file(FIXTURES / f"{name}.safetensors")
    outputs = conversion.model(values["pixel_values"])
    assert relative_error(outputs.feature_map, values["feature_map"]) < 1e-5
    logits = F.linear(outputs.pooler_output, conversion.classifier["head.weight"], conversion.classifier["head.bias"])
    assert relative_error(logits, values["logits"]) < 1e-5
    assert "head.fc.weight, head.fc.bias" in conversion.report["Left out"]


def finetuned(encoder: str) -> dict[str, torch.Tensor]:
    """The golden model as fine-tuning saves it, with the tables that the authors' code made for another size."""
    weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in read_pth(FIXTURES / f"{encoder}_pretrain.pth")["model"].items()
        if name.startswith("encoder.") and not name.endswith(("mask_token", "attn_mask", "relative_position_index"))
    }
    values = load_file(FIXTURES / f"{encoder}_finetune_remap.safetensors")
    weights |= {name: tensor for name, tensor in values.items() if name.endswith("table")}
    width = weights["norm.weight"].shape[0]
    return weights | {"head.weight": torch.ones(5, width), "head.bias": torch.ones(5)}


def test_finetuned_swin_against_the_authors(path):
    config = {"DATA": {"IMG_SIZE": 128}, "MODEL": {"TYPE": "swin", "DROP_PATH_RATE": 0.1, "SWIN": {"WINDOW_SIZE": 4}}}
    conversion = convert_checkpoint(write(path, finetuned("swin"), config=config, epoch=99, max_accuracy=80.0))
    values = load_file(FIXTURES / "swin_finetune_remap.safetensors")
    assert isinstance(conversion.model, SimMIMModel)
    assert relative_error(conversion.model(values["pixel_values"]).pooler_output, values["pooled_features"]) < 1e-5
    assert conversion.model.config.encoder_config.drop_path_rate == 0.1
    assert conversion.report["From"] == "microsoft/SimMIM, without a prediction head, epoch 99"
    assert "head.weight, head.bias" in conversion.report["Left out"]
    assert "mask token" in conversion.report["Not in the file"]


def test_finetuned_vit_against_the_authors(path):
    weights = finetuned("vit")
    for name in ("norm.weight", "norm.bias", "rel_pos_bias.relative_position_bias_table"):
        del weights[name]
    weights |= {"fc_norm.weight": torch.ones(48), "fc_norm.bias": torch.zeros(48)}
    conversion = convert_checkpoint(write(path, weights))
    values = load_file(FIXTURES / "vit_finetune_remap.safetensors")
    outputs = conversion.model(values["pixel_values"])
    assert conversion.model.config.image_size == (96, 96)  # read off the tables
    assert relative_error(outputs.last_hidden_state, values["tokens"][:, 1:]) < 1e-5
    pooled = F.layer_norm(outputs.pooler_output, (48,), eps=1e-6)
    assert relative_error(pooled, values["pooled_features"]) < 1e-5
    assert set(conversion.classifier) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}


def test_supervised_file_without_a_config(path):
    head = {"head.weight": torch.ones(3, 16), "head.bias": torch.ones(3)}
    conversion = convert_checkpoint(write(path, small_swin() | head))
    config = conversion.model.config
    assert (config.image_size, config.encoder_config.window_size) == ((32, 32), 4)
    assert conversion.report["Image size"] == "32 x 32 px, from layers.0.blocks.1.attn_mask"
    assert conversion.report["From"].startswith("microsoft/Swin-Transformer")
    assert conversion.report["Verified"].startswith("4 relative_position_index, 1 attn_mask")
    assert config.encoder_config.num_heads == [2, 1]
    assert config.encoder_config.drop_path_rate == 0.0


def test_stages_smaller_than_the_window(path):
    """The paper's Swin-L: window 12 at 192 px, and a last stage of 6 x 6 tokens."""
    sizes = {"image_size": 192, "window_size": 12, "embed_dim": 4, "depths": [2, 1, 1, 2], "num_heads": [1, 1, 2, 4]}
    model = convert_checkpoint(write(path, small_swin(**sizes))).model
    assert model.config.encoder_config.window_size == 12
    tables = [parameter for name, parameter in model.named_parameters() if name.endswith("bias_table")]
    assert [len(table) for table in tables] == [23**2] * 4 + [11**2] * 2


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "module.encoder."])
def test_prefixes(path, prefix):
    expected = convert_checkpoint(write(path, small_swin())).model.state_dict()
    weights = {prefix + name: tensor for name, tensor in small_swin().items()}
    converted = convert_checkpoint(write(path, weights)).model.state_dict()
    assert expected.keys() == converted.keys()
    assert all(torch.equal(expected[name], converted[name]) for name in expected)


def test_half_precision_is_told(path):
    weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in small_swin().items()}
    conversion = convert_checkpoint(write(path, weights))
    assert conversion.report["Precision"] == "float16 in the file, float32 in the model"
    assert conversion.model.dtype == torch.float32


def test_a_bare_state_dict_is_enough(path):
    assert isinstance(convert_checkpoint(save(small_swin(), path)).model, SimMIMModel)


def test_tensors_win_over_the_stored_config(path):
    config = {"DATA": {"IMG_SIZE": 32}, "MODEL": {"TYPE": "swin", "SWIN": {"EMBED_DIM": 96, "WINDOW_SIZE": 4}}}
    conversion = convert_checkpoint(write(path, small_swin(), config=config))
    assert "embed_dim=96 (the tensors: 8)" in conversion.report["Stored config"]
    assert conversion.model.config.encoder_config.embed_dim == 8


def change(**changes):
    """Weights of the small Swin, some of them replaced, or left out if None."""
    weights = small_swin() | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


BLOCK = "layers__0__blocks__1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{BLOCK}__norm3__weight": torch.ones(8)}, r"1 weights that our swin does not have.*blocks\.1\.norm3"),
        ({f"{BLOCK}__mlp__fc1__bias": None}, r"lacks 1 of our model's .*blocks\.1\.intermediate\.dense\.bias"),
        ({f"{BLOCK}__attn_mask": torch.zeros(4, 16, 16)}, r"attn_mask in the file differs from what our swin computes"),
        (
            {f"{BLOCK}__attn__relative_position_index": torch.zeros(16, 16).long()},
            r"relative_position_index in the file differs from what our swin computes",
        ),
        ({"layers__1__blocks__1__attn_mask": torch.zeros(1, 16, 16)}, "layers.1.blocks.1.attn_mask in the file"),
        ({f"{BLOCK}__norm1__weight": torch.ones(9)}, r"has shape \(9,\) and the model's has \(8,\)"),
        ({"norm__bias": torch.full((16,), torch.nan)}, r"norm.bias in the file has NaN"),
        ({"norm__bias": torch.ones(16).to_sparse()}, r"norm.bias is not a plain tensor"),
        ({"norm__bias": 3}, r"contain 'norm.bias' of type int, which is not a tensor"),
        ({"patch_embed__proj__weight": torch.ones(8, 3, 4)}, r", not 4 dimensions"),
        ({"patch_embed__proj__weight": torch.ones(8, 3, 4, 2)}, "4x2 px; only square patches"),
        ({"layers__0__blocks__0__attn__relative_position_bias_table": torch.ones(48, 2)}, "no square window"),
        ({"layers__3__norm__weight": torch.ones(8)}, r"numbered from 0 .* the file has 0, 1, 3\."),
        ({"encoder__norm__bias": torch.ones(16)}, "has the same weights twice"),
        ({"\x1b[2Jnorm": torch.ones(16)}, r"does not have, .* \?\[2Jnorm\."),
    ],
)
def test_flaws_are_named(path, changes, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write(path, change(**changes)))


def test_tensors_larger_than_their_memory_are_refused(path):
    with pytest.raises(ValueError, match="larger than its data in the file"):
        convert_checkpoint(write(path, change(norm__bias=torch.ones(1).expand(16))))
    weights = small_swin()
    shared = torch.zeros(1000)
    more = {f"layers.0.blocks.{index}.norm1.weight": shared[index:] for index in range(2, 1000)}
    with pytest.raises(ValueError, match="their file holds"):
        convert_checkpoint(write(path, weights | more))


def test_models_that_a_small_file_claims_are_not_built(path):
    """Blocks of which only one small part is there; the others would take memory without end."""
    weights = small_swin()
    more = {f"layers.1.blocks.{index}.norm1.weight": torch.ones(1) for index in range(2, 900)}
    with pytest.raises(ValueError, match="lacks .* of our model's"):
        convert_checkpoint(write(path, weights | more))
    more = {f"layers.1.blocks.{index}.norm1.weight": torch.ones(1) for index in range(2, 1100)}
    with pytest.raises(ValueError, match="at most 999; the file has 0, 1, 2, 3, 4, ..., 1099"):
        convert_checkpoint(write(path, weights | more))
    with pytest.raises(ValueError, match="of 1 to 16384 pixels"):
        convert_checkpoint(write(path, without_masks(), config={"DATA": {"IMG_SIZE": 10**6}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a list, not a dict"),
        ({"optimizer": {}}, "no weights under 'model' or 'state_dict'; it holds optimizer"),
        ({"model": {"conv1.weight": torch.ones(2)}}, "not those of a Swin, SwinV2 or ViT .*conv1.weight"),
        ({"model": small_swin(), "surprise": 1}, "unknown entries: surprise"),
        ({"model": small_swin(), "config": {"DATA": {"IMG_SIZE": "large"}}}, "image_size='large'"),
        ({"model": small_swin(), "config": {"MODEL": {"DROP_PATH_RATE": [0.1]}}}, r"drop_path_rate=\[0.1\]"),
        ({"model": small_swin(), "config": {"MODEL": {"SWIN": {"QK_SCALE": 0.5}}}}, "qk_scale=0.5"),
    ],
)
def test_other_contents_are_refused(path, content, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(content, path))


def without_masks() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in small_swin().items() if not name.endswith("attn_mask")}


def test_image_size_that_the_file_does_not_tell(path):
    write(path, without_masks())
    with pytest.raises(ValueError, match="Set --image_size"):
        convert_checkpoint(path)
    assert convert_checkpoint(path, (32, 64)).model.config.image_size == (32, 64)


def test_image_size_that_contradicts_the_file(path):
    write(path, small_swin())
    with pytest.raises(ValueError, match="--image_size 64 64 contradicts layers.0.blocks.1.attn_mask.* 32 x 32"):
        convert_checkpoint(path, (64, 64))
    write(path, small_swin(), config={"DATA": {"IMG_SIZE": 64}})
    with pytest.raises(ValueError, match="stored config has images of 64 x 64 .* --image_size 32 32"):
        convert_checkpoint(path)
    conversion = convert_checkpoint(path, (32, 32))
    assert conversion.report["Image size"] == "32 x 32 px, from --image_size; the stored config has 64 x 64"


def test_stages_that_mmpretrain_pads(path):
    content = read_pth(FIXTURES / "mmpretrain_swin_classifier.pth")
    content["meta"]["cfg"] = content["meta"]["cfg"].replace("img_size=56", "img_size=40")
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"window of 7 and a grid of 5x5 .*pad_small_map=True.* --image_size 56"):
        convert_checkpoint(path)
    assert "--image_size; the stored config has 40 x 40" in convert_checkpoint(path, (56, 56)).report["Image size"]


def test_masks_and_statistics_of_mmpretrain(path):
    content = read_pth(FIXTURES / "mmpretrain_simmim_swin.pth")
    content["meta"]["cfg"] += (
        "data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[51, 51, 51])\n"
        "train_pipeline = [dict(type='SimMIMMaskGenerator', mask_patch_size=16, mask_ratio=0.75)]\n"
    )
    del content["message_hub"]
    torch.save(content, path)
    processor = convert_checkpoint(path).processor
    assert (processor.mask_patch_size, processor.mask_ratio) == (16, 0.75)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.2] * 3)


def test_python_configs_are_parsed_and_not_run(tmp_path):
    text = f"a = dict(b=[1, -2.5], c={{'d': (True, None)}})\ne = open({str(tmp_path / 'victim')!r}, 'w')\nimport os\n"
    assert literals(text) == {"a": {"b": [1, -2.5], "c": {"d": [True, None]}}, "e": None}
    assert not (tmp_path / "victim").exists()
    assert literals("not python (") == {}
    assert literals("a = " + "[" * 10000) == {}


def test_pretrained_windows_of_swinv2_are_in_its_buffers(path):
    """Without the stored config, the buffers tell."""
    content = read_pth(FIXTURES / "mmpretrain_swinv2_finetuned_window.pth")
    del content["meta"]
    torch.save(content, path)
    encoder = convert_checkpoint(path, (64, 64)).model.config.encoder_config
    assert (encoder.window_size, list(encoder.pretrained_window_sizes)) == (4, [3, 3])
    for name in [name for name in content["state_dict"] if name.endswith("relative_coords_table")]:
        del content["state_dict"][name]
    torch.save(content, path)
    with pytest.raises(ValueError, match="No weight of SwinV2 determines the window"):
        convert_checkpoint(path, (64, 64))


def test_pretrained_windows_that_the_buffers_contradict(path):
    content = read_pth(FIXTURES / "swinv2_pretrain.pth")
    content["config"]["MODEL"]["SWINV2"]["PRETRAINED_WINDOW_SIZES"] = [3, 3, 3, 3]
    with pytest.raises(ValueError, match="relative_coords_table in the file differs from what our swinv2 computes"):
        convert_checkpoint(save(content, path))


@pytest.mark.parametrize("encoder", ["swin", "swinv2", "vit"])
def test_saved_checkpoint_loads_everywhere(tmp_path, encoder):
    conversion = convert_checkpoint(FIXTURES / f"{encoder}_pretrain.pth")
    save_conversion(conversion, tmp_path / "out")
    assert isinstance(AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "out"), SimMIMForMaskedImageModeling)
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    size = conversion.model.config.image_size
    assert dict(processor.size) == {"height": size[0], "width": size[1]}
    assert (processor.mask_patch_size, processor.mask_ratio) == (32, 0.6)
    assert processor.model_patch_size == model.config.patch_size
    inputs = processor(torch.zeros(3, 50, 60, dtype=torch.uint8), do_mask=True, seed=0, return_tensors="pt")
    assert torch.isfinite(model(**inputs).last_hidden_state).all()


def test_card_of_an_encoder_alone(tmp_path, path):
    save_conversion(convert_checkpoint(write(path, small_swin())), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "use_mask_token=False" in text
    assert "xie2021simmim" not in text
    assert "AutoModelForMaskedImageModeling" not in text
    loaded = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "out")
    assert loaded.simmim.encoder.embeddings.mask_token.abs().sum() > 0


def test_nothing_is_overwritten_unasked(tmp_path, path):
    conversion = convert_checkpoint(write(path, small_swin()))
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty.*--overwrite"):
        save_conversion(conversion, out)
    save_conversion(conversion, out, overwrite=True)
    names = {"README.md", "config.json", "model.safetensors", "notes.txt", "preprocessor_config.json"}
    assert {path.name for path in out.iterdir()} == names | {path.name for path in code_files()}
    with pytest.raises(ValueError, match="is a file"):
        save_conversion(conversion, out / "notes.txt")


def test_a_checkpoint_that_changes_on_the_way_is_not_left_behind(tmp_path, path, monkeypatch):
    conversion = convert_checkpoint(write(path, small_swin()))
    original = SimMIMModel.save_pretrained

    def save_another(model, *args, **kwargs):
        with torch.no_grad():
            model.encoder.layernorm.bias.add_(1)
            original(model, *args, **kwargs)
            model.encoder.layernorm.bias.sub_(1)

    monkeypatch.setattr(SimMIMModel, "save_pretrained", save_another)
    with pytest.raises(RuntimeError, match="does not compute the same as the converted model"):
        save_conversion(conversion, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
