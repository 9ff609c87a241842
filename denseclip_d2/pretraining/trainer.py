import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..builder import can_be_channels_last
from ..data.caption_table import CaptionTable
from ..utils.atomic import atomic_write
from ..utils.random_state import get_random_state, seeded_random, set_random_state
from ..utils.safetensors_file import write_safetensors
from .evaluation import ZeroShotEvaluator, check_architecture, preprocess_of
from .loss import SharedCaptionLoss
from .muon import Muon

CHECKPOINT, WEIGHTS, HALF, METRICS = "last.pt", "clip.pt", "clip.safetensors", "metrics.json"
_LEAST = {"steps": 1, "batch_size": 2, "group_size": 1, "warmup": 1, "seed": 0, "period": 1}
_OLD_NAMES = {  # of earlier versions, in checkpoints
    "alike": "group_size", "muon": "muon_lr", "apart": "uniformity_weight",
}  # fmt: skip
PRECISIONS = ("bfloat16", "float32")
_LOGIT_SCALE_MAX = math.log(100)  # as CLIP was trained (Radford et al., 2021, section 2.5)
_EVALUATED_SEED = 10**6  # added to the run's seed: evaluation has other images


@dataclass(frozen=True)
class Recipe:
    """AdamW, Muon for kernels and matrices of transformers, linear warm-up and cosine decay to zero.

    Attributes:
        model: an architecture, by open_clip's name.
        steps, batch_size: number of steps, and of pairs per step.
        group_size: number of neighbors in the table that stay together. Neighbors with similar captions are
            hard negatives. 1: pairs are drawn singly.
        learning_rate: of AdamW, at the peak.
        weight_decay: of matrices, not of norms and biases.
        muon_lr: learning rate of Muon, at the peak. Matrices decay per step as AdamW's do. 0: AdamW alone.
        uniformity_weight: weight of the loss between different captions, see :class:`SharedCaptionLoss`.
        warmup: steps of the warm-up.
        seed: of weights, order and crops.
        precision: "bfloat16" (autocast of both encoders) or "float32".
        period: steps between checkpoints, and between evaluations.
        num_evaluated: images of an evaluation.

    Raises:
        ValueError: see :func:`check_architecture`; a number is out of range.
    """

    model: str
    steps: int = 2500
    batch_size: int = 64
    group_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    muon_lr: float = 0.02
    uniformity_weight: float = 1.0
    warmup: int = 100
    seed: int = 0
    precision: str = "bfloat16"
    period: int = 250
    num_evaluated: int = 100

    def __post_init__(self):
        check_architecture(self.model)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: at least {least} is needed.")
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size = {self.batch_size} is no multiple of group_size = {self.group_size}."
            )
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate = {self.learning_rate} must be above 0, "
                f"weight_decay = {self.weight_decay} at least 0."
            )
        if not self.muon_lr >= 0 or not self.uniformity_weight >= 0:
            raise ValueError(
                f"muon_lr = {self.muon_lr}, uniformity_weight = {self.uniformity_weight}: "
                "both must be at least 0."
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision = {self.precision!r}; use {' or '.join(PRECISIONS)}.")

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def pretrain(
    recipe: Recipe, table: CaptionTable, output: Path, *, resume: bool = False, workers: int = 0
) -> Path:
    """Train a CLIP on pairs of images and captions.

    The folder ``output`` gets ``metrics.json`` (a line per period) and ``last.pt`` to resume from. At the end
    it gets ``clip.pt``, a state dict for ``open_clip.create_model(..., pretrained=FILE)`` and
    ``MODEL.WEIGHTS``, and ``clip.safetensors``, the same in float16.

    Args:
        resume: continue the run in ``output``, with the result of an uninterrupted run.

    Returns: the path of ``clip.pt``.
    Raises:
        ValueError: fewer pairs than a batch; resumed with another recipe.
        FileExistsError: ``output`` has a run, and ``resume`` is False.
        FloatingPointError: the loss is not finite.
    """
    if len(table) < recipe.batch_size:
        raise ValueError(f"{len(table)} pairs are fewer than a batch of {recipe.batch_size}.")
    last = output / CHECKPOINT
    if last.exists() and not resume:
        raise FileExistsError(f"{output} has a run. Continue it with --resume, or choose another folder.")
    run = _Run(recipe)
    if last.exists():
        run.load(last)
    output.mkdir(parents=True, exist_ok=True)
    _forget_metrics_after(output / METRICS, run.step)
    batches = _batches(recipe, table, run, workers)
    with tqdm(total=recipe.steps, initial=run.step, unit="step", desc=recipe.model) as progress:
        for images, texts in batches:
            loss = run.train_step(images, texts)
            progress.update()
            if run.step % recipe.period and run.step < recipe.steps:
                continue
            metrics = {"step": run.step, "loss": loss, **run.evaluate(run.model)}
            progress.set_postfix(loss=f"{loss:.3f}", dense=f"{metrics['dense_accuracy']:.3f}")
            with (output / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
            run.save(last)
    with atomic_write(output / WEIGHTS, "wb") as file:
        torch.save(run.model.state_dict(), file)
    write_safetensors(output / HALF, run.model.state_dict(), half=True)
    return output / WEIGHTS


class _Run:
    """The state of a training, as a checkpoint keeps it."""

    def __init__(self, recipe: Recipe):
        torch.manual_seed(recipe.seed)
        self.recipe, self.step = recipe, 0
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.augment, _ = open_clip.create_model_and_transforms(recipe.model)
        self.model.to(self.device)
        self.tokenizer = open_clip.get_tokenizer(recipe.model)
        self.evaluate = ZeroShotEvaluator(
            recipe.model, preprocess_of(self.model), self.tokenizer,
            num_images=recipe.num_evaluated, seed=recipe.seed + _EVALUATED_SEED,
        )  # fmt: skip
        channels_last = can_be_channels_last(self.model, self.device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.loss = SharedCaptionLoss(recipe.uniformity_weight)
        self.optimizers = _optimizers(self.model, recipe)
        self.schedules = [LambdaLR(optimizer, recipe.rate) for optimizer in self.optimizers]

    def train_step(self, images: Tensor, texts: Tensor) -> float:
        self.model.train()
        images = images.to(self.device, memory_format=self.memory_format)
        texts = texts.to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            image_features, text_features, scale = self.model(images, texts)[:3]
        loss = self.loss(image_features.float(), text_features.float(), scale, texts)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} after step {self.step}. Lower the learning rate "
                f"{self.recipe.learning_rate} and start again."
            )
        self.model.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _LOGIT_SCALE_MAX)
        self.step += 1
        return loss.item()

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(), "step": self.step, "recipe": asdict(self.recipe),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "random": get_random_state(cuda=self.device == "cuda"),
        }  # fmt: skip
        with atomic_write(path, "wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        before = {_OLD_NAMES.get(name, name): value for name, value in state["recipe"].items()}
        if before != asdict(self.recipe):
            changed = [f"{n} = {before.get(n)}" for n, v in asdict(self.recipe).items() if before.get(n) != v]
            raise ValueError(
                f"{path} is of a run with {', '.join(changed)}. Resume with the same, or use another folder."
            )
        self.model.load_state_dict(state["model"])
        for name in ("optimizers", "schedules"):
            for mine, kept in zip(getattr(self, name), state[name], strict=True):
                mine.load_state_dict(kept)
        self.step = state["step"]
        set_random_state(state["random"])


@dataclass(frozen=True)
class _Augmented(Dataset):
    """Pairs as model inputs; the crop of each is seeded by its position in the run."""

    table: CaptionTable
    augment: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[Sequence[str]], Tensor]
    seed: int

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        image, title = self.table[place[1]]
        with seeded_random(self.seed, *place):
            return self.augment(image), self.tokenizer([title])[0]


