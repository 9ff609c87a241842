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

from . import checkpoint, data, guidance, meta_arch, shapes, visual  # noqa: F401  (imported for what they register)
from .config import add_denseclip_config
from .inference import Predictor
from .version import __version__

__all__ = ["Predictor", "__version__", "add_denseclip_config"]
