"""Train or evaluate a model of one of Detectron2's LazyConfigs.

tools/lazyconfig_train_net.py --config-file configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.py
tools/lazyconfig_train_net.py --config-file F.py --num-gpus 8
tools/lazyconfig_train_net.py --config-file F.py --resume                          # go on in train.output_dir
tools/lazyconfig_train_net.py --config-file F.py train.max_iter=100 optimizer.lr=1e-5
tools/lazyconfig_train_net.py --config-file F.py --eval-only train.init_checkpoint=W
"""

import argparse

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import DenseCLIPCheckpointer
from ..engine import run
from ..engine.errors import keep_tracebacks_in_the_log
from ..engine.lazy import build_lazy_model, evaluate_lazy_config, load_lazy_config, train_lazy_config
from ..engine.setup import check_writable


def build_parser() -> argparse.ArgumentParser:
    return default_argument_parser(epilog=__doc__)


def main(args: argparse.Namespace) -> None:
    if not args.config_file.endswith(".py"):
        raise argparse.ArgumentError(None, "--config-file F.py is needed; YAML is for tools/train_net.py")
    load_lazy_config(args.config_file, args.opts)  # what is wrong with it is said once
    run(train, args)


def train(args: argparse.Namespace) -> None:
    """Train or evaluate, in one of the processes."""
    cfg = load_lazy_config(args.config_file, args.opts)
    check_writable(cfg.train.output_dir, "train.output_dir")
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="denseclip_d2")
    keep_tracebacks_in_the_log()
    if args.eval_only:
        model = build_lazy_model(cfg)
        DenseCLIPCheckpointer(model, for_training=False).load(cfg.train.init_checkpoint)
        evaluate_lazy_config(cfg, model)
    else:
        train_lazy_config(cfg, resume=args.resume)
