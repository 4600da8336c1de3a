"""Encodes visible patches only, and a light decoder that predicts at the masked ones, as in MAE and GreenMIM."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from .encoders import EncoderGeometry, EncoderOutput, mask_pixels, run_encoder, whole
from .masking import patches_with_pixels
from .options import COUNT, Option, is_count, optional
from .visible_windows import visible_windows

# ADD AN ENCODER that can leave masked patches out: a model of transformers whose attention is global and plain, and
# which adds positions to its patch embeddings once. The value is the name of the module that returns prefix tokens and
# patches (B, P + N, D), positions included.
VISIBLE_ENCODERS: dict[str, str] = dict.fromkeys(
    (
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "ijepa",
        "vit_msn",
        "pixio",
        "tipsv2_vision_model",
        "clip_vision_model",
        "chinese_clip_vision_model",
        "siglip_vision_model",
        "aimv2_vision_model",
    ),
    "embeddings",
)

# Our own encoders that leave out masked cells of their last feature map, see visible_windows.py.
WINDOWED_ENCODERS = ("swin", "swinv2")

_WINDOWS = "its attention runs in windows of the whole grid"
_BIAS = "its attention adds a bias for each pair of positions of the whole grid"
_ROTARY = "its attention rotates queries and keys by positions of the whole grid"
# Why the best known other encoders cannot.
_REASONS: dict[str, str] = {
    **dict.fromkeys(("donut-swin", "maskformer-swin", "hiera"), _WINDOWS),
    **dict.fromkeys(("beit", "data2vec-vision"), _BIAS),
    **dict.fromkeys(("dinov3_vit", "mlcd", "mlcd_vision_model", "sapiens2", "sam3_vit_model"), _ROTARY),
    **dict.fromkeys(
        ("resnet", "convnext", "convnextv2", "regnet", "efficientnet"), "its convolutions need whole grids"
    ),
}

HEAD_SIZE = 64
# Wavelengths of the positions reach this many patches, as in MAE.
LONGEST_WAVE = 10_000

DECODER_OPTIONS: dict[str, Option] = {
    "hidden_size": Option(None, optional(is_count), f"{COUNT}, or None for about half of the encoder's"),
    "num_layers": Option(4, is_count, COUNT),
    "num_heads": Option(None, optional(is_count), f"{COUNT}, or None for one for every {HEAD_SIZE} channels"),
}


class EncodeSpec(NamedTuple):
    """A way of encoding masked images, and the options of its decoder."""

    options: dict[str, Option]


# "all": mask tokens stand at masked patches, the paper's way. "visible": the encoder leaves masked patches out.
ENCODE: dict[str, EncodeSpec] = {"all": EncodeSpec({}), "visible": EncodeSpec(DECODER_OPTIONS)}


def why_not_visible(model_type: str) -> str | None:
    """Tell why an encoder cannot encode visible patches only.

    Args:
        model_type: The encoder's `model_type`.

    Returns:
        The reason and the remedy; None if it can.
    """
    if model_type in (*VISIBLE_ENCODERS, *WINDOWED_ENCODERS):
        return None
    reason = _REASONS.get(model_type, "it is not a plain vision transformer that adds positions to its patches")
    return (
        f"encode='visible' does not fit the encoder {model_type!r}: {reason}. Leave encode out, or use one of:"
        f" {', '.join((*WINDOWED_ENCODERS, *VISIBLE_ENCODERS))}, such as"
        " SimMIMConfig(encoder_config={'model_type': 'vit'}), on the command"
        ' line --encoder \'{"model_type": "vit"}\'.'
    )


def masked_cells(bool_masked_pos: torch.Tensor, geometry: EncoderGeometry) -> torch.Tensor:
    """Tell which cells of the feature map are left out: those that hold a masked patch.

    Args:
        bool_masked_pos: Bool mask of shape (B, ceil(H / patch_size), ceil(W / patch_size)), True = masked.
        geometry: Geometry of the encoder.

    Returns:
        Bool tensor of shape (B, ceil(H / stride), ceil(W / stride)).
    """
    size = geometry.stride // geometry.patch_size
    if size == 1:
        return bool_masked_pos
    return F.max_pool2d(bool_masked_pos.float(), size, ceil_mode=True) > 0


def check_cells(
    bool_masked_pos: torch.Tensor, geometry: EncoderGeometry, pixel_mask: torch.Tensor | None = None
) -> None:
    """Refuse masks that leave parts of a cell visible, which would be left out with the masked parts.

    Args:
        bool_masked_pos: Bool mask of shape (B, ceil(H / patch_size), ceil(W / patch_size)), True = masked.
        geometry: Geometry of the encoder.
        pixel_mask: Bool tensor of shape (B, H, W), False at missing pixels: patches without any other are never masked.

    Raises:
        ValueError: If a cell is partly masked; the message has the remedy.
    """
    size = geometry.stride // geometry.patch_size
    if size == 1:
        return
    visible = ~bool_masked_pos
    if pixel_mask is not None:
        visible = visible & patches_with_pixels(pixel_mask, geometry.patch_size)
    some = F.max_pool2d(visible.float(), size, ceil_mode=True) > 0
    if bool((some & masked_cells(bool_masked_pos, geometry)).any()):
        raise ValueError(
            f"encode='visible' leaves out cells of {geometry.stride} px of this encoder, and the mask covers parts of"
            f" some. Use a mask_patch_size that is a multiple of {geometry.stride}."
        )


class _Kept(NamedTuple):
    """Tokens that an encoder keeps."""

    order: torch.Tensor  # indices of patches, visible ones first, (B, V)
    is_visible: torch.Tensor  # False where `order` is padded with masked patches, (B, V)
    tokens: torch.Tensor  # indices of tokens, prefix tokens first, (B, P + V)
    mask: torch.Tensor | None  # False at tokens that are not attended to, (B, P + V); None if all are


def _kept(bool_masked_pos: torch.Tensor, num_prefix_tokens: int) -> _Kept:
    """Visible tokens of each image in reading order, padded to the largest number of them."""
    masked = bool_masked_pos.flatten(1)
    counts = (~masked).sum(1)
    prefix = torch.arange(num_prefix_tokens, device=masked.device).expand(masked.shape[0], -1)
    if torch.compiler.is_exporting():
        # A program for any mask has no shapes that depend on it: it keeps all patches, and attends to visible ones.
        most, fewest = masked.shape[1], 0
        order = torch.arange(most, device=masked.device).expand(masked.shape[0], -1)
        is_visible = ~masked
    else:
        # At least one: an encoder without prefix tokens cannot attend to nothing. Its pixels are zero.
        fewest, most = (max(1, count) for count in torch.stack(counts.aminmax()).tolist())
        order = masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        is_visible = torch.arange(most, device=masked.device) < counts[:, None]
    tokens = torch.cat([prefix, order + num_prefix_tokens], dim=1)
    if most == fewest:
        return _Kept(order, is_visible, tokens, None)
    attended = is_visible | F.pad((counts == 0)[:, None], (0, most - 1))
    return _Kept(order, is_visible, tokens, F.pad(attended, (num_prefix_tokens, 0), value=True))


def keep_visible(encoder: nn.Module) -> nn.Module:
    """Register the hook by which an encoder's embeddings leave masked patches out, unless it is registered.

    Args:
        encoder: An encoder of `VISIBLE_ENCODERS`.

    Returns:
        The module of the embeddings, whose attribute `kept` the hook reads.
    """
    embeddings = encoder.get_submodule(VISIBLE_ENCODERS[str(encoder.config.model_type)])  # type: ignore[union-attr]
    if _gather not in embeddings._forward_hooks.values():
        embeddings.register_forward_hook(_gather)
    return embeddings


def _gather(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Forward hook of the embeddings: only the tokens to keep go on."""
    kept = getattr(module, "kept", None)
    if kept is None:
        return output
    return output.gather(1, kept.tokens[..., None].expand(-1, -1, output.shape[2]))


