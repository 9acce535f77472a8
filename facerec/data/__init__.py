"""Former names of modules that programs import; their homes are `facerec.images` and `facerec.packs`."""

import warnings

warnings.warn("facerec.data is now facerec.images and facerec.packs", FutureWarning, stacklevel=2)
