"""Predict on new images: `hf-simmim predict`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
