import subprocess
import sys

from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

import denseclip_d2


def python(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_detectron2_the_import_says_how_to_get_it():
    failed = python("import sys; sys.modules['detectron2'] = None; import denseclip_d2")
    assert failed.returncode != 0
    for words in ("make install", "github.com/facebookresearch/detectron2"):
        assert words in failed.stderr


def test_importing_registers_and_does_nothing_else():
    """Importing sets up no logging, and uses neither a device nor the network."""
    done = python(
        "import logging, socket, torch; socket.socket = None; import denseclip_d2;"
        "assert not logging.getLogger().handlers; assert not torch.cuda.is_initialized()"
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout


def test_a_command_starts_without_what_only_its_end_or_another_needs():
    """Modules for drawing, pages, exported files, event files and other datasets' evaluators load late.

    An ablation draws at its end without pyplot, which would set up windows.
    """
    late = {"matplotlib", "pandas", "jinja2", "gradio", "onnx", "onnxruntime", "tensorboard", "lvis"}
    done = python(
        # open_clip imports transformers where it is installed, which imports Jinja.
        "import sys, open_clip; before = set(sys.modules)\n"
        f"import denseclip_d2.engine; print(*{late}.intersection(sys.modules) - before)\n"
        "import denseclip_d2.ablation; print(*{'matplotlib.pyplot'}.intersection(sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_names_are_registered():
    for name in (
        "build_clip_resnet_backbone",
        "build_clip_vit_backbone",
        "build_clip_fpn_backbone",
        "build_clip_retinanet_fpn_backbone",
        "build_clip_semantic_fpn_backbone",
        "build_denseclip_fpn_backbone",
        "build_denseclip_retinanet_fpn_backbone",
        "build_denseclip_semantic_fpn_backbone",
    ):
        assert name in BACKBONE_REGISTRY
    for name in ("DenseCLIPRetinaNet", "DenseCLIPMaskRCNN", "DenseCLIPSemanticFPN", "DenseCLIPPanopticFPN"):
        assert name in META_ARCH_REGISTRY
    assert "shapes_train" in DatasetCatalog
    assert denseclip_d2.__version__
