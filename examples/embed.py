"""Write the features of images: `hf-simmim embed`, as a script."""

import sys

from hf_simmim.__main__ import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
