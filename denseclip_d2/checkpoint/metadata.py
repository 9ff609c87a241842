"""Objects that trainers pickle beside weights, read as empty dictionaries; no code of theirs is looked up."""

from collections import OrderedDict
from collections.abc import Callable


class Unread:
    """Stand in for any class or function of a pickle: each call or instance is a new empty dictionary.

    Unpickling an ``OrderedDict`` only stores items and attributes, so that nothing in the file is run.
    """

    def __new__(cls, *_):
        return OrderedDict()


def _unread_list(*_) -> list:
    return []


METADATA: dict[str, Callable] = {
    "argparse.Namespace": Unread,  # DETR, MAE, torchvision's references
    "types.SimpleNamespace": Unread,
    "collections.defaultdict": Unread,
    "collections.deque": _unread_list,
    "pathlib.PosixPath": Unread,
    "pathlib.WindowsPath": Unread,
    "pathlib.PurePosixPath": Unread,
    "pathlib._local.PosixPath": Unread,  # as Python 3.13 names them
    "pathlib._local.WindowsPath": Unread,
    "datetime.datetime": Unread,
    "datetime.date": Unread,
    "datetime.timedelta": Unread,
    "datetime.timezone": Unread,
    "typing.Any": Unread,  # what omegaconf's values are declared as, as are the next five
    "builtins.dict": Unread,
    "builtins.list": Unread,
    "builtins.int": Unread,
    "builtins.float": Unread,
    "builtins.str": Unread,
    "omegaconf.base.ContainerMetadata": Unread,  # Lightning's hyper_parameters
    "omegaconf.base.Metadata": Unread,
    "omegaconf.dictconfig.DictConfig": Unread,
    "omegaconf.listconfig.ListConfig": Unread,
    "omegaconf.nodes.AnyNode": Unread,
    "lightning_fabric.utilities.data.AttributeDict": Unread,
    "lightning.fabric.utilities.data.AttributeDict": Unread,
    "pytorch_lightning.utilities.parsing.AttributeDict": Unread,
    "mmengine.logging.history_buffer.HistoryBuffer": Unread,  # MMEngine's message_hub
    "builtins.getattr": Unread,  # how a HistoryBuffer names its methods
    "mmengine.config.config.ConfigDict": Unread,
    "yacs.config.CfgNode": Unread,
    "fvcore.common.config.CfgNode": Unread,
    "detectron2.config.config.CfgNode": Unread,
}
"""Names in pickles, and what is called in their place. Weights need none of them."""
