"""Objects that trainers pickle beside weights, read as empty dictionaries without looking up their code."""

from collections import OrderedDict
from collections.abc import Callable


class UnreadObject:
    """Replace any class or function of a pickle: each call or instance is a new empty dictionary.

    Unpickling an ``OrderedDict`` only stores items and attributes, so nothing in the file is run.
    """

    def __new__(cls, *_):
        return OrderedDict()


def _unread_list(*_) -> list:
    return []


_NAMES = (
    "argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict",  # DETR, MAE, torchvision
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath",  # Python 3.13's names
    "datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone",
    # Lightning's hyper_parameters: omegaconf declares its values as the first six.
    "typing.Any", "builtins.dict", "builtins.list", "builtins.int", "builtins.float", "builtins.str",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode",
    "lightning_fabric.utilities.data.AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    # MMEngine's message_hub: a HistoryBuffer names its methods by getattr.
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "mmengine.config.config.ConfigDict",
    "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
)  # fmt: skip
METADATA: dict[str, Callable] = {**dict.fromkeys(_NAMES, UnreadObject), "collections.deque": _unread_list}
"""Names in pickles, and what is called in their place. Weights need none of them."""
