"""A Hub on this machine in a process of its own, until it is stopped."""

import argparse
import threading
from contextlib import suppress
from pathlib import Path

from .server import HubServer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fake_hub", description="A Hub on this machine, for tests.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    with HubServer(**vars(parser.parse_args())) as hub:
        print(f"HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
