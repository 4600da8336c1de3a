"""Prediction heads on several encoders, and hidden states fused to their input."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import ENCODER_CONFIGS, batch, swin_config, vit_config
from transformers import AutoModel, SwinForMaskedImageModeling, Swinv2Config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model.encoder_stages import HiddenState, hidden_states
from hf_simmim.model.heads import HEADS, HiddenStateFusion, InverseSwinHead, split_squares
from hf_simmim.model.masking import to_pixels
from hf_simmim.model.swin import SwinBlock, join_squares

# Of heads that are large by default.
SMALL: dict[str, dict] = {
    "inverse_swin": {"embed_dim": 8, "depths": [2, 1, 1, 2], "num_heads": [2, 2, 2, 2], "window_size": 4}
}

heads = pytest.mark.parametrize("head", HEADS)
encoders = pytest.mark.parametrize("encoder", ["swin", "vit", "resnet"])
all_encoders = pytest.mark.parametrize("encoder", ENCODER_CONFIGS)


def make_config(head: str = "linear", encoder: str = "swin", encoder_options: dict | None = None, **kwargs):
    options = {"head_options": SMALL.get(head, {})} | kwargs
    return SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder](**(encoder_options or {})), head=head, **options)


def make_model(*args, **kwargs) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(make_config(*args, **kwargs)).eval()
    # Parameters that start at zero would hide what depends on them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def all_but_embedding(encoder: str) -> list[int]:
    return list(range(1, len(hidden_states(make_config(encoder=encoder)))))


@heads
@encoders
@pytest.mark.parametrize("image_size", [(64, 96), (72, 56)])
def test_every_stride_of_the_prediction(head, encoder, image_size):
    stride = make_config(encoder=encoder).encoder_stride
    pixel_values = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
    for prediction_stride in (step for step in (1, 2, 4, 8, 32) if stride % step == 0):
        model = make_model(head, encoder, {"image_size": list(image_size)}, prediction_stride=prediction_stride)
        rows, columns = (math.ceil(side / prediction_stride) for side in image_size)
        with torch.no_grad():
            assert model(pixel_values).prediction.shape == (2, 3, rows, columns)


@heads
@encoders
def test_strides_that_do_not_divide_are_refused_when_the_model_is_built(head, encoder):
    with pytest.raises(ValueError, match=r"prediction's stride of 3 px does not divide. Set prediction_stride.* 1, 2"):
        make_model(head, encoder, prediction_stride=3)


@heads
@pytest.mark.parametrize("head_inputs", [None, [0, -2]])
@encoders
def test_save_and_load(head, encoder, head_inputs, tmp_path):
    model = make_model(head, encoder, head_inputs=head_inputs)
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask).prediction
    model.save_pretrained(tmp_path)
    loaded, info = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(pixel_values, bool_masked_pos=mask).prediction, expected)
    features, info = SimMIMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(features(pixel_values).feature_map, model.simmim(pixel_values).feature_map)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SimMIMModel)


def check_gradients(model):
    pixel_values, mask = batch(model.config)
    model(pixel_values, bool_masked_pos=mask).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"simmim.encoder.{name}" for name in model.simmim.geometry.unused}
    own = [(name, parameter) for name, parameter in model.named_parameters() if name.split(".")[0] != "simmim"]
    # The bias of keys moves all logits of a query alike.
    assert not [name for name, parameter in own if not parameter.grad.any() and not name.endswith("key.bias")]


@heads
@encoders
def test_every_parameter_gets_a_gradient(head, encoder):
    check_gradients(make_model(head, encoder))


@all_encoders
def test_every_parameter_gets_a_gradient_with_hidden_states_fused(encoder):
    check_gradients(make_model(encoder=encoder, head_inputs=all_but_embedding(encoder)))
    check_gradients(make_model(encoder=encoder, head_inputs=[0]))


@heads
@encoders
def test_heads_learn(head, encoder):
    """Two colors, told apart by the sign of one channel of the feature map."""
    stride = make_config(encoder=encoder).encoder_stride
    config = make_config(head, encoder, prediction_stride=stride // 4)
    torch.manual_seed(0)
    module = SimMIMForMaskedImageModeling(config).head
    features = torch.randn(4, config.hidden_size, 4, 4)
    target = features[:, :1].sign().repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    # Transformers without warm-up take small steps.
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3 if head in SMALL else 1e-2)
    losses = []
    for _ in range(50):
        loss = F.mse_loss(module(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The target is of mean 0 and variance 1.
    assert losses[0] > 0.9
    assert min(losses) < 0.7


@heads
@encoders
def test_pixels_under_the_mask_change_nothing(head, encoder):
    model = make_model(head, encoder, head_inputs=[0, *all_but_embedding(encoder)])
    pixel_values, mask = batch(model.config)
    hidden = to_pixels(mask, model.config.patch_size, model.config.image_size)[:, None]
    noise = torch.randn_like(pixel_values) * 100
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask).prediction
        changed = model(torch.where(hidden, noise, pixel_values), bool_masked_pos=mask).prediction
        unhidden = model(torch.where(hidden, pixel_values, noise), bool_masked_pos=mask).prediction
    assert torch.equal(expected, changed)
    assert not torch.allclose(expected, unhidden)


@heads
@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_gradient_checkpointing_gives_the_same_gradients(head, encoder):
    pixel_values, mask = batch(make_config(head, encoder))
    gradients = []
    for checkpointing in (False, True):
        model = make_model(head, encoder, head_inputs=[0, 1]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixel_values, bool_masked_pos=mask).loss.backward()
        gradients.append(torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad]))
    assert torch.allclose(*gradients, rtol=1e-5)


def test_blocks_of_a_head_are_checkpointed(monkeypatch):
    calls = []
    mlp = SwinBlock.mlp
    monkeypatch.setattr(SwinBlock, "mlp", lambda block, tokens: calls.append(1) or mlp(block, tokens))
    model = make_model("inverse_swin", "vit").train()
    model.gradient_checkpointing_enable()
    pixel_values, mask = batch(model.config)
    loss = model(pixel_values, bool_masked_pos=mask).loss
    assert len(calls) == 3
    loss.backward()
    assert len(calls) == 6


@heads
@encoders
def test_bfloat16(head, encoder):
    model = make_model(head, encoder, head_inputs=[0, 1])
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pixel_values, bool_masked_pos=mask)
    assert math.isclose(outputs.loss.item(), expected.loss.item(), rel_tol=0.02)
    outputs.loss.backward()
    model.to(torch.bfloat16)
    outputs = model(pixel_values.bfloat16(), bool_masked_pos=mask)
    assert math.isclose(outputs.loss.item(), expected.loss.item(), rel_tol=0.05)


@pytest.mark.parametrize(("head", "encoder"), [("mlp", "resnet"), ("inverse_swin", "swin")])
def test_compiles_without_graph_breaks(head, encoder):
    # Shapes that another test compiled would make those of this one symbolic.
    torch.compiler.reset()
    options = {"patch_size": 4, "depths": [2, 1], "num_heads": [2, 2]} if encoder == "swin" else {}
    model = make_model(head, encoder, options, head_inputs=[0, 1]).train()
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask)
    expected.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    outputs = torch.compile(model, fullgraph=True, backend="aot_eager")(pixel_values, bool_masked_pos=mask)
    outputs.loss.backward()
    assert torch.allclose(outputs.loss, expected.loss, rtol=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@heads
def test_images_of_another_size_than_the_models(head):
    model = make_model(head, head_inputs=[0, 1])
    for size in ((48, 64), (20, 100), (8, 8)):
        pixel_values = torch.randn(1, 3, *size)
        assert model(pixel_values).prediction.shape == (1, 3, *size)


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_inverse_swin_is_the_papers(size):
    with torch.device("meta"):
        config = SimMIMConfig(head="inverse_swin", head_options={"size": size})
        model = SimMIMForMaskedImageModeling(config)
    depths, width = {"tiny": ([2, 6, 2, 2], 768), "base": ([2, 18, 2, 2], 1024)}[size]
    assert [len(stage.blocks) for stage in model.head.stages] == depths
    widths = [stage.blocks[0].layernorm_before.normalized_shape[0] for stage in model.head.stages]
    assert widths == [width, width // 2, width // 4, width // 8]
    attention = model.head.stages[0].blocks[0].attention.self
    assert (attention.num_heads, attention.relative_position_bias_table.shape[0]) == (width // 32, 11**2)
    # Table 2, with the encoder.
    assert abs(model.num_parameters() / 1e6 - {"tiny": 115.2, "base": 174.8}[size]) < 0.5


def test_the_mlp_has_the_papers_size():
    with torch.device("meta"):
        model = SimMIMForMaskedImageModeling(SimMIMConfig(head="mlp"))
        narrow = SimMIMForMaskedImageModeling(SimMIMConfig(head="mlp", head_options={"hidden_size": 8})).head
    assert abs(model.num_parameters() / 1e6 - 90.9) < 0.05
    assert narrow.projection.weight.shape[:2] == (32 * 32 * 3, 8)


@pytest.mark.parametrize(
    ("strides", "dims", "scale"),
    [
        ((32, 1), [64, 32, 16, 8], 4),
        ((32, 8), [64, 32, 16], 1),
        ((32, 32), [64], 1),
        ((64, 1), [64, 32, 16, 8], 8),
        ((16, 1), [64, 32, 16], 4),
        ((16, 8), [64, 32], 1),
        ((14, 1), [64, 32], 7),
        ((14, 7), [64, 32], 1),
        ((14, 2), [64], 7),
        ((8, 1), [64, 32], 4),
        ((4, 1), [64], 4),
        ((12, 4), [64], 3),
    ],
)
def test_inverse_swin_doubles_the_grid_down_to_4_px(strides, dims, scale):
    head = InverseSwinHead(24, 5, *strides, **SMALL["inverse_swin"])
    assert [stage.blocks[0].layernorm_before.normalized_shape[0] for stage in head.stages] == dims
    assert head.pixel_shuffle.upscale_factor == scale
    ratio = strides[0] // strides[1]
    assert head(torch.randn(2, 24, 2, 3)).shape == (2, 5, 2 * ratio, 3 * ratio)


def test_options_of_inverse_swin_are_in_the_order_of_the_swin():
    options = {"embed_dim": 8, "depths": [1, 2, 3], "num_heads": [1, 2, 4], "window_size": 3}
    head = InverseSwinHead(24, 3, 32, **options)
    assert [len(stage.blocks) for stage in head.stages] == [3, 2, 1]
    assert [stage.blocks[0].attention.self.num_heads for stage in head.stages] == [4, 2, 1]
    assert [stage.window_size for stage in head.stages] == [3, 3, 3]


@pytest.mark.parametrize(
    ("encoder_config", "window"),
    [(swin_config(window_size=3), 3), (vit_config(), 7), (Swinv2Config(image_size=64, window_size=8), 8)],
)
def test_inverse_swin_has_the_windows_of_the_encoder(encoder_config, window):
    with torch.device("meta"):
        model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder_config, head="inverse_swin"))
    assert {stage.window_size for stage in model.head.stages} == {window}


def test_a_change_of_window_takes_the_tables_of_the_head_along(tmp_path):
    options = {key: value for key, value in SMALL["inverse_swin"].items() if key != "window_size"}
    make_model("inverse_swin", head_options=options).save_pretrained(tmp_path)
    loaded = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, window_size=3)
    assert loaded.head.stages[0].blocks[0].attention.self.relative_position_bias_table.shape == (25, 2)
    pixel_values, mask = batch(loaded.config)
    assert loaded(pixel_values, bool_masked_pos=mask).loss.isfinite()


def test_patch_expanding_inverts_the_geometry_of_patch_merging():
    tokens = torch.randn(2, 4, 6, 5)
    assert torch.equal(split_squares(join_squares(tokens)), tokens)


def test_inverse_swin_sees_across_windows_and_the_others_see_one_step():
    torch.manual_seed(0)
    features = torch.randn(1, 24, 16, 16)
    changed = features.clone()
    changed[:, :, 0, 0] += 1
    reach = {}
    for name, spec in HEADS.items():
        head = spec.build(24, 1, 2, 2, **SMALL.get(name, {}))
        difference = (head(changed) - head(features))[0, 0].abs() > 1e-7
        reach[name] = [int(axis.nonzero().max()) for axis in (difference.any(1), difference.any(0))]
    # One stage of two blocks: the windows of 4, then those that are shifted by 2.
    assert reach["inverse_swin"] == [5, 5]
    assert reach["linear"] == reach["mlp"] == [0, 0]


def check_initial_weights(head):
    blocks = [block for stage in head.stages for block in stage.blocks]
    for parameters in (
        [block.attention.self.relative_position_bias_table for block in blocks],
        [block.attention.self.query.weight for block in blocks],
        [block.output.dense.weight for block in blocks],
        [expansion.expansion.weight for expansion in head.expansions],
        [head.embedding.weight],
        [head.projection.weight],
    ):
        values = torch.cat([parameter.flatten() for parameter in parameters])
        assert 0.017 < values.std() < 0.022
        assert abs(values.mean()) < 0.005
    assert not head.projection.bias.any()
    assert (head.norm.weight == 1).all()


def test_initial_weights_are_those_of_swin(tmp_path):
    torch.manual_seed(0)
    config = make_config("inverse_swin")
    check_initial_weights(SimMIMForMaskedImageModeling(config).head)
    SimMIMModel(make_config()).save_pretrained(tmp_path)
    loaded = SimMIMForMaskedImageModeling.from_pretrained(
        tmp_path, head="inverse_swin", head_options=SMALL["inverse_swin"], head_inputs=[0, 1]
    )
    check_initial_weights(loaded.head)
    for norm, projection in zip(loaded.fusion.norms, loaded.fusion.projections, strict=True):
        bound = 1 / math.sqrt(projection.weight[0].numel())
        assert (norm.weight == 1).all()
        assert 0.95 * bound < projection.weight.abs().max() <= bound


def test_layers_of_a_head_are_wrapped_by_fsdp():
    wrapped = {head: set(make_model(head, "vit")._no_split_modules) for head in ("linear", "inverse_swin")}
    assert wrapped["inverse_swin"] == {*wrapped["linear"], "SwinBlock"} > wrapped["linear"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [1, 1]}, r"depths=\[1, 1\] and num_heads=\[3, 6, 12, 24\] are of different lengths"),
        ({"embed_dim": 16}, "stage of 128 channels cannot be split over 24 attention heads. Set num_heads"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_model("inverse_swin", head_options=options)


@all_encoders
def test_the_hidden_states_that_were_chosen_are_fused(encoder):
    """As many steps as the feature map has, from the state of that index and from no other."""
    model = make_model(encoder=encoder, head_inputs=[-2])
    pixel_values, mask = batch(model.config)
    outputs = model.simmim(pixel_values, bool_masked_pos=mask, output_hidden_states=True)
    norm, projection = model.fusion.norms[0], model.fusion.projections[0]
    rows, columns = outputs.feature_map.shape[2:]
    ratio = projection.kernel_size[0]
    state = outputs.hidden_states[-2]
    if state.dim() == 3:
        state = state[:, state.shape[1] - rows * columns * ratio**2 :]
        state = state.transpose(1, 2).unflatten(2, (rows * ratio, columns * ratio))
    # Each square of ratio x ratio steps by hand.
    state = F.layer_norm(state.movedim(1, 3), state.shape[1:2], norm.weight, norm.bias)
    squares = state.unflatten(2, (columns, ratio)).unflatten(1, (rows, ratio))  # B, h, r, w, r, C
    expected = torch.einsum("bhiwjc,dcij->bdhw", squares, projection.weight) + projection.bias[:, None, None]
    prediction = model.head(outputs.feature_map + expected)
    actual = model(pixel_values, bool_masked_pos=mask).prediction
    assert torch.allclose(actual, prediction, atol=1e-4)
    assert not torch.allclose(actual, model.head(outputs.feature_map), atol=1e-2)


def test_layers_behind_a_hidden_state_do_not_change_what_is_fused():
    for index in (0, 1):
        model = make_model(encoder="vit", head_inputs=[index])
        pixel_values, mask = batch(model.config)
        # What is left is the hidden state.
        torch.nn.init.zeros_(model.simmim.encoder.layernorm.weight)
        predictions = [model(pixel_values, bool_masked_pos=mask).prediction]
        for layer in reversed(model.simmim.encoder.layers):
            layer.layernorm_before.weight.data.add_(1)
            predictions.append(model(pixel_values, bool_masked_pos=mask).prediction)
        assert torch.equal(predictions[0], predictions[1])
        assert torch.equal(predictions[1], predictions[2]) == (index == 0)


@all_encoders
def test_what_is_fused_is_where_the_pixels_are(encoder):
    """Tokens in another than reading order, or prefix tokens left in, would move it."""
    image_size = [64, 96] if encoder != "hiera" else [64, 128]
    config = make_config(encoder=encoder, encoder_options={"image_size": image_size})
    model = make_model(encoder=encoder, encoder_options={"image_size": image_size})
    stride = config.encoder_stride
    pixel_values = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    for index in (0, 1, 2, -1):
        config.head_inputs = [index]
        torch.manual_seed(0)
        fusion = HiddenStateFusion(config)
        for row, column in ((0, image_size[1] // stride - 1), (image_size[0] // stride - 1, 0)):
            changed = pixel_values.clone()
            changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] += 3
            fused = []
            with torch.no_grad():
                for images in (pixel_values, changed):
                    outputs = model.simmim(images, output_hidden_states=True)
                    fused.append(fusion(torch.zeros_like(outputs.feature_map), outputs.hidden_states))
            difference = (fused[1] - fused[0]).norm(dim=1)[0]
            found = divmod(int(difference.argmax()), difference.shape[1])
            distance = max(abs(found[0] - row), abs(found[1] - column))
            assert distance <= (0 if model.simmim.geometry.layout == "tokens" or index == 0 else 1)


def test_hidden_states_of_swin():
    """The patch embedding, what enters each further stage, and the output of the last."""
    expected = [(16, 2), (32, 4), (64, 8), (64, 8)]
    assert hidden_states(make_config()) == [HiddenState(*state, "tokens", 0) for state in expected]


@encoders
def test_hidden_states_are_returned_only_if_asked_for(encoder):
    model = make_model(encoder=encoder, head_inputs=[0, 1])
    pixel_values, mask = batch(model.config)
    assert model(pixel_values, bool_masked_pos=mask).hidden_states is None
    assert len(model(pixel_values, bool_masked_pos=mask, output_hidden_states=True).hidden_states) > 2
    model.config.output_hidden_states = True
    assert len(model(pixel_values, bool_masked_pos=mask).hidden_states) > 2


@pytest.mark.parametrize(
    ("encoder", "head_inputs", "message"),
    [
        ("swin", [1, 4], r"has 4, and the encoder returns 4 hidden states. Use indices from -4 to 3"),
        ("vit", [-4], r"has -4, and the encoder returns 3 hidden states. Use indices from -3 to 2"),
        ("swin", [3, -1], "names a hidden state twice"),
    ],
)
def test_hidden_states_that_there_are_not_are_refused(encoder, head_inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(encoder=encoder, head_inputs=head_inputs)


def test_a_decoder_of_the_feature_map_is_not_taken_for_one_of_fused_inputs(tmp_path, caplog):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    stock = SwinForMaskedImageModeling(swin_config(**sizes, encoder_stride=8))
    stock.save_pretrained(tmp_path)
    decoder = stock.decoder[0].weight
    plain = SimMIMForMaskedImageModeling.from_encoder(tmp_path)
    assert torch.equal(plain.head.projection.weight, decoder)
    fused = SimMIMForMaskedImageModeling.from_encoder(tmp_path, head_inputs=[0])
    assert not torch.equal(fused.head.projection.weight, decoder)
    assert torch.equal(
        fused.simmim.encoder.embeddings.patch_embeddings.projection.weight,
        stock.swin.embeddings.patch_embeddings.projection.weight,
    )
