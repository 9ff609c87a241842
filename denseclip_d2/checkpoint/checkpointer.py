import os.path
from collections.abc import Sequence, Set
from pathlib import Path
from urllib.parse import ParseResult

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from ..guidance import guidance_of
from .atomic_path_manager import AtomicPathManager
from .clip import (
    check_gelu,
    exported_clip,
    is_clip,
    is_openai_clip,
    names_in_clip,
    rename_clip,
    resize_positions,
    with_timm_names,
)
from .finetune import complete_clip, load_for_new_classes, with_text_encoder
from .imagenet_weights import KEY as BACKBONE_KEY
from .imagenet_weights import names_of_backbone, read_backbone
from .load_report import LoadReport, first
from .openclip import PREFIX, parse_openclip_path
from .readers import is_torchscript, read_weights
from .released import convert_released, is_released
from .safetensors_header import check_header

# Tensors that may be missing or left over.
_NEGLIGIBLE = ("num_batches_tracked", "pixel_mean", "pixel_std", "anchor_generator.cell_anchors")

# Detectron2's request to match names by their ends.
_HEURISTICS = "matching_heuristics=True"

_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl"}  # usual for weights
_CURE = (
    "Check that weights and config belong together, or load the {} tensors that fit with --allow-partial "
    "(MODEL.ALLOW_PARTIAL_WEIGHTS True)."
)
_TRAIN_FIRST = "These are the weights of a CLIP, from which training begins. Name those of a trained model."


class DenseCLIPCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for CLIP's and the authors' weights as well; it loads all tensors or none.

    The content of a file tells its format. Besides Detectron2's formats: ``openclip://<architecture>/<tag>``,
    OpenAI's TorchScript archives and state dicts, open_clip's ``.pt``, the authors' ``.pth``,
    ``.safetensors``. No code in a file is run.
    """

    path_manager: AtomicPathManager
    _parsed_url_during_load: ParseResult | None

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        for_training: bool = True,
        allow_partial: bool = False,
        text_weights: str = "",
        backbone_weights: str = "",
        **kwargs,
    ):
        """
        Args:
            for_training: begin training: weights of a CLIP, of a model of other classes, or none are enough;
                False: every tensor must come from the file.
            allow_partial: load what fits, and raise only if nothing fits.
            text_weights: a CLIP whose text encoder the model takes, if the loaded weights have none; or a
                release of a text encoder that transformers reads.
            backbone_weights: what a backbone that is no CLIP's begins from, see :func:`read_backbone`.
        """
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = AtomicPathManager(self.path_manager)
        self.for_training = for_training
        self.allow_partial = allow_partial
        self.text_weights, self.backbone_weights = text_weights, backbone_weights

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module, save_dir: str = "", **kwargs):
        """Return a checkpointer of a config's model."""
        return cls(
            model,
            save_dir,
            allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            text_weights=cfg.MODEL.DENSECLIP.TEXT_WEIGHTS,
            backbone_weights=cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS,
            **kwargs,
        )

    def save(self, name: str, **kwargs) -> None:
        """Write ``name``.pth and then ``last_checkpoint``, which names it, both atomically.

        Raises:
            FloatingPointError: a parameter is not finite; nothing is written.
        """
        broken = [n for n, parameter in self.model.named_parameters() if not _is_finite(parameter.detach())]
        if broken:
            raise FloatingPointError(
                f"No checkpoint {name!r} is written, because parameters are not finite: {first(broken)}. "
                f"{self.advise_lower_rate()}"
            )
        super().save(name, **kwargs)

    def advise_lower_rate(self) -> str:
        """Return what to do after a divergence."""
        if not (last := self.get_checkpoint_file()):
            return "There is no checkpoint yet: lower SOLVER.BASE_LR and start again."
        return f"The last good checkpoint is {last}: lower SOLVER.BASE_LR and continue from it with --resume."

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """Resume or load as Detectron2 does; the checkpoint of a resumed run must hold every tensor."""
        self.for_training &= not (resume and self.has_checkpoint())
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a checkpoint, a file of weights or an ``openclip://`` path; nothing for an empty path.

        An error leaves the model unchanged.

        Raises:
            FileNotFoundError: the file does not exist, or cannot be downloaded.
            ValueError: the file is damaged, contains code, or is of another model; needed tensors are missing
                or have another shape; weights were trained with another GELU or other settings; no tensor
                fits.
        """
        self._check_path(path)
        try:
            self._fetch(path)
            if not path and self.for_training and (weights := self._read_backbone()):
                self._take(weights, {}, names_of_backbone(self.model), BACKBONE_KEY)
                return {}
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves the value after an error

    def _check_path(self, path: str) -> None:
        if not path and not self.for_training:
            raise ValueError("MODEL.WEIGHTS is empty. Set it to the weights of a trained model.")
        if path and path.startswith(PREFIX):
            check_gelu(self.model, path, parse_openclip_path(path)[2].get("quick_gelu", False))
        elif path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS = {path!r}: {_why_no_file(Path(path))}.")
        if path and path.partition("?")[2] not in ("", _HEURISTICS):
            raise ValueError(
                f"MODEL.WEIGHTS = {path!r}: only {_HEURISTICS} can follow the question mark. Fetch the file "
                "of another link by `curl -L -o FILE LINK`, and give its path."
            )

    def _read_backbone(self) -> dict[str, Tensor]:
        return read_backbone(self.backbone_weights, self.model)

    def _fetch(self, path: str) -> None:
        """Download the file once a machine, before the other processes look for it."""
        if comm.get_local_rank() == 0 and path and "://" in path:
            self.path_manager.get_local_path(path.partition("?")[0])
        comm.synchronize()

    def _load_file(self, filename: str) -> dict:
        by_ends = self._parsed_url_during_load and self._parsed_url_during_load.query == _HEURISTICS
        checkpoint = read_weights(filename, None if by_ends else self._count_fitting)
        checkpoint["file"] = filename
        if by_ends:
            checkpoint["matching_heuristics"] = True
        else:
            checkpoint["model"] = with_timm_names(checkpoint["model"], self.model)
            if self.for_training:
                checkpoint["model"] = exported_clip(checkpoint["model"])
        return checkpoint

    def _count_fitting(self, weights: dict[str, Tensor]) -> int:
        """Return how many of a file's tensors have, by their names, a place in the model."""
        if is_released(weights):
            return len(weights)
        weights = with_timm_names(weights, self.model)
        names = rename_clip(weights, self.model) if is_clip(weights) else weights
        return sum(not name.endswith(_NEGLIGIBLE) for name in self.model.state_dict() if name in names)

    def _load_model(self, checkpoint: dict):
        filename, state = checkpoint.pop("file"), self.model.state_dict()
        source = f"MODEL.WEIGHTS = {filename!r}"
        if unwrapped := checkpoint.pop("unwrapped"):
            source += f", read {unwrapped},"
        from_clip, start = is_clip(checkpoint["model"]), self.for_training and not self.allow_partial
        weights, reshaped = self._renamed(checkpoint, filename)
        if not (from_clip or self.allow_partial):
            check_header(filename, self.model, start=start)
        guided = guidance_of(self.model)
        if guided and not guided.language.learned:  # detectors had this tensor and did not use it
            weights.pop("backbone.language.learned.embedding", None)
        reshaped.update(resize_positions(weights, self.model))
        needed = list(state)
        if not from_clip and not self.allow_partial:
            weights, contexts = with_text_encoder(
                weights, self.model, filename, self.text_weights, for_training=self.for_training
            )
            needed = [name for name in needed if name not in contexts]
        if start and not from_clip:
            weights, merged, new = load_for_new_classes(weights, self.model, filename)
            reshaped.update(merged)
            needed = [name for name in needed if name not in new]
        clip_is_enough = from_clip and (self.for_training or self._has_nothing_to_learn())
        if clip_is_enough:
            needed = names_in_clip(self.model)
            if not self.allow_partial:
                weights = complete_clip(weights, self.model, filename, self.text_weights)
            if backbone := self._read_backbone():
                source += f" with {BACKBONE_KEY}"
                weights = {**weights, **backbone}
                needed += names_of_backbone(self.model)
        cure = _TRAIN_FIRST if from_clip and not clip_is_enough else _CURE
        incompatible = self._take(weights, reshaped, needed, source, cure)
        if guided and "backbone.language.contexts" not in weights:
            guided.language.init_contexts()
        return incompatible

    def _has_nothing_to_learn(self) -> bool:
        """Return whether the model is a CLIP alone, without a layer of its own."""
        names = {*names_in_clip(self.model)}
        return all(name in names or name.endswith(_NEGLIGIBLE) for name in self.model.state_dict())

    def _renamed(self, checkpoint: dict, filename: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return weights under the model's names, and what was done to some of them."""
        weights = checkpoint["model"]
        if checkpoint.pop("matching_heuristics", False):
            caffe2, state = checkpoint.get("__author__") == "Caffe2", self.model.state_dict()
            return align_and_update_state_dicts(state, weights, c2_conversion=caffe2), {}
        if is_clip(weights):
            if is_torchscript(filename) or is_openai_clip(weights):
                check_gelu(self.model, filename, quick_gelu=True)
            return rename_clip(weights, self.model), {}
        return convert_released(weights, self.model, filename) if is_released(weights) else (weights, {})

    def _take(
        self,
        weights: dict[str, Tensor],
        reshaped: dict[str, str],
        needed: Sequence[str],
        source: str,
        cure: str = _CURE,
    ):
        """Load weights under the model's names; those in ``needed`` must be there."""
        report = LoadReport.compare(weights, self.model.state_dict(), reshaped)
        self.logger.info(str(report))
        self._check(report, set(needed), source, cure)
        return super()._load_model({"model": {name: weights[name] for name in report.matched}})

    def _check(self, report: LoadReport, needed: Set[str], source: str, cure: str) -> None:
        if not any(not name.endswith(_NEGLIGIBLE) for name in report.matched):
            raise ValueError(f"{source} holds nothing of this model: {_why_nothing_fits(report)}")
        missing = [k for k in report.missing if k in needed and not k.endswith(_NEGLIGIBLE)]
        left_over = [k for k in report.left_over if not k.endswith(_NEGLIGIBLE)]
        misshapen = [f"{k} is {there}, not {here}" for k, (there, here) in report.misshapen.items()]
        if (missing or left_over or misshapen) and not self.allow_partial:
            raise ValueError(
                f"{source} does not hold this model. "
                f"Missing ({len(missing)}): {first(missing)}. "
                f"Of another shape ({len(misshapen)}): {first(misshapen)}. "
                f"Left over ({len(left_over)}): {first(left_over)}. {cure.format(len(report.matched))}"
            )

    def _log_incompatible_keys(self, incompatible) -> None:
        """Log nothing: the table of :class:`LoadReport` is in the log."""


def _why_nothing_fits(report: LoadReport) -> str:
    if report.misshapen:
        name, (there, here) = next(iter(report.misshapen.items()))
        return (
            f"all {len(report.misshapen)} tensors in both have another shape, such as {name}, "
            f"{there} in the file and {here} in the model. Use weights and a config that belong together."
        )
    names = report.left_over
    if not names:  # left out before: encoders that the model lacks, or layers of other classes
        return "its tensors are of encoders that the model lacks, or of layers that depend on other classes."
    shared, common = "no name is the same", os.path.commonprefix(names)
    if prefix := common[: common.rfind(".") + 1]:
        shared = f"every tensor's name begins with {prefix!r}, and none fits with or without it"
    return (
        f"of {len(names)} tensors, {shared}. The file's first names are {first(names, 3)}; the model's, "
        f"{first(report.missing, 3)}. Use weights and a config that belong together."
    )


def _why_no_file(path: Path) -> str:
    if not path.is_dir():
        return "there is no such file"
    files = sorted(str(file) for file in path.iterdir() if file.suffix in _SUFFIXES)
    return "it is a folder. Give a file of weights" + (f", such as {first(files, 3)}" if files else "")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. Their sum takes a tenth of the time; if finite, all are."""
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())
