import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

from detectron2.data import build_detection_train_loader
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, ToIterableDataset
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, Sampler

from ..utils.random_state import seeded_random

Place = tuple[int, int]  # position in the stream of this process, index of the record

# What Detectron2's samplers draw when they are made. Only RandomSubsetTrainingSampler has the last.
SAMPLER_STATE = ("_seed", "_indexes_subset")


class TrainLoader:
    """Detectron2's training loader with a state, from which it resumes exactly.

    The seed of an image's augmentation is made of the run's seed and the image's place in the stream. So the
    batches depend neither on the number of workers nor on other draws of random numbers. To resume, no image
    is read: the sampler and the grouping by aspect ratio run over the sizes of the images before.
    """

    def __init__(
        self,
        dataset: list[dict],
        *,
        mapper: Callable[[dict], dict],
        sampler: Sampler,
        total_batch_size: int,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        unused: Mapping[str, int] = MappingProxyType({}),
    ):
        """
        All processes must call this together.

        Args:
            dataset, mapper, ...: as for Detectron2's ``build_detection_train_loader``, whose ``from_config``
                makes them. ``mapper`` may not return None. Images of unknown sizes are not grouped.
            unused: the number of objects that the mapper drops, by reason, for the summary.
        """
        self.total_batch_size = total_batch_size
        self.batch_size = total_batch_size // comm.get_world_size()
        self.unused = unused
        self.images = 0  # yielded so far, by all processes together
        self._sizes = [(record.get("width"), record.get("height")) for record in dataset]
        # Detectron2's datasets for semantic segmentation do not know their images' sizes.
        aspect_ratio_grouping = aspect_ratio_grouping and not any(None in size for size in self._sizes)
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self._places = _Places(sampler)
        self.dataset = _SeededDataset(DatasetFromList(dataset, copy=False), mapper)
        # Workers take turns by images if these are grouped later, else by batches. With the same shards,
        # images arrive in the sampler's order for any number of workers.
        shard = 1 if aspect_ratio_grouping else self.batch_size
        self._loader = build_detection_train_loader(
            ToIterableDataset(self.dataset, self._places, shard_chunk_size=shard),
            mapper=None,
            total_batch_size=total_batch_size,
            aspect_ratio_grouping=aspect_ratio_grouping,
            num_workers=num_workers,
            seed=self.dataset.seed,  # else torch's loader draws one from the global generator
        )

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            self.images += self.total_batch_size
            yield batch

    def state_dict(self) -> dict:
        """Return the position in the stream, the same for all processes."""
        sampler = vars(self._places.sampler)
        return {
            "images": self.images,
            "dataset_length": len(self._sizes),
            "total_batch_size": self.total_batch_size,
            "world_size": comm.get_world_size(),
            "augmentation_seed": self.dataset.seed,
            "sampler": {key: sampler[key] for key in SAMPLER_STATE if key in sampler},
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume where ``state_dict`` was called. Call this before the first batch is taken.

        With another number of processes, batch size or dataset, the loader skips as many images, but not the
        same ones.
        """
        now = self.state_dict()
        changed = [k for k in ("dataset_length", "total_batch_size", "world_size") if state[k] != now[k]]
        if changed:
            logging.getLogger(__name__).warning(
                "The order of the data cannot be resumed exactly: %s. Resuming after %d images.",
                ", ".join(f"{k} was {state[k]}, is {now[k]}" for k in changed),
                state["images"],
            )
        self.dataset.seed = state["augmentation_seed"]
        if "dataset_length" not in changed:
            vars(self._places.sampler).update(state["sampler"])
        self._skip(state["images"] // self.total_batch_size)

    def _skip(self, batches: int) -> None:
        self.images = batches * self.total_batch_size
        self._places.pending, self._places.start = [], batches * self.batch_size
        if not (batches and self.aspect_ratio_grouping):
            return
        places = enumerate(self._places.sampler)
        sizes = (dict(zip(("width", "height"), self._sizes[i], strict=True), place=(n, i)) for n, i in places)
        grouped = AspectRatioGroupedDataset(sizes, self.batch_size)
        next(islice(grouped, batches - 1, None))
        # Images that were read and augmented, but are in no batch yet, come again first.
        self._places.pending = sorted(x["place"] for bucket in grouped._buckets for x in bucket)
        self._places.start = next(places)[0]


class _Places(Sampler[Place]):
    """Yield pending places, then a sampler's positions and indices from ``start`` on."""

    def __init__(self, sampler: Sampler[int]):
        self.sampler = sampler
        self.pending: list[Place] = []
        self.start = 0

    def __iter__(self) -> Iterator[Place]:
        yield from self.pending
        yield from islice(enumerate(self.sampler), self.start, None)


class _SeededDataset(Dataset):
    """Map records with random numbers that depend on their place."""

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict]):
        self.records, self.mapper = records, PicklableWrapper(mapper)  # workers may be spawned
        self.seed = comm.shared_random_seed()
        self.rank = comm.get_rank()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> dict:
        position, index = place
        with seeded_random(self.seed, self.rank, position):
            return self.mapper(self.records[index])
