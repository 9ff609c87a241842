from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.distributed import sum_over_processes
from .learned_embedding import LearnedEmbedding
from .name_encoder import NameEncoder


@dataclass(frozen=True)
class StepNames:
    """The names of a training step: m of the K class names, and then all names of stuff.

    Attributes:
        index: their numbers among all names, ascending.
        column: (K,) the number of each class among the m; -1 for the others. It takes targets there.
        weights: (m,) how many names each stands for: 1 if objects need it; the others stand for all others.
        read: the numbers, among those of ``index``, of the names that the text encoder reads.
        names, prompts, owners: what the text encoder reads, as of :meth:`NameEncoder.read`.
    """

    index: Tensor
    column: Tensor
    weights: Tensor
    read: Tensor
    names: Sequence[str]
    prompts: Tensor | nn.ModuleList
    owners: list[int]


class StepNameEncoder(NameEncoder):
    """A :class:`NameEncoder` that, in a training step, reads some of its names instead of all.

    A step reads the names of its objects, a learned name, and others in turn. n = K / ``names_per_step``
    steps draw each of the K names once, in an order that is new every n steps and equal in all processes. All
    names have the embeddings of their last reading, at most 2n - 1 steps ago. Some that the step does not
    read are names of the step as well, without a gradient. Neither those embeddings nor the place in the
    order is in the state dict: see :meth:`steps_state`.
    """

    contexts: nn.Parameter | None
    learned: LearnedEmbedding | None
    step_names: StepNames | None
    _last_text: Tensor | None

    def __init__(self, *args, names_per_step: int = 0, head_names_per_step: int = 0, **kwargs):
        """
        Args:
            names_per_step: names that a step draws; 0, or at least K: every step reads all names.
            head_names_per_step: the m of :class:`StepNames`, if it is more than the names that a step reads.
            args, kwargs: as for :class:`NameEncoder`.

        Raises:
            ValueError: see :class:`NameEncoder`; mode "pre", whose text depends on the image.
        """
        super().__init__(*args, **kwargs)
        if names_per_step and self.mode == "pre":
            raise ValueError(
                f"MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP is {names_per_step}, and prompt mode 'pre' makes all "
                "embeddings from each image. Set it to 0, or PROMPT.MODE to 'post'."
            )
        self._names_per_step, self._head_names_per_step = names_per_step, head_names_per_step
        self._step, self.step_names = 0, None
        # The embeddings of the last readings, and the names that they are of.
        self.register_buffer("_last_text", None, persistent=False)
        self._last_names: Sequence[str] = ()
        if self.reads_some_names:
            self._graphed.enabled = False  # a graph would be captured anew for the names of each step

    @classmethod
    def from_config(cls, cfg, class_names: Sequence[str]) -> dict[str, Any]:
        given, number = super().from_config(cfg, class_names), cfg.MODEL.DENSECLIP.PROMPT.NAMES_PER_STEP
        head_names = cfg.MODEL.DENSECLIP.PROMPT.HEAD_NAMES_PER_STEP
        return {**given, "names_per_step": number, "head_names_per_step": head_names}

    @property
    def reads_some_names(self) -> bool:
        """Return whether a training step reads some of the names, by :meth:`names_of_step`."""
        return 0 < self._names_per_step < len(self.class_names) and self.text_encoder is not None

    @contextmanager
    def names_of_step(self, classes: Tensor) -> Iterator[StepNames]:
        """Have the names of one training step in place of the class names.

        Every process has to call this, and all have the names of all of their objects.

        Args:
            classes: class ids of the objects of this process, on the CPU.
        """
        everything = self.class_names
        if self._last_text is None or self._last_names != self.names:
            self._last_text, self._last_names = self.encode_all().float(), self.names
        self.step_names = step = self._draw(classes)
        self.class_names = tuple(everything[i] for i in step.index[: len(step.weights)].tolist())
        try:
            yield step
        finally:
            self.class_names, self.step_names = everything, None

    def encode_step_names(self) -> Tensor:
        """Return text embeddings (1, m, C) of the names of the step, and keep what this step read of them.

        All have the values of earlier readings, and the gradient is that of this one: values of this one
        would tell the heads which names the objects of the step need.
        """
        step = self.step_names
        assert step is not None and self._last_text is not None
        if self.contexts is None:
            return self._last_text[step.index][None]  # nothing that is read has a gradient
        text = self._encode(step.names, step.prompts, step.owners, self.contexts)
        last_text = self._last_text[step.index].to(text)[None]
        self._last_text[step.index[step.read]] = text[0].detach().to(self._last_text)
        return last_text.index_add(1, step.read, text - text.detach())

    def encode_all(self) -> Tensor:
        """Return text embeddings (K, C) of all names, as evaluation reads them."""
        encoder, *_ = self._reader()
        was_training = encoder.training
        encoder.eval()  # PyTorch's attention for inference, as in any evaluation
        with torch.inference_mode(False), torch.no_grad():  # a buffer that can be written to anywhere
            embeddings = self.encode_class_names(self.contexts)[0]
        encoder.train(was_training)
        return embeddings

    @property
    def unread_text(self) -> Tensor | None:
        """The last text embeddings (K - m, C) of the names that the step leaves out; None: it has all."""
        step, text = self.step_names, self._last_text
        if step is None or text is None or len(step.index) == len(text):
            return None
        unread = torch.ones(len(text), dtype=torch.bool, device=text.device)
        unread[step.index] = False
        return text[unread]

    def steps_state(self) -> dict[str, Any]:
        """Return what steps leave for the steps after, for a checkpoint."""
        return {"step": self._step, "text": self._last_text, "names": self._last_names}

    def load_steps_state(self, state: dict[str, Any]) -> None:
        """Go on after the steps that :meth:`steps_state` had behind it."""
        *_, device = self._reader()
        self._step, self._last_names = state["step"], state.get("names", ())
        self._last_text = None if state["text"] is None else state["text"].to(device)

    def _draw(self, classes: Tensor) -> StepNames:
        number, (*_, device) = len(self.class_names), self._reader()
        needed = torch.zeros(number, dtype=torch.int32)
        needed[classes] = 1
        if self.learned and (learned := self.learned.number_in(self.class_names)) is not None:
            needed[learned] = 1
        needed = sum_over_processes(needed.to(device)).cpu() > 0
        cycle, turn = divmod(self._step, turns := ceil(number / self._names_per_step))
        read = needed.clone()
        read[_order(number, cycle).tensor_split(turns)[turn]] = True
        others = _order(number, self._step)
        others = others[~read[others]][: max(self._head_names_per_step - int(read.sum()), 0)]
        self._step += 1
        return self._lay_out_step(needed, read, read.index_fill(0, others, True))

    def _lay_out_step(self, needed: Tensor, read: Tensor, seen: Tensor) -> StepNames:
        """Lay out the names of a step. Each argument says of each class whether it is one of them."""
        encoder, prompts = self.encoder_and_prompts()
        _, sentences, device = self._reader()
        number, stuff = len(seen), torch.arange(len(self.stuff_names))
        column = seen.cumsum(0).sub(1).where(seen, -1)
        place = read.cumsum(0).sub(1).where(read, -1)  # among the classes that the text encoder reads
        # Stuff follows the classes, here as among all names.
        owners = torch.cat([place, stuff + int(read.sum())])[torch.tensor(self._owners)]
        rows = prompts.cpu()[owners >= 0]
        packs = encoder.pack(rows, sentences.n_ctx, self._pack_tokens)
        drawn = seen & ~needed
        stands_for = int((~needed).sum()) / max(int(drawn.sum()), 1)
        return StepNames(
            torch.cat([seen.nonzero().flatten(), stuff + number]).to(device),
            column.to(device),
            torch.where(drawn, stands_for, 1.0)[seen].to(device),
            torch.cat([column[read], stuff + int(seen.sum())]).to(device),
            (*(self.class_names[i] for i in read.nonzero().flatten().tolist()), *self.stuff_names),
            packs.to(device) if len(packs) else rows.to(device),
            owners[owners >= 0].tolist(),
        )


def _order(number: int, seed: int) -> Tensor:
    """Return the numbers below ``number`` in an order that is equal in all processes."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))
