"""The command that converts a .pth file."""

import subprocess
import sys

from original_files import save, swin_weights


def test_script(tmp_path):
    weights = swin_weights(image_size=32, window_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 1])
    # What tells the size of the images.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("attn_mask")}
    path = save({"model": weights}, tmp_path / "file.pth")
    command = [sys.executable, "-m", "hf_simmim", "convert", str(path), str(tmp_path / "out")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert (
        failed.stderr.strip() == "error: The file does not state the size of its images. Set --image_size, in pixels."
    )
    done = subprocess.run([*command, "--image_size", "32"], capture_output=True, text=True, check=True)
    assert "layers.0" not in done.stdout
    for text in ("sha256", "microsoft/Swin-Transformer", "3 x 32 x 32 px", "SimMIMModel", "bit for bit"):
        assert text in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