def _batches(recipe: Recipe, table: CaptionTable, run: _Run, workers: int) -> DataLoader:
    order = _order(recipe, len(table), run.step)
    augmented = _Augmented(table, run.augment, run.tokenizer, recipe.seed)
    # With its own generator: otherwise a loader seeds its workers from the global one, also after a resume.
    return DataLoader(augmented, batch_sampler=order, num_workers=workers, generator=torch.Generator())


def _order(recipe: Recipe, num_pairs: int, start: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the batches from step ``start``, as (step, pair); each epoch shuffles the rows again."""
    rows = np.arange(num_pairs // recipe.group_size * recipe.group_size).reshape(-1, recipe.group_size)
    batches = len(rows) * recipe.group_size // recipe.batch_size
    for step in range(start, recipe.steps):
        epoch, position = divmod(step, batches)
        if position == 0 or step == start:
            shuffled = np.random.default_rng([recipe.seed, epoch]).permutation(rows).flatten().tolist()
        yield [(step, pair) for pair in shuffled[position * recipe.batch_size :][: recipe.batch_size]]


def _optimizers(model: nn.Module, recipe: Recipe) -> list[Optimizer]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_muon = {  # without the attention pool, which is as large as the rest together: too slow on a CPU
        name: p
        for name, p in trained.items()
        if recipe.muon_lr and (p.ndim == 4 or (p.ndim == 2 and "resblocks" in name))
    }
    others = [p for name, p in trained.items() if name not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))]
    if by_muon:
        decay = recipe.weight_decay * recipe.learning_rate / recipe.muon_lr
        optimizers.append(Muon(by_muon.values(), lr=recipe.muon_lr, weight_decay=decay))
    return optimizers


def _forget_metrics_after(path: Path, step: int) -> None:
    """Remove the lines that a killed run wrote after its last checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in kept)
