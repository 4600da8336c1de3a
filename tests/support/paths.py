"""Where things lie in a checkout."""

from pathlib import Path

SUPPORT = Path(__file__).parent
FIXTURES = SUPPORT / "fixtures"
ROOT = SUPPORT.parents[1]
PACKAGE = ROOT / "src" / "hf_simmim"
EMBEDDED_DATA = ROOT / "examples" / "data" / "fashion_mnist_7k"
# Modules that a checkpoint carries to the Hub.
TRAVELING = sorted(path.stem for path in (PACKAGE / "model").glob("*.py") if path.stem != "__init__")
