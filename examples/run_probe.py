"""Probe frozen features: `hf-simmim probe`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["probe", *sys.argv[1:]])