def encode_visible(
    encoder: Any,
    geometry: EncoderGeometry,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    **kwargs: Any,
) -> EncoderOutput:
    """Run an encoder on the visible patches only.

    Args:
        encoder: The encoder from `build_encoder`, one of `VISIBLE_ENCODERS`.
        geometry: Its geometry.
        pixel_values: Images of shape (B, C, H, W), padded here with zeros to whole strides.
        bool_masked_pos: Bool mask of shape (B, ceil(H / patch_size), ceil(W / patch_size)), True = masked.
        **kwargs: Passed to the encoder, for example `output_attentions`.

    Returns:
        Feature map of shape (B, D, h, w) with zeros at masked cells. Hidden states and attentions of prefix tokens and
        visible patches, padded to the largest number of them in an image; of windowed encoders, hidden states of all
        patches with zeros at masked ones, and no attentions.

    Source: `MaskedAutoencoderViT.forward_encoder` of facebookresearch/mae.
    """
    size = (pixel_values.shape[2], pixel_values.shape[3])
    height, width = whole(size, geometry.stride)
    pixel_values = F.pad(pixel_values, (0, width - size[1], 0, height - size[0]))
    rows, columns = height // geometry.patch_size, width // geometry.patch_size
    bool_masked_pos = F.pad(
        bool_masked_pos, (0, columns - bool_masked_pos.shape[2], 0, rows - bool_masked_pos.shape[1])
    )
    # Pixels are hidden here, too, so that none can leak, and a NaN among them reaches no gradient.
    pixel_values = mask_pixels(pixel_values, bool_masked_pos)
    cells = masked_cells(bool_masked_pos, geometry)
    kept = _kept(cells, geometry.num_prefix_tokens)
    grid_size = (height // geometry.stride, width // geometry.stride)
    if geometry.route == "own":
        wants_states = bool(kwargs.get("output_hidden_states"))
        visible, hidden_states = _encode_windows(encoder, pixel_values, kept, grid_size, wants_states)
        return EncoderOutput(_scatter(visible, kept.order, kept.is_visible, grid_size), hidden_states, None)
    if kept.mask is not None:
        like = pixel_values.new_empty(*kept.mask.shape, 1)
        kwargs["attention_mask"] = create_bidirectional_mask(encoder.config, like, kept.mask)
    embeddings: Any = keep_visible(encoder)
    embeddings.kept = kept
    try:
        outputs = run_encoder(encoder, geometry, pixel_values, **kwargs)
    finally:
        embeddings.kept = None
    visible = outputs.last_hidden_state[:, geometry.num_prefix_tokens :]  # B, V, D
    feature_map = _scatter(visible, kept.order, kept.is_visible, grid_size)
    return EncoderOutput(feature_map, outputs.get("hidden_states"), outputs.get("attentions"))


def _scatter(
    tokens: torch.Tensor, order: torch.Tensor, is_visible: torch.Tensor, grid_size: tuple[int, int]
) -> torch.Tensor:
    """Tokens (B, V, D) at their places (B, V) in a map (B, D, h, w), zero elsewhere."""
    tokens = tokens * is_visible[..., None]
    grid = tokens.new_zeros(tokens.shape[0], grid_size[0] * grid_size[1], tokens.shape[2])
    grid = grid.scatter(1, order[..., None].expand_as(tokens), tokens)
    return grid.transpose(1, 2).unflatten(2, grid_size)


def _encode_windows(
    encoder: Any, pixel_values: torch.Tensor, kept: _Kept, grid_size: tuple[int, int], wants_states: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Run our Swin or SwinV2 on the visible cells only.

    Tokens lie cell by cell, and within one in the order in which patch merging joins them: merging copies nothing.

    Args:
        encoder: The encoder.
        pixel_values: Images of shape (B, C, H, W), of whole cells.
        kept: The cells to keep.
        grid_size: (h, w) in cells.
        wants_states: Whether to return hidden states, which take as much memory as those of all patches.

    Returns:
        Tokens of the last stage (B, V, D), after the final norm, and the hidden states (B, N, C) of all stages with
        zeros at masked patches if they are wanted.
    """
    if torch.compiler.is_exporting():
        raise ValueError(
            "A Swin with encode='visible' cannot be exported with masks, whose windows differ from image to image."
            " Export its features, without bool_masked_pos."
        )
    scales = [2**steps for steps in reversed(range(len(encoder.encoder.layers)))]  # tokens of a cell, per side
    placed = []
    for scale in scales:
        within_rows, within_columns = (offsets.to(kept.order.device) for offsets in _merging_order(scale))
        rows = (kept.order // grid_size[1] * scale)[..., None] + within_rows  # B, V, scale ** 2
        columns = (kept.order % grid_size[1] * scale)[..., None] + within_columns
        placed.append((rows.flatten(1), columns.flatten(1)))
    hidden_states: list[torch.Tensor] = []

    def keep(tokens: torch.Tensor, level: int) -> None:
        if not wants_states:
            return
        (rows, columns), scale = placed[level], scales[level]
        size = (grid_size[0] * scale, grid_size[1] * scale)
        is_visible = kept.is_visible.repeat_interleave(scale**2, dim=1)
        hidden_states.append(_scatter(tokens, rows * size[1] + columns, is_visible, size).flatten(2).transpose(1, 2))

    first_rows, first_columns = placed[0]
    tokens = encoder.embeddings(pixel_values, None, first_rows * (grid_size[1] * scales[0]) + first_columns)
    keep(tokens, 0)
    for level, stage in enumerate(encoder.encoder.layers):
        rows, columns = placed[level]
        is_visible = kept.is_visible.repeat_interleave(scales[level] ** 2, dim=1)
        size = (grid_size[0] * scales[level], grid_size[1] * scales[level])
        layout = stage.layout(size, tokens.device, tokens.dtype)
        shifts = (False,) if layout.to_shifted is None or len(stage.blocks) == 1 else (False, True)
        windows = [visible_windows(rows, columns, is_visible, layout, shift) for shift in shifts]
        for index, block in enumerate(stage.blocks):
            tokens = block(tokens, windows[index % len(windows)], None, None)
        if stage.downsample is None:
            keep(tokens, level)
        else:
            tokens = stage.downsample(tokens.view(len(tokens), -1, 4 * tokens.shape[2]))
            keep(tokens, level + 1)
    return encoder.layernorm(tokens), tuple(hidden_states) if wants_states else None


def _merging_order(scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the scale ** 2 tokens of a cell: squares within squares, each column by column."""
    rows = columns = torch.zeros(1, dtype=torch.long)
    while len(rows) < scale**2:
        rows = (rows[:, None] * 2 + torch.tensor([0, 1, 0, 1])).flatten()
        columns = (columns[:, None] * 2 + torch.tensor([0, 0, 1, 1])).flatten()
    return rows, columns


def grid_positions(grid_size: tuple[int, int], hidden_size: int, device: torch.device) -> torch.Tensor:
    """Sine and cosine positions of a grid: half of the channels tell the row, half the column.

    Args:
        grid_size: (h, w) in patches.
        hidden_size: Channels D, a multiple of 4.
        device: Device of the result.

    Returns:
        float32 tensor of shape (h * w, D).

    Source: section "Implementation details" of MAE (arXiv 2111.06377), `get_2d_sincos_pos_embed` of
    facebookresearch/mae.
    """
    waves = torch.arange(hidden_size // 4, device=device, dtype=torch.float32) / (hidden_size // 4)
    frequencies = LONGEST_WAVE**-waves
    sides = []
    for side in grid_size:
        angles = torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies
        sides.append(torch.cat([angles.sin(), angles.cos()], dim=1))  # side, D / 2
    rows, columns = sides
    grid = torch.cat(
        [rows[:, None].expand(-1, grid_size[1], -1), columns[None].expand(grid_size[0], -1, -1)], dim=2
    )  # h, w, D
    return grid.flatten(0, 1)


class DecoderBlock(GradientCheckpointingLayer):
    """A transformer block with norms before attention and MLP.

    Args:
        hidden_size: Channels.
        num_heads: Attention heads.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.projection = nn.Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.attention_norm(tokens)).unflatten(2, (3, self.num_heads, -1))  # B, N, 3, heads, D / heads
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # B, heads, N, D / heads
        tokens = tokens + self.projection(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))


class VisibleDecoder(nn.Module):
    """A light transformer, in which a mask token stands at each masked patch.

    It is part of pre-training only; what is fine-tuned is the encoder.

    Args:
        encoder_size: Channels D of the encoder's feature map.
        hidden_size: Channels D' of the decoder.
        num_layers: Number of blocks.
        num_heads: Attention heads of each block.

    Raises:
        ValueError: If the channels cannot be split over rows and columns, or over the heads.

    Source: section 3 of MAE (arXiv 2111.06377), "MAE decoder", here without the class token, smaller by default, and
    followed by the prediction head of the config.
    """

    def __init__(self, encoder_size: int, hidden_size: int, num_layers: int, num_heads: int):
        super().__init__()
        if hidden_size % 4 or hidden_size % num_heads:
            raise ValueError(
                f"A decoder of {hidden_size} channels and {num_heads} attention heads cannot be built. Set hidden_size"
                " in decoder_options to a multiple of 4 and of num_heads, such as 384 with 6."
            )
        self.hidden_size = hidden_size
        self.embedding = nn.Linear(encoder_size, hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.layers = nn.ModuleList(DecoderBlock(hidden_size, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, feature_map: torch.Tensor, bool_masked_pos: torch.Tensor | None) -> torch.Tensor:
        """Decode the features of visible patches.

        Args:
            feature_map: Tensor of shape (B, D, h, w); what it holds at masked patches is not used.
            bool_masked_pos: Bool mask of shape (B, h, w), True = masked; None for no masked patch.

        Returns:
            Tensor of shape (B, D', h, w).
        """
        grid_size = (feature_map.shape[2], feature_map.shape[3])
        tokens = self.embedding(feature_map.flatten(2).transpose(1, 2))  # B, N, D'
        if bool_masked_pos is not None:
            tokens = torch.where(bool_masked_pos.flatten(1)[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + grid_positions(grid_size, self.hidden_size, tokens.device).to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, grid_size)


def build_decoder(config: Any) -> VisibleDecoder | None:
    """Build the decoder of a config.

    Args:
        config: The SimMIM config.

    Returns:
        The decoder; None if the encoder encodes all patches.

    Raises:
        ValueError: If the options do not fit each other.
    """
    if config.encode != "visible":
        return None
    options = config.options("decoder")
    hidden_size = options["hidden_size"] or _half(config.hidden_size)
    num_heads = options["num_heads"] or max(1, hidden_size // HEAD_SIZE)
    return VisibleDecoder(config.hidden_size, hidden_size, options["num_layers"], num_heads)


def _half(hidden_size: int) -> int:
    """Half of the channels, rounded up to whole heads: 384 for ViT-B, 512 for ViT-L."""
    step = HEAD_SIZE if hidden_size >= 2 * HEAD_SIZE else 4
    return -(-hidden_size // (2 * step)) * step


@torch.no_grad()
def init_decoder(module: nn.Module, std: float) -> None:
    """Initialize the mask token of a decoder; its layers are initialized as those of the encoder.

    Args:
        module: Any module.
        std: Standard deviation of the truncated normal.
    """
    if isinstance(module, VisibleDecoder):
        init.trunc_normal_(module.mask_token, std=std)
