"""A Hub on this machine, for huggingface_hub's real client; `server.py` tells how to use it."""
