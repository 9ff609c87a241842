import zipfile
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _strip_prefix_if_present
from safetensors.torch import load_file
from torch import Tensor, nn

from ..language.text_encoder import CLIPTextEncoder
from ..visual import CLIPResNet
from ..visual.attention_pool import resize_positional_embedding
from .openclip import PREFIX, parse_openclip_path
from .whole_files import WholeFiles

# Of a CLIP model, but of no use to dense prediction.
CLIP_ONLY = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask"}


class DenseCLIPCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads CLIP's weights and refuses to load half of a model.

    Reads besides Detectron2's formats: ``openclip://<architecture>/<tag>``, OpenAI's TorchScript archives,
    open_clip's ``.pt`` and ``.safetensors``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        fresh_start: bool = True,
        allow_partial: bool = False,
        **kwargs,
    ):
        """
        Args:
            fresh_start: CLIP's weights alone, or none, are enough, as to begin training; False: every tensor
                must come from the file, as to evaluate.
            allow_partial: load what fits instead of raising where tensors are missing or misshapen.
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = WholeFiles(self.path_manager)
        self.fresh_start = fresh_start
        self.allow_partial = allow_partial

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth whole or not at all, then name it in ``last_checkpoint``, by the same rule.

        Raises:
            FloatingPointError: a parameter is not finite; nothing is written.
        """
        broken = [n for n, parameter in self.model.named_parameters() if not torch.isfinite(parameter).all()]
        if broken:
            raise FloatingPointError(
                f"No checkpoint {name!r} written, for parameters are not finite: {_first(broken)}. "
                f"The last good one is {self.get_checkpoint_file() or 'not there yet'}. "
                "Lower SOLVER.BASE_LR and go on with --resume."
            )
        super().save(name, **kwargs)

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a checkpoint, a file of weights or an ``openclip://`` path; nothing for an empty path.

        Raises:
            FileNotFoundError: no such file, or it cannot be downloaded.
            ValueError: tensors the model needs are missing or of another shape; CLIP's weights were trained
                with another GELU than the model has.
        """
        if not path and not (self.fresh_start or self.allow_partial):
            raise ValueError("MODEL.WEIGHTS is empty. Set it to the weights of a trained model.")
        if path and path.startswith(PREFIX):
            self._check_gelu(path, parse_openclip_path(path)[2].get("quick_gelu", False))
        elif path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS = {path!r}: there is no such file.")
        try:
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set when it fails

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".safetensors"):
            checkpoint = {"model": load_file(filename)}
        elif _is_torchscript(filename):
            self._check_gelu(filename, quick_gelu=True)  # only OpenAI gives CLIP out this way
            checkpoint = {"model": torch.jit.load(filename, map_location="cpu").state_dict()}
        else:
            checkpoint = super()._load_file(filename)
            if "state_dict" in checkpoint["model"]:  # saved by open_clip's trainer
                checkpoint["model"] = checkpoint["model"]["state_dict"]
        _strip_prefix_if_present(checkpoint["model"], "module.")
        return checkpoint

    def _load_model(self, checkpoint: dict):
        weights = checkpoint["model"]
        from_clip = "visual.conv1.weight" in weights
        if from_clip:
            checkpoint["model"] = weights = self._rename_clip(weights)
        self._resize_positions(weights)
        incompatible = super()._load_model(checkpoint)
        needed = self._prefixes().values() if from_clip and self.fresh_start else ("",)
        missing = [k for k in incompatible.missing_keys if k.startswith(tuple(needed))]
        missing = [k for k in missing if not k.endswith("num_batches_tracked")]
        if (missing or incompatible.incorrect_shapes) and not self.allow_partial:
            misshapen = [f"{k} is {a}, not {b}" for k, a, b in incompatible.incorrect_shapes]
            raise ValueError(
                "MODEL.WEIGHTS does not hold this model. "
                f"Missing ({len(missing)}): {_first(missing)}. "
                f"Of another shape ({len(misshapen)}): {_first(misshapen)}. "
                "Check that weights and config belong together, or load what fits with --allow-partial."
            )
        matched = len(self.model.state_dict()) - len(incompatible.missing_keys)
        self.logger.info(f"Matched {matched} of the model's {len(self.model.state_dict())} tensors.")
        return incompatible

    def _prefixes(self) -> dict[type, str]:
        """Where the model keeps CLIP's two encoders."""
        encoders = (CLIPResNet, CLIPTextEncoder)
        modules = [(name, type(m)) for name, m in self.model.named_modules() if isinstance(m, encoders)]
        return {kind: f"{name}." if name else "" for name, kind in modules}

    def _rename_clip(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        prefixes, renamed = self._prefixes(), {}
        for name, tensor in weights.items():
            kind = CLIPResNet if name.startswith("visual.") else CLIPTextEncoder
            if name not in CLIP_ONLY and kind in prefixes:
                tensor = tensor.float() if tensor.is_floating_point() else tensor
                renamed[prefixes[kind] + name.removeprefix("visual.")] = tensor
        return renamed

    def _resize_positions(self, weights: dict[str, Tensor]) -> None:
        for name, module in self.model.named_modules():
            key = f"{name}.attnpool.positional_embedding".lstrip(".")
            if isinstance(module, CLIPResNet) and module.attnpool is not None and key in weights:
                before, side = weights[key], module.attnpool.grid_size
                if len(before) != 1 + side * side:
                    weights[key] = resize_positional_embedding(before, side)
                    self.logger.info(f"Resized {key} from {len(before) - 1} to {side * side} positions.")

    def _check_gelu(self, path: str, quick_gelu: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, CLIPTextEncoder) and module.quick_gelu != quick_gelu:
                needed, has = ("QuickGELU", "GELU") if quick_gelu else ("GELU", "QuickGELU")
                raise ValueError(
                    f"MODEL.WEIGHTS = {path!r} was trained with {needed}, and the model has {has}. Set "
                    "MODEL.DENSECLIP.CLIP_MODEL to the architecture "
                    f"{'with' if quick_gelu else 'without'} '-quickgelu' at its end."
                )


def _is_torchscript(filename: str) -> bool:
    if not zipfile.is_zipfile(filename):
        return False
    with zipfile.ZipFile(filename) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _first(names: list[str], count: int = 5) -> str:
    return (", ".join(names[:count]) + (" ..." if len(names) > count else "")) or "none"
