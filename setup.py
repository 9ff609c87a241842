from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (root / "denseclip_d2/version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="denseclip_d2",
    version=version,
    description="DenseCLIP (CVPR 2022) as a Detectron2 extension: language-guided detection and segmentation",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["denseclip_d2", "denseclip_d2.*"]),
    package_data={
        "denseclip_d2": ["clip_models/*.json", "model_zoo/*.json", "model_zoo/weights/*.safetensors"],
        "denseclip_d2.report": ["page.html"],
        "denseclip_d2.model_zoo": [
            f"configs/{files}" for files in ("*.yaml", "*/*.yaml", "*/*/*.yaml", "*/*.py")
        ],
    },
    python_requires=">=3.11,<3.13",
    # Detectron2 is not on PyPI under its own name: `import denseclip_d2` says how to get it.
    install_requires=[
        "torch",
        "torchvision",
        "fvcore",
        "iopath",
        "open_clip_torch",
        "timm>=1.0.20",
        "pycocotools",
        "hotcoco>=1.3",
        "ftfy",
        "safetensors",
        "shapely",  # fvcore cuts polygons with it
        "matplotlib",
        "jinja2",
        "numpy",
        "pillow",
        "tqdm",
    ],
    extras_require={
        "lvis": ["lvis"],
        "web": ["gradio>=6.31"],
        "export": ["onnx", "onnxruntime"],
    },
)
