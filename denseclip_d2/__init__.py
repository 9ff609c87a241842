"""DenseCLIP (Rao et al., CVPR 2022, arXiv 2112.01518) as a Detectron2 extension.

Importing the package registers its backbones, meta-architectures, datasets, CLIP architectures and the
``openclip://``, ``denseclip://`` and ``hf://`` path prefixes with Detectron2 and open_clip, and does nothing
else.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "denseclip_d2 needs Detectron2, which is not on PyPI under its own name. Get it either way:\n"
        "  make install                      # into .venv, from a pinned wheel; DETECTRON2=source builds it\n"
        "  pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'\n"
        "GETTING_STARTED.md says more."
    ) from error

from . import data, model_zoo, shapes, visual  # noqa: F401  (these are imported for what they register)
from .builder import build_model
from .checkpoint import DenseCLIPCheckpointer
from .config import add_denseclip_config, load_config, prepare_run
from .engine import Trainer
from .guidance import LanguageGuidedFPN
from .inference import Predictor
from .meta_arch import language_guided
from .version import __version__

# Others of the package's names may change between versions; tests/public_api.txt has these, and says how.
__all__ = [
    "DenseCLIPCheckpointer",
    "LanguageGuidedFPN",
    "Predictor",
    "Trainer",
    "__version__",
    "add_denseclip_config",
    "build_model",
    "language_guided",
    "load_config",
    "model_zoo",
    "prepare_run",
]
