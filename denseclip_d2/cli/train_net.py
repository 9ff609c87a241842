"""Train or evaluate a model of a config.

tools/train_net.py --config-file configs/Shapes/denseclip_retinanet_tiny.yaml
tools/train_net.py --config-file configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml --num-gpus 8
torchrun --nproc-per-node 8 tools/train_net.py --config-file F   # processes by torchrun; also on CPUs
tools/train_net.py --config-file F --resume                      # go on where a run in OUTPUT_DIR stopped
tools/train_net.py --config-file F --eval-only MODEL.WEIGHTS W   # AP of weights on DATASETS.TEST
tools/train_net.py --config-file F --train my/train.json my/images --val my/val.json my/images   # own data
tools/train_net.py --config-file F --eval-only --val my/val.json my/images MODEL.WEIGHTS W   # of any names
tools/train_net.py --clip openclip://ViT-B-16-quickgelu/openai --eval-only   # mIoU of a CLIP alone, untrained
tools/train_net.py --clip W --eval-only --val my/val.json my/images   # names of given boxes, by a CLIP alone
tools/train_net.py --config-file F --train my/data.yaml          # own data of YOLO, or a Pascal VOC folder
"""

import argparse
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..builder import inference_precision, optimize_for_inference
from ..checkpoint import DenseCLIPCheckpointer
from ..data.dataset_folder import FORMS
from ..engine import Trainer, run, setup
from ..engine.run_record import record_evaluation
from ..evaluation.build import check_test_sets
from ..inference import run_in_runtime, with_tta
from .parser import add_clip, config_and_opts, write_json

RESULTS = "results.json"
"""The file of an evaluation's metrics in ``OUTPUT_DIR``."""


def build_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--allow-partial", action="store_true",
        help="load what fits of weights that do not hold the whole model",
    )  # fmt: skip
    add_clip(parser)
    for split, what in (("train", "train on"), ("val", "evaluate on; without, some are held out")):
        parser.add_argument(
            f"--{split}", nargs="+", action=_DataSource, metavar="PATH", help=f"{FORMS}, to {what}"
        )
    parser.add_argument(
        "--train-semantic", metavar="FOLDER",
        help="a folder with classes.txt, images/ and labels/ to train on, for semantic segmentation",
    )  # fmt: skip
    return parser


class _DataSource(argparse.Action):
    """Take one value or two."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2 or (len(values) == 1 and values[0].lower().endswith(".json")):
            parser.error(f"{option_string} {' '.join(values)}: give {FORMS}")
        setattr(namespace, self.dest, values)


def all_opts(args: argparse.Namespace) -> list:
    """Return the KEY VALUE pairs of the command line, with those of the options for own data."""
    keys = {
        "DATASETS.CUSTOM.TRAIN": args.train,
        "DATASETS.CUSTOM.VAL": args.val,
        "DATASETS.CUSTOM.SEMANTIC": args.train_semantic,
    }
    own = [x for pair in keys.items() if pair[1] for x in pair]
    return [*own, *args.opts]


def main(args: argparse.Namespace) -> None:
    args.opts = all_opts(args)
    if bool(args.config_file) == bool(args.clip):
        raise argparse.ArgumentError(None, "--config-file is needed, or --clip; configs/ has configs")
    args.config_file, args.opts = config_and_opts(args)
    if args.num_gpus > max(torch.cuda.device_count(), 1):
        raise argparse.ArgumentError(
            None,
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}; "
            "processes on CPUs: torchrun --nproc-per-node N tools/train_net.py ...",
        )
    run(train, args)


def train(args: argparse.Namespace):
    """Train or evaluate in one of the processes, and return the results."""
    cfg, reference = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg, recipe=reference)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
        from ..report import report_training  # imports matplotlib, which training does not need

        report_training(cfg)
        return results
    record_evaluation(cfg.OUTPUT_DIR)
    check_test_sets(cfg)
    model = Trainer.build_model(cfg)
    augmented = with_tta(cfg, model) if cfg.TEST.AUG.ENABLED else None
    checkpointer = DenseCLIPCheckpointer.from_config(cfg, model, cfg.OUTPUT_DIR, for_training=False)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if args.resume and checkpointer.has_checkpoint():
        cfg = cfg.clone()
        cfg.merge_from_list(["MODEL.WEIGHTS", checkpointer.get_checkpoint_file()])
    with inference_precision(cfg):
        results = Trainer.test(cfg, run_in_runtime(cfg, optimize_for_inference(cfg, model)))
        if augmented:
            results.update(Trainer.test_with_tta(cfg, augmented))
    if comm.is_main_process():
        write_json(Path(cfg.OUTPUT_DIR, RESULTS), results)
        verify_results(cfg, results)
    return results
