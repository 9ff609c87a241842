from detectron2.config import CfgNode


def add_denseclip_config(cfg: CfgNode) -> None:
    """Add every config key of this project to ``cfg``, with the defaults for a new training."""
    cfg.MODEL.DENSECLIP = CfgNode()
    denseclip = cfg.MODEL.DENSECLIP
    # CLIP architecture, by open_clip's name. It sets the widths of both encoders. OpenAI's weights need
    # QuickGELU, so the name ends in "-quickgelu". "local-dir:FOLDER": a CLIP in a folder of open_clip.
    denseclip.CLIP_MODEL = "RN50-quickgelu"
    # Class names, in the order of their ids. Empty: the names of the first training set.
    denseclip.CLASS_NAMES = ()
    # Panoptic FPN with CLASSIFIER "text": the names of the stuff, without Detectron2's label 0, "things".
    # Empty: the names of the first training set. ScoreMapHead: names whose pixels are "background".
    denseclip.STUFF_NAMES = ()
    # Weights of a CLIP, as in MODEL.WEIGHTS, whose text encoder the model takes if MODEL.WEIGHTS has none.
    # Training also takes it in place of precomputed text embeddings. Or a release of the text encoder that
    # transformers reads, such as TIPSv2's.
    denseclip.TEXT_WEIGHTS = ""
    # How heads classify: "kway", by a learned vector for each class, as released; or "text", by the cosine
    # similarity with the text embeddings. With SCORE_MAP.CONCAT "text" or "none", such a model takes any
    # names at test time. R-CNN heads then need class-agnostic boxes and masks.
    denseclip.CLASSIFIER = "kway"
    # With CLASSIFIER "text": each head also learns a bias for each name of the training, which begins at 0.
    # Other names that the model is given later have none.
    denseclip.NAME_BIAS = False
    # Mix the heads' class probabilities p with CLIP's at test time, as F-VLM and FC-CLIP do: p^(1 - b) q^b.
    # ALPHA is b of the names that the model was trained on, BETA is b of other names. q is the softmax of the
    # score map over TAU, at the location or in the box. 0 is p, 1 is q. Needs CLASSIFIER "text".
    denseclip.GEOMETRIC_ENSEMBLE = CfgNode()
    denseclip.GEOMETRIC_ENSEMBLE.ALPHA = 0.0
    denseclip.GEOMETRIC_ENSEMBLE.BETA = 0.0
    # Weight of `loss_pixel_text`, the auxiliary pixel-text loss (paper, sec. 3.4).
    denseclip.LOSS_WEIGHT = 1.0
    # The pixels of a class in this loss: "box", as released, or "mask" (needs MODEL.MASK_ON).
    denseclip.LOSS_TARGET = "box"
    # The loss of objects: "binary", as released, for each class alone; "softmax", over all classes. Use
    # "softmax" for many classes: with 192 classes, nearly all of the binary loss comes from absent classes.
    denseclip.LOSS_TYPE = "binary"
    # Compute the score map and the losses by kernels: Triton's on GPUs, tiles that skip empty ones on
    # CPUs. False: by the plain definitions. The numbers are the same.
    denseclip.FUSED_OPS = True
    # P7 = conv(relu(P6)), as in Detectron2; False: conv(P6), as in the released RetinaNets.
    denseclip.FPN_P7_RELU = True

    # Projects of Detectron2 whose heads and config keys the model needs: "point_rend", "deeplab",
    # "panoptic_deeplab". Their keys exist only if a config file names them here.
    denseclip.PROJECTS = ()

    denseclip.VISUAL = CfgNode()
    # Norm of the visual encoder: any that Detectron2's `get_norm` has. The recipe trains it (SyncBN). A ViT
    # has this norm in its pyramid alone; its blocks have CLIP's layer norms.
    denseclip.VISUAL.NORM = "SyncBN"
    # Freeze the first stages with their norms: 0 none, 1 the stem, 2 the stem and res2, ... 5 all, with the
    # layers after them that a CLIP has: the dense embedding stays the pretrained one. The stages of a ViT are
    # the blocks up to the tap of each level; its pyramid is never frozen.
    denseclip.VISUAL.FREEZE_AT = 0
    # How the positional embedding fits an (h, w) map: "interpolate" it, or "crop" its top left corner, as the
    # released detectors do.
    denseclip.VISUAL.POS_EMBED = "interpolate"
    # Side in pixels of the image whose position grid the weights have (released detectors: 1344). CLIP's grid
    # is resized to it at loading. 0 keeps CLIP's grid.
    denseclip.VISUAL.RESOLUTION = 0
    # The dense embedding of a cell: "attention", the answer to its query, as released; "value", its own value
    # without attention (MaskCLIP, ECCV 2022), which is local before training; or another without training:
    # docs/without_training.md has them.
    denseclip.VISUAL.DENSE_FEATURES = "attention"
    # ResNets: 2 leaves out the pooling of res5 and dilates the convolutions after it, so the dense embedding
    # and the score map have stride 16. The pyramid gets res5 averaged over 2 x 2 cells.
    denseclip.VISUAL.RES5_DILATION = 1
    # ViTs: rate of stochastic depth in the last block; it rises from 0 in the first.
    denseclip.VISUAL.DROP_PATH_RATE = 0.0
    # CLIP's ViTs, not timm's: side in cells of the windows that blocks attend in, which makes large images
    # cheaper (ViTDet, ECCV 2022: 14). The class token attends to every window, and every window to it. 0: no
    # windows.
    denseclip.VISUAL.WINDOW_SIZE = 0
    # With windows: the blocks, counted from 0, that attend globally. Empty: the last of each quarter.
    denseclip.VISUAL.GLOBAL_ATTN_INDEXES = ()
    # ViTs: add the class embedding twice. The released weights need it; CLIP's own must not have it.
    denseclip.VISUAL.DOUBLE_CLASS_EMBEDDING = False
    # A backbone that replaces the visual encoder of the CLIP: "timm/NAME", or a name in Detectron2's
    # registry. Its embedding into the space of CLIP_MODEL's text starts at random. Empty: the CLIP's encoder.
    denseclip.VISUAL.BACKBONE = ""
    # The weights of that backbone: a file or link, "timm://NAME.TAG" or "torchvision://WEIGHTS".
    # MODEL.WEIGHTS has the text encoder's.
    denseclip.VISUAL.WEIGHTS = ""
    # That embedding: "attention_pool", as CLIP's ResNets have (paper), or "linear".
    denseclip.VISUAL.PROJECTION = "attention_pool"
    # Recompute activations in the backward pass instead of storing them: less memory, more time.
    denseclip.VISUAL.ACTIVATION_CHECKPOINTING = False

    denseclip.PROMPT = CfgNode()
    # "post": learned contexts, and embeddings that the image refines; "pre": contexts made from the image;
    # "context": learned contexts alone (CoOp); "template": a fixed sentence (paper, sec. 3.3); "random": a
    # random vector for each name, to find out in an experiment what the words contribute.
    denseclip.PROMPT.MODE = "post"
    # Number of context vectors.
    denseclip.PROMPT.N_CTX = 8
    # Words that initialize the contexts, as in CoOp ("a photo of a"), with N_CTX tokens. Empty: a
    # normal distribution of deviation CONTEXT_STD, truncated at twice that.
    denseclip.PROMPT.CONTEXT_INIT = ""
    # As released: 1. The token embeddings of OpenAI's CLIPs have 0.01 to 0.02.
    denseclip.PROMPT.CONTEXT_STD = 1.0
    # The most tokens of a name, with its start and end (released models: 5). 0 fits the longest name.
    denseclip.PROMPT.MAX_NAME_TOKENS = 0
    # The sentence of mode "template", with {} in place of the name.
    denseclip.PROMPT.TEMPLATE = "a photo of a {}."
    # Sentences in place of it, or ("imagenet",): the 80 of CLIP's ImageNet notebook. A name has the mean of
    # the normalized embeddings of its sentences. Empty: TEMPLATE.
    denseclip.PROMPT.TEMPLATES = ()
    # With CLASSIFIER "text": a class of label maps whose embedding is learned, because the word says nothing.
    # A ScoreMapHead learns nothing: the class has the pixels of STUFF_NAMES and BACKGROUND_THRESHOLD.
    denseclip.PROMPT.LEARNED_NAME = "background"
    # Folder with the tokenizer of an architecture whose tokenizer is on the Hugging Face hub, such as SigLIP.
    # Empty: the hub's cache, or a download.
    denseclip.PROMPT.TOKENIZER = ""
    # The weights hold precomputed text embeddings in place of text encoder and contexts. For inference; with
    # VOCABULARY also for training.
    denseclip.PROMPT.PRECOMPUTED = False
    # Datasets whose names the precomputed text embeddings are of, besides the classes: the model then finds
    # any of these names. "imagenet" is a dataset too. With PROMPT.MODE "template" or "random".
    denseclip.PROMPT.VOCABULARY = ()
    # Train on one GPU with the text encoder as a CUDA graph, because its launches take longer than the GPU.
    denseclip.PROMPT.CUDA_GRAPH = True
    # With CLASSIFIER "text": the names that a training step reads in turn, beside those of its objects. The
    # cost of text encoder and heads then does not grow with the classes. 0: all names. Not with MODE "pre".
    denseclip.PROMPT.NAMES_PER_STEP = 0
    # The names that heads and losses see in such a step: those that it reads, and others up to this number,
    # with the embedding of their last reading. 0: those that it reads.
    denseclip.PROMPT.HEAD_NAMES_PER_STEP = 256
    # With CLASSIFIER "text": the names that heads read at test time, those of the greatest scores in the
    # image's score map. The cost of heads then does not grow with the number of names. 0: all names.
    denseclip.PROMPT.NAMES_PER_IMAGE = 0

    denseclip.CONTEXT_DECODER = CfgNode()
    # The transformer decoder by which the image refines the text (paper, sec. 3.3).
    denseclip.CONTEXT_DECODER.WIDTH = 256
    denseclip.CONTEXT_DECODER.HEADS = 4
    denseclip.CONTEXT_DECODER.LAYERS = 3
    denseclip.CONTEXT_DECODER.DROPOUT = 0.1

    denseclip.SCORE_MAP = CfgNode()
    # The feature that the score map is concatenated to; it needs the stride of the dense embedding. Empty:
    # the feature with this stride, res5 of a ResNet and res4 of ViT-B/16.
    denseclip.SCORE_MAP.LEVEL = ""
    # Temperature that divides the cosine similarity.
    denseclip.SCORE_MAP.TAU = 0.07
    # What is concatenated to the feature: "scores", K channels, as released; "text", the text embeddings that
    # each location sees, as many channels for any number of names; or "none": the loss alone reads the score
    # map, and the pyramid is the one without language.
    denseclip.SCORE_MAP.CONCAT = "scores"
    # With "scores": concatenate s / tau (released detectors), or s (released segmentors).
    denseclip.SCORE_MAP.CONCAT_LOGITS = True
    # Without training: leave out of the score map the classes whose probability, by the softmax of s / tau,
    # reaches this value nowhere in the image (prompt denoising of MaskCLIP, ECCV 2022: 0.5). 0 keeps all.
    denseclip.SCORE_MAP.DENOISE = 0.0

    # ScoreMapHead: a pixel whose highest cosine is lower belongs to the class "background". -1: no pixel.
    denseclip.SCORE_MAP.BACKGROUND_THRESHOLD = -1.0

    # Detectron2's FCOS, with the values of its own config (model_zoo/configs/common/models/fcos.py).
    cfg.MODEL.FCOS = CfgNode()
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    cfg.MODEL.FCOS.IN_FEATURES = ("p3", "p4", "p5", "p6", "p7")
    # Convolutions before the predictors, and their norm.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    # Initial probability of each class.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Points within this many strides of the center of a box are positive.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Threshold of the square root of class probability times centerness.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6

    # Store weights and maps of convolutions channels-last: the same numbers, faster. Models with timm's
    # FastViT are unchanged on CPUs, where torch would write outside its memory.
    cfg.MODEL.CHANNELS_LAST = True
    # Compile the visual encoder by torch.compile at its first run, for about a minute. GPUs compile once more
    # at the second image size, for all sizes. CPUs compile for each of the first eight sizes.
    cfg.MODEL.COMPILE = False
    # Probability that a channel is dropped before the predictor of SemSegFPNHeadWithDropout.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.1
    # Accept weights with missing tensors or tensors of another shape (as --allow-partial).
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = False

    # Train at MIN_SIZE_TRAIN and MAX_SIZE_TRAIN times one factor between these bounds.
    cfg.INPUT.SCALE_RANGE_TRAIN = (1.0, 1.0)
    # Distort brightness, contrast, saturation and hue in training (as SSD and MMSegmentation do).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Semantic segmentation: of 10 random crops, take the first in which every class has less than this part
    # of the labeled area; 1.0 accepts any. Smaller images are padded to an "absolute" CROP.SIZE.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    # Of SOLVER.AMP: "float16" with a gradient scaler (GPUs only), or "bfloat16" without (GPUs and CPUs).
    cfg.SOLVER.AMP.PRECISION = "float16"
    # "ADAMW", "SGD", or "ADAMW8BIT", whose state has 8 bits in place of 32 (package bitsandbytes).
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Factor of the visual encoder's learning rate. The text encoder is frozen.
    cfg.SOLVER.VISUAL_MULTIPLIER = 0.1
    # Factor of the contexts' learning rate. The rate of new layers would overwrite contexts from words
    # (PROMPT.CONTEXT_INIT) within tens of iterations.
    cfg.SOLVER.CONTEXT_MULTIPLIER = 1.0
    # Power of SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR", which lowers each rate to SOLVER.BASE_LR_END.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Parameters without weight decay, by shell patterns of their names. As released: the norms inside the
    # context decoder's layers.
    cfg.SOLVER.NO_WEIGHT_DECAY = ("*.context_decoder.decoder.*.norm?.*",)
    # Number of training images that the schedule is for. Own data (DATASETS.CUSTOM) scale MAX_ITER, STEPS,
    # WARMUP_ITERS and TEST.EVAL_PERIOD to their number. 0: no scaling.
    cfg.SOLVER.REFERENCE_IMAGES = 0
    # How many of the newest periodic checkpoints to keep (model_final and model_best stay); 0 keeps all.
    cfg.SOLVER.MAX_TO_KEEP = 0
    # A metric, such as "bbox/AP", whose best weights are kept as model_best.pth; empty: none.
    cfg.SOLVER.BEST_METRIC = ""

    # Folders to register for semantic segmentation. "my/data" has classes.txt (a name on each line),
    # images/train/* and labels/train/*.png, which become "data_train"; other splits alike.
    cfg.DATASETS.SEMANTIC_FOLDERS = ()
    # Classes of the test sets whose metrics are reported apart, such as those without labels in training, or
    # with few: AP50_novel or IoU_novel, and AP50_base or IoU_base of the others.
    cfg.DATASETS.NOVEL_CLASSES = ()
    cfg.DATASETS.CUSTOM = CfgNode()
    # Own data with boxes, which replace DATASETS.TRAIN and set class names, NUM_CLASSES and schedule: a COCO-
    # format file and its image folder, ("my/train.json", "my/images"), or a YOLO or Pascal VOC folder,
    # ("my_yolo/data.yaml",). As --train.
    cfg.DATASETS.CUSTOM.TRAIN = ()
    # The same to evaluate on. Empty: the folder's validation part, or else a part of the training images is
    # held out. As --val.
    cfg.DATASETS.CUSTOM.VAL = ()
    # Own data with label maps: a folder as in SEMANTIC_FOLDERS. As --train-semantic.
    cfg.DATASETS.CUSTOM.SEMANTIC = ""
    # The class names that were trained; set by the program to detect a change.
    cfg.DATASETS.CUSTOM.CLASS_NAMES = ()
    # The part that is held out, by SEED, if there is nothing to evaluate on; 0 holds out nothing.
    cfg.DATASETS.CUSTOM.VAL_FRACTION = 0.2
    # The fewest iterations for few images, unless the config's own schedule is shorter.
    cfg.DATASETS.CUSTOM.MIN_ITER = 500
    # Before training, check that every image exists, is complete and has its annotated size. JPEGs are not
    # decoded: damage inside of one ends the training when it is read.
    cfg.DATASETS.CHECK_IMAGES = True

    # Part of the training images that SAMPLER_TRAIN "RandomSubsetTrainingSampler" draws by SEED. Detectron2
    # reads this key without a default.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # Make `--eval-only`, `Predictor` and the demo faster, with the same outputs up to rounding: norms are
    # fused into convolutions, which are stored channels-last. False: the model as trained.
    cfg.TEST.OPTIMIZE_FOR_INFERENCE = True
    # Their precision: "float32", or under autocast "bfloat16" or "float16", which change the outputs. With
    # RUNTIME "int8" too, calibrated on the first images of DATASETS.TRAIN.
    cfg.TEST.PRECISION = "float32"
    # Let "onnxruntime" or "openvino" run a detector on a CPU in place of PyTorch. The model is exported and
    # verified once, and its file is kept. Outputs in float32 are the same up to rounding. Empty: PyTorch.
    cfg.TEST.RUNTIME = ""

    # Segmentors on datasets with objects: width and height of an evaluated box need to be greater, in pixels.
    cfg.TEST.MIN_BOX_SIZE = 0

    # After training, write OUTPUT_DIR/report.html, as tools/report.py does.
    cfg.TEST.REPORT = True
    cfg.TEST.SLIDING_WINDOW = CfgNode()
    # Segment test images by windows, and average the logits of overlaps; False: whole images.
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    # Height and width of a window, and its vertical and horizontal step, in pixels.
    cfg.TEST.SLIDING_WINDOW.SIZE = (512, 512)
    cfg.TEST.SLIDING_WINDOW.STRIDE = (341, 341)
    # The most pixels of windows that are segmented together: a lower number takes less memory.
    cfg.TEST.SLIDING_WINDOW.MAX_PIXELS = 1048576
