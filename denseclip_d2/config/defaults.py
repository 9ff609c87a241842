from detectron2.config import CfgNode


def add_denseclip_config(cfg: CfgNode) -> None:
    """Add every config key of this project, with the defaults a new training should have, to ``cfg``."""
    cfg.MODEL.DENSECLIP = CfgNode()
    denseclip = cfg.MODEL.DENSECLIP
    # CLIP architecture, by open_clip's name; decides the widths of both encoders. OpenAI's weights need
    # QuickGELU, hence a name that ends in "-quickgelu".
    denseclip.CLIP_MODEL = "RN50-quickgelu"
    # Names of the classes, in the order of their ids. Empty: those of the (first) training set.
    denseclip.CLASS_NAMES = ()
    # A CLIP's weights, as MODEL.WEIGHTS takes them, whose text encoder training begins with where
    # MODEL.WEIGHTS has none: folded ones, as the model zoo has. Empty: such weights cannot be trained from.
    denseclip.TEXT_WEIGHTS = ""
    # Weight of `loss_pixel_text`, the auxiliary pixel-text loss (paper, sec. 3.4).
    denseclip.LOSS_WEIGHT = 1.0
    # What that loss takes a class's pixels from: "box", as released, or "mask" (needs MODEL.MASK_ON).
    denseclip.LOSS_TARGET = "box"
    # Of objects: "binary", as released, each class for itself; or "softmax", between the classes, for many of
    # them: the mean over 192 classes of the binary loss is nearly all of those that are not there.
    denseclip.LOSS_KIND = "binary"
    # Compute the score map and the losses of maps by kernels: Triton's on GPUs; on CPUs, work only where
    # objects are, and bands of a label map. False: by their plain definitions. The same numbers either way.
    denseclip.KERNELS = True
    # P7 = conv(relu(P6)), as Detectron2 has it; False: conv(P6), as the released RetinaNets have it.
    denseclip.FPN_P7_RELU = True

    # Projects of Detectron2's whose heads and config keys the model needs, of "point_rend", "deeplab" and
    # "panoptic_deeplab". Their keys exist only where they are named, in the config file.
    denseclip.PROJECTS = ()

    denseclip.VISUAL = CfgNode()
    # Norm of the visual encoder: any that Detectron2's `get_norm` knows. The recipe trains it (SyncBN). A ViT
    # has it in its pyramid alone; its blocks have CLIP's layer norms.
    denseclip.VISUAL.NORM = "SyncBN"
    # Freeze the first stages, with their norm: 0 none, 1 the stem, 2 the stem and res2, ... 5 all. A ViT's
    # stages are the blocks up to each level's tap; its pyramid is never frozen.
    denseclip.VISUAL.FREEZE_AT = 0
    # How the positional embedding meets an (h, w) map: "interpolate" it, or "crop" its top left corner, as
    # the released detectors do.
    denseclip.VISUAL.POSITION = "interpolate"
    # Side, in pixels, of the image whose grid of positions is kept (released detectors: 1344); CLIP's grid
    # is resized to it when weights are loaded. 0 keeps CLIP's own.
    denseclip.VISUAL.RESOLUTION = 0
    # What a cell of the dense embedding is: "attention", the answer to its query, as released; or "value",
    # its own value without the attention (MaskCLIP, ECCV 2022), which is local before anything is trained.
    denseclip.VISUAL.DENSE = "attention"
    # Of a ResNet: 2 leaves out the pooling of res5, and dilates the convolutions after it, so that the dense
    # embedding and the score map have stride 16. The pyramid gets res5 averaged over 2 x 2 cells.
    denseclip.VISUAL.RES5_DILATION = 1
    # Of a ViT: rate of stochastic depth in the last block, rising from 0 in the first.
    denseclip.VISUAL.DROP_PATH_RATE = 0.0
    # Of CLIP's own ViTs, not timm's: side of the windows, in cells, that blocks attend in, which makes large
    # images cheaper (ViTDet, ECCV 2022: 14). The class token attends to every window, and every window to it.
    # 0: no windows.
    denseclip.VISUAL.WINDOW_SIZE = 0
    # With windows: the blocks, counted from 0, that attend globally. Empty: the last of every quarter.
    denseclip.VISUAL.GLOBAL_BLOCKS = ()
    # Of a ViT: add the class embedding twice, as the released weights need; CLIP's own must not have it.
    denseclip.VISUAL.DOUBLE_CLASS_EMBEDDING = False
    # A backbone in place of the CLIP's own visual encoder: "timm/NAME", or a name in Detectron2's registry;
    # empty: the CLIP's. It gets an embedding into the space of CLIP_MODEL's text, at first at random.
    denseclip.VISUAL.BACKBONE = ""
    # That backbone's weights: a file or link, "timm://NAME.TAG" or "torchvision://WEIGHTS". MODEL.WEIGHTS has
    # the text's.
    denseclip.VISUAL.WEIGHTS = ""
    # That embedding: "attention_pool", as CLIP's ResNets have (paper), or "linear".
    denseclip.VISUAL.EMBEDDING = "attention_pool"
    # Recompute activations in the backward pass instead of storing them: less memory, more time.
    denseclip.VISUAL.ACTIVATION_CHECKPOINTING = False

    denseclip.PROMPT = CfgNode()
    # "post": learned contexts, embeddings refined by the image; "pre": contexts made from the image;
    # "context": learned contexts alone (CoOp); "template": a fixed sentence (paper, sec. 3.3).
    denseclip.PROMPT.MODE = "post"
    # Number of context vectors.
    denseclip.PROMPT.NUM_CONTEXTS = 8
    # Words that the contexts begin from, as in CoOp ("a photo of a"), of NUM_CONTEXTS tokens. Empty: a normal
    # distribution, cut off at twice its standard deviation CONTEXT_STD.
    denseclip.PROMPT.CONTEXT_INIT = ""
    # As released: 1, where the tokens of OpenAI's CLIPs have 0.01 to 0.02.
    denseclip.PROMPT.CONTEXT_STD = 1.0
    # Tokens a name may take, its start and end included (released models: 5). 0 fits the longest name.
    denseclip.PROMPT.NAME_LENGTH = 0
    # The sentence of mode "template"; {} stands for the name.
    denseclip.PROMPT.TEMPLATE = "a photo of a {}."
    # For inference: the weights hold the names' embeddings, made once, in place of text encoder and contexts.
    denseclip.PROMPT.FOLDED = False
    # Train on one GPU with the text encoder as a CUDA graph: its launches take the host longer than the GPU.
    denseclip.PROMPT.CUDA_GRAPH = True

    denseclip.CONTEXT_DECODER = CfgNode()
    # The transformer decoder that lets the image refine the text (paper, sec. 3.3).
    denseclip.CONTEXT_DECODER.WIDTH = 256
    denseclip.CONTEXT_DECODER.HEADS = 4
    denseclip.CONTEXT_DECODER.LAYERS = 3
    denseclip.CONTEXT_DECODER.DROPOUT = 0.1

    denseclip.SCORE_MAP = CfgNode()
    # The feature that the score map is concatenated to; its stride must be the dense embedding's. Empty: the
    # one that has it, which is res5 of a ResNet and res4 of ViT-B/16.
    denseclip.SCORE_MAP.LEVEL = ""
    # Temperature that divides the cosine similarity.
    denseclip.SCORE_MAP.TAU = 0.07
    # Concatenate the score map; False: it has its loss, and the pyramid is that of the twin without language.
    denseclip.SCORE_MAP.CONCAT = True
    # Concatenate s / tau (released detectors) or s (released segmentors).
    denseclip.SCORE_MAP.CONCAT_LOGITS = True

    # Detectron2's FCOS, with the values of its own config (model_zoo/configs/common/models/fcos.py).
    cfg.MODEL.FCOS = CfgNode()
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    cfg.MODEL.FCOS.IN_FEATURES = ("p3", "p4", "p5", "p6", "p7")
    # Convolutions before the predictors, and their norm.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    # Probability of every class at the beginning.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Points within so many strides of a box's center are positive.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Of the square root of a class's probability and the centerness.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6

    # Keep weights and maps of convolutions channels-last in memory: the same numbers, faster. Models with
    # timm's FastViT stay as they are on CPUs, where torch would write beyond its memory.
    cfg.MODEL.CHANNELS_LAST = True
    # Compile the visual encoder by torch.compile when it first runs, a minute or so. On GPUs again at the
    # second image size it meets, for any size; on CPUs at each of the first eight, others being run as ever.
    cfg.MODEL.COMPILE = False
    # Probability that a channel is dropped before the predictor of CLIPSemSegFPNHead.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.1
    # Accept weights with tensors missing or of another shape (same as --allow-partial).
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = False

    # Train at MIN_SIZE_TRAIN and MAX_SIZE_TRAIN times one factor, drawn between these bounds.
    cfg.INPUT.SCALE_RANGE_TRAIN = (1.0, 1.0)
    # Distort brightness, contrast, saturation and hue in training (as SSD and MMSegmentation do).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Semantic segmentation: of 10 random crops take the first in which no class has this part, or more, of
    # what is labeled; 1.0 takes any. An "absolute" CROP.SIZE is also what smaller images are padded to.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    # Of SOLVER.AMP: "float16" with a gradient scaler (GPUs only), or "bfloat16" without (GPUs and CPUs).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # "ADAMW" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Factor of the visual encoder's learning rate. The text encoder is frozen.
    cfg.SOLVER.VISUAL_MULTIPLIER = 0.1
    # Factor of the contexts' learning rate. Where they begin from words (PROMPT.CONTEXT_INIT), a rate that
    # suits new layers rewrites them within some tens of iterations.
    cfg.SOLVER.CONTEXT_MULTIPLIER = 1.0
    # Power of SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR", which goes from each rate down to SOLVER.BASE_LR_END.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Parameters without weight decay, by shell patterns on their names. As released, the norms inside the
    # context decoder's layers and no others.
    cfg.SOLVER.NO_WEIGHT_DECAY = ("*.context_decoder.decoder.*.norm?.*",)
    # Training images that the schedule is for: own data (DATASETS.OWN) scale MAX_ITER, STEPS, WARMUP_ITERS
    # and TEST.EVAL_PERIOD to theirs. 0: they are trained on as long as it says.
    cfg.SOLVER.REFERENCE_IMAGES = 0
    # Keep only the newest so many of the periodic checkpoints (model_final and model_best stay); 0 keeps all.
    cfg.SOLVER.KEEP_CHECKPOINTS = 0
    # A metric, such as "bbox/AP", by which the best weights so far are kept as model_best.pth; empty: none.
    cfg.SOLVER.KEEP_BEST = ""

    # Folders to register for semantic segmentation: "my/data", which has classes.txt (a name a line),
    # images/train/* and labels/train/*.png, as "data_train", and so on for its other splits.
    cfg.DATASETS.SEMANTIC_FOLDERS = ()
    # Data of one's own, to train on in place of DATASETS.TRAIN; names of classes, NUM_CLASSES and schedule
    # are then taken from them. With boxes: a COCO-format file and the folder of its images,
    # ("my/train.json", "my/images"), or a YOLO or Pascal VOC folder, ("my_yolo/data.yaml",). As --train.
    cfg.DATASETS.OWN = CfgNode()
    cfg.DATASETS.OWN.TRAIN = ()
    # The same to evaluate on. Empty: the folder's own validation part, or else a part of the training images
    # is held out. As --val.
    cfg.DATASETS.OWN.VAL = ()
    # With labels of pixels: a folder as SEMANTIC_FOLDERS has them. As --train-semantic.
    cfg.DATASETS.OWN.SEMANTIC = ""
    # The names of the data's classes, as they were trained; set by the program, to see when they change.
    cfg.DATASETS.OWN.CLASS_NAMES = ()
    # The part that is held out, by SEED, where there is nothing to evaluate on; 0 holds nothing out.
    cfg.DATASETS.OWN.HELD_OUT = 0.2
    # Iterations that few images are trained for at least, if the config's own schedule is not shorter.
    cfg.DATASETS.OWN.MIN_ITER = 500
    # Before training, see that every image is there, whole and of its annotated size. JPEGs are not decoded:
    # damage between a JPEG's header and its last bytes is not seen, and ends training when it is read.
    cfg.DATASETS.CHECK_IMAGES = True

    # Part of the training images that SAMPLER_TRAIN "RandomSubsetTrainingSampler" draws, by SEED, and trains
    # on. Detectron2 reads the key, and has no default for it.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # `--eval-only`, `Predictor` and the demo run faster, with the same outputs to rounding: norms are fused
    # into convolutions, and these are channels-last in memory. False: the model as it is trained.
    cfg.TEST.FAST = True
    # What they compute in: "float32", or under autocast "bfloat16" or "float16", which change the outputs.
    cfg.TEST.PRECISION = "float32"

    # Once trained, write OUTPUT_DIR/report.html, as tools/report.py does.
    cfg.TEST.REPORT = True
    cfg.TEST.SLIDING_WINDOW = CfgNode()
    # Segment test images window by window, and average the logits where windows overlap; False: whole.
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    # Height and width of a window, and its steps down and across, in pixels.
    cfg.TEST.SLIDING_WINDOW.SIZE = (512, 512)
    cfg.TEST.SLIDING_WINDOW.STRIDE = (341, 341)
    # Pixels of the windows that are segmented at once, at most: lower it where memory is short.
    cfg.TEST.SLIDING_WINDOW.MAX_PIXELS = 1048576
