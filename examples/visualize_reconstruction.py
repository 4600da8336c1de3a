"""Draw reconstructions: `hf-simmim reconstruct`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["reconstruct", *sys.argv[1:]])
