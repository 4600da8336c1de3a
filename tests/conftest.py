"""Makes torchvision importable where only its compiled part is missing, and leads tests to a Hub on this machine."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub.server import HubServer
from torchvision_import import import_torchvision

# At import: the test modules import transformers.
import_torchvision()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub that huggingface_hub, transformers and datasets talk to in this process, with caches of its own."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        home = tmp_path_factory.mktemp("home")
        settings = server.environment(home)
        for name in set(os.environ) - set(settings):
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        _lead_to(server.url, home, monkeypatch)
        yield server
        # Code that came with checkpoints, from the folder of this Hub.
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            del sys.modules[name]


def _lead_to(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the libraries read from the environment when they are imported."""
    import datasets.config
    import transformers.dynamic_module_utils
    import transformers.utils.hub
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api
    from huggingface_hub.utils import _http

    settings = {
        constants: {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        },
        hf_api.api: {"endpoint": url},
        datasets.config: {
            "HF_ENDPOINT": url,
            "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_HUB_OFFLINE": False,
            "HF_UPDATE_DOWNLOAD_COUNTS": False,
            "HF_DATASETS_CACHE": home / "datasets",
            "HF_MODULES_CACHE": home / "modules",
            "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
            "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        },
        transformers.utils.hub: {"HF_MODULES_CACHE": str(home / "modules"), "_hf_api": None},
        transformers.dynamic_module_utils: {"HF_MODULES_CACHE": str(home / "modules")},
        # Between tries.
        _http: {"time": SimpleNamespace(sleep=lambda seconds: None)},
        file_download: {"time": SimpleNamespace(sleep=lambda seconds: None)},
        # Where code that comes with checkpoints adds its folder.
        sys: {"path": sys.path.copy()},
    }
    for owner, values in settings.items():
        for name, value in values.items():
            monkeypatch.setattr(owner, name, value)
    # Connections know the proxies of before, file systems the listings of a Hub that had the same port.
    _http.close_session()
    HfFileSystem.clear_instance_cache()
