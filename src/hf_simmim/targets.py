"""What a head predicts, by name."""

from .color_targets import ColorBins, ColorClusters
from .hog import HOG
from .pixel_targets import RGB, NormalizedRGB
from .target import Target
from .teachers import Codebook, Features

TARGET_CLASSES: dict[str, type[Target]] = {
    "rgb": RGB,
    "normalized_rgb": NormalizedRGB,
    "color_bins": ColorBins,
    "color_clusters": ColorClusters,
    "hog": HOG,
    "codebook": Codebook,
    "features": Features,
}
