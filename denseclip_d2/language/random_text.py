import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .prompts import plain_name


def random_text(names: Sequence[str], embed_dim: int) -> Tensor:
    """Return a random vector for each name: text embeddings that know no words, as an experiment's control.

    Args:
        names: K names. A name has the same vector in every process and beside any other names. Names of the
            same :func:`plain_name` share it.
        embed_dim: C, the width of the text embeddings.
    Returns: (K, C), of about unit length.
    """
    seeds = [zlib.crc32(plain_name(name).encode(errors="surrogatepass")) for name in names]
    rows = [torch.randn(embed_dim, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) * embed_dim**-0.5
