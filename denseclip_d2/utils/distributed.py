import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_processes(count: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient; every process must call this.

    Detectron2 averages logged losses over processes, and DDP averages gradients. If each process divides its
    sum of losses by ``sum_over_processes(its count) / number of processes``, that average is the loss of the
    global batch.
    """
    if comm.get_world_size() == 1:
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total
