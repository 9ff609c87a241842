import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_processes(count: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient; every process has to call this.

    Detectron2 averages logged losses, and DDP gradients, over processes. A process that divides its sum of
    losses by ``sum_over_processes(its count) / number of processes`` makes that average the loss of the
    global batch, however it is spread over processes.
    """
    if comm.get_world_size() == 1:
        return count
    total = count.detach().clone()
    dist.all_reduce(total)
    return total
