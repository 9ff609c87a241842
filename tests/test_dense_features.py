"""Dense embeddings without training, against plain definitions."""

import math
from copy import deepcopy

import pytest
import torch
from architectures import clip_of, visual_of
from torch import nn
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.visual import ProjectedBackbone, TimmBackbone, encoder_class
from denseclip_d2.visual.attention_pool import DenseAttentionPool
from denseclip_d2.visual.clip_vit import CLIPViT
from denseclip_d2.visual.dense_features import (
    DENSE_FEATURES,
    OF_A_POOL,
    OF_SINGLE_CELLS,
    DenseAttention,
    MiddleAttention,
)
from denseclip_d2.visual.timm_backbone import create_trunk

TINY_VIT = {
    "layers": 4, "width": 32, "head_width": 8, "patch_size": 16, "embed_dim": 24, "grid_size": 4,
}  # fmt: skip
SIZE = (2, 3)
TOKENS = 1 + SIZE[0] * SIZE[1]
CONVEX = [name for name in DENSE_FEATURES if name not in ("sclip", "value-smoothed")]
"""The features whose weights sum to one."""
VITS = ("CLIP", "EVA02", "Sigmoid", "PE")


def softmax(rows: list[list[float]]) -> torch.Tensor:
    exponentials = torch.tensor(rows, dtype=torch.double).exp()
    return exponentials / exponentials.sum(dim=1, keepdim=True)


def plain_weights(name: str, q, k, v, middle) -> torch.Tensor:
    """The weights of one head, as the papers write them, token by token. Token 0 is no cell."""
    every, d = range(TOKENS), q.shape[1]

    def near(i: int, j: int) -> float:
        if not i or not j:
            return 0.0
        (y, x), (b, a) = divmod(i - 1, SIZE[1]), divmod(j - 1, SIZE[1])
        return math.exp(-((y - b) ** 2 + (x - a) ** 2) / (2 * 5.0**2))

    def correlation(x, y, extra=lambda i, j: 0.0) -> torch.Tensor:
        return softmax([[float(x[i] @ y[j]) / d**0.5 + extra(i, j) for j in every] for i in every])

    if name.startswith("value") and name != "value-value":
        return torch.eye(TOKENS, dtype=torch.double)
    if name == "sclip":
        return correlation(q, q) + correlation(k, k)
    if name == "naclip":
        return correlation(k, k, near)
    if name == "resclip":
        return 0.5 * correlation(k, k, near) + 0.5 * middle
    pairs = {"attention": (q, k), "key-key": (k, k), "value-value": (v, v)}
    return correlation(*pairs.get(name, (q, q)))


@pytest.mark.parametrize("name", DENSE_FEATURES)
def test_a_cell_attends_as_the_paper_says(name):
    q, k, v = torch.randn(3, 2, 4, TOKENS, 5, dtype=torch.double)
    middle = MiddleAttention(12)
    middle.weights = torch.rand(2, 4, TOKENS, TOKENS, dtype=torch.double).softmax(dim=-1)
    attend = DenseAttention(DENSE_FEATURES[name], SIZE, middle if name == "resclip" else None)
    answers = attend(q, k, v)
    for image in range(2):
        for head in range(4):
            of_head = (x[image, head] for x in (q, k, v, middle.weights))
            assert_close(answers[image, head], plain_weights(name, *of_head) @ v[image, head])


def test_key_smoothing_averages_scores_by_the_cosines_of_keys():
    k, v, cells, text = (torch.randn(1, *x) for x in ((2, TOKENS, 5), (2, TOKENS, 5), (6, 8), (3, 8)))
    attend = DenseAttention(DENSE_FEATURES["value-smoothed"], SIZE)
    attend(k, k, v)
    scores = attend.refine(cells)[0] @ text[0].T
    keys = k[0].transpose(0, 1).flatten(1)[1:]  # of all heads, of the cells alone
    for i in range(6):
        weights = torch.stack([cosine_similarity(keys[i], keys[j], dim=0) for j in range(6)])
        assert_close(scores[i], (weights[:, None] * (normalize(cells[0], dim=1) @ text[0].T)).mean(dim=0))


def single_cells(encoder: str, dense: str) -> nn.Module:
    if encoder == "ConvNeXt":
        return visual_of(clip_of(encoder), encoder, dense=dense).eval()
    backbone = TimmBackbone(create_trunk("test_resnet"), norm="BN")
    return ProjectedBackbone(backbone, embed_dim=32, embedding="linear", dense=dense).eval()


@pytest.mark.parametrize("encoder", ["ConvNeXt", "linear"])
def test_an_encoder_without_keys_averages_scores_by_the_cosines_of_its_cells(encoder):
    encoders, image = [single_cells(encoder, dense) for dense in OF_SINGLE_CELLS], torch.randn(2, 3, 64, 96)
    for other in encoders[1:]:
        other.load_state_dict(encoders[0].state_dict())
    with torch.no_grad():
        plain, value, smoothed = (other(image) for other in encoders)
    assert_close(value, plain)
    assert_close(smoothed.pop("global_embedding"), plain.pop("global_embedding"))
    cells, found = (x["dense_embedding"].flatten(2).double() for x in (plain, smoothed))
    text = torch.randn(cells.shape[1], 3, dtype=torch.double)
    for own, other in zip(cells, found, strict=True):
        weights = torch.stack([cosine_similarity(own, cell[:, None], dim=0) for cell in own.T])
        expected = weights @ (normalize(own, dim=0).T @ text) / own.shape[1]
        assert_close(other.T @ text, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("depth, blocks", [(12, range(5, 9)), (24, range(10, 18)), (1, range(1))])
def test_middle_attention_is_the_mean_of_the_middle_blocks(depth, blocks):
    queries, keys = torch.randn(2, depth, 1, 2, 4, 5)
    attend = nn.functional.scaled_dot_product_attention
    with MiddleAttention(depth) as middle:
        answers = [attend(q, k, k) for q, k in zip(queries, keys, strict=True)]
    assert_close(answers[-1], attend(queries[-1], keys[-1], keys[-1]))
    weights = [(queries[i] @ keys[i].transpose(-2, -1) / 5**0.5).softmax(dim=-1) for i in blocks]
    assert_close(middle.weights, torch.stack(weights).mean(dim=0))


def pool_of(dense: str) -> DenseAttentionPool:
    return DenseAttentionPool(4, 64, 8, 24, "interpolate", dense)


@pytest.mark.parametrize("dense", OF_A_POOL)
def test_where_all_cells_of_a_pool_are_alike_each_has_the_global_embedding(dense):
    pool = pool_of(dense)
    nn.init.zeros_(pool.positional_embedding)
    if dense == "sclip":  # each of its two softmaxes gives the value
        nn.init.zeros_(pool.c_proj.bias)
    whole, cells = pool(torch.randn(2, 64, 1, 1).expand(-1, -1, 3, 5))
    expected = {"sclip": 2 * whole, "value-smoothed": normalize(whole, dim=1)}.get(dense, whole)
    assert_close(cells, expected[:, :, None, None].expand_as(cells), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dense", OF_A_POOL)
def test_the_global_embedding_of_a_pool_stays(dense):
    pool, plain, x = pool_of(dense), pool_of("attention"), torch.randn(2, 64, 3, 5)
    pool.load_state_dict(plain.state_dict())
    (whole, cells), (expected, attention) = pool(x), plain(x)
    assert_close(whole, expected)
    assert dense == "attention" or not torch.allclose(cells, attention, atol=1e-4)


@pytest.mark.parametrize("dense", OF_A_POOL)
def test_every_weight_of_a_pool_has_a_gradient(dense):
    """Distributed training waits for the gradients of all weights, also where the mean is not used."""
    pool = pool_of(dense)
    pool(torch.randn(2, 64, 3, 5))[1].sum().backward()
    assert [name for name, weight in pool.named_parameters() if weight.grad is None] == []


@pytest.fixture(scope="module")
def vits():
    torch.manual_seed(0)
    others = {"dense": "value", "out_features": ()}
    clip = CLIPViT(**TINY_VIT, ls_init_value=0.5, **others).eval()
    return {"CLIP": clip, **{name: visual_of(clip_of(name), name, **others) for name in VITS[1:]}}


def with_feature(visual, dense: str):
    """The encoder with another dense feature; only its construction takes long."""
    for module in (visual, getattr(visual, "attnpool", visual)):
        module.dense, module.feature = dense, DENSE_FEATURES[dense]
    return visual


@pytest.mark.parametrize("family", VITS)
def test_dense_features_of_a_vit_differ_and_leave_the_global_embedding(vits, family):
    image, found = torch.randn(1, 3, 64, 96), {}
    with torch.no_grad():
        for dense in DENSE_FEATURES:
            features = with_feature(vits[family], dense)(image)
            found[dense] = normalize(features["dense_embedding"], dim=1)
            if dense == "attention":
                whole = features["global_embedding"]
            assert_close(features["global_embedding"], whole)
    assert {x.shape[2:] for x in found.values()} == {(4, 6)}
    for i, a in enumerate(found):
        for b in [*found][i + 1 :]:
            assert not torch.equal(found[a], found[b]), (a, b)


@pytest.mark.parametrize("family", VITS)
def test_a_vit_attends_in_the_last_block_alone(vits, family):
    """CLIP's own attention in place of the feature's has CLIP's own tokens."""
    image, visual = torch.randn(1, 3, 64, 96), with_feature(vits[family], "attention")
    with torch.no_grad():
        expected = visual(image)["dense_embedding"]
        visual.dense = "another"
        assert_close(visual(image)["dense_embedding"], expected)


@pytest.mark.parametrize("dense", CONVEX)
def test_where_all_tokens_of_a_vit_are_alike_all_cells_are_too(vits, dense):
    """With the whole block, each has the global embedding: any mean of equal values is the value."""
    visual = with_feature(deepcopy(vits["CLIP"]), dense)
    for parameter in (visual.conv1.weight, visual.class_embedding):
        nn.init.zeros_(parameter)
    visual.positional_embedding.data[1:] = visual.positional_embedding.data[0]
    with torch.no_grad():
        features = visual(torch.randn(1, 3, 64, 64))
    cells, whole = features["dense_embedding"], features["global_embedding"][:, :, None, None]
    expected = whole if DENSE_FEATURES[dense].whole_block else cells[:, :, :1, :1]
    assert_close(cells, expected.expand_as(cells), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["EVA02", "Sigmoid"])
def test_values_of_timms_vits_are_the_last_block_where_a_token_sees_itself(vits, family):
    visual, seen = deepcopy(with_feature(vits[family], "value")), []
    block = visual.trunk.blocks[-1]
    block.register_forward_pre_hook(lambda block, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        dense = visual(torch.randn(1, 3, 64, 96))["dense_embedding"]
        args, kwargs = seen[0]
        alone = torch.eye(args[0].shape[1], dtype=torch.bool)
        expected = visual.trunk.norm(block(*args, **{**kwargs, "attn_mask": alone}))
        assert_close(dense, visual._embed_cells(expected, (4, 6)))


@pytest.mark.parametrize(
    ("name", "has"),
    [("RN50", OF_A_POOL), ("convnext_base", OF_SINGLE_CELLS)]
    + [(name, tuple(DENSE_FEATURES)) for name in ("ViT-B-16", "EVA02-B-16", "ViT-B-16-SigLIP2")],
)
def test_released_architectures_have_their_features_and_refuse_the_others_in_one_line(name, has):
    architecture = get_clip_architecture(name)
    kind = encoder_class(architecture)
    arguments = {**kind.arguments_of(architecture), **kind.local_cells, "norm": "BN"}
    for dense in sorted(DENSE_FEATURES.keys() - has)[:2]:
        with torch.device("meta"), pytest.raises(ValueError, match=r"^dense .* Choose from [^\n]+$"):
            kind(**{**arguments, "dense": dense})
    visual, found = kind(**{**arguments, "dense": has[-1]}).eval(), {}
    whole: list[torch.Tensor] = []
    for dense in has:
        with torch.no_grad():
            features = with_feature(visual, dense)(torch.ones(1, 3, 64, 64).cumsum(dim=2) / 64)
        found[dense] = features["dense_embedding"]
        assert found[dense].isfinite().all()
        whole.append(features["global_embedding"])
        assert_close(whole[-1], whole[0])
    equal = has == OF_SINGLE_CELLS  # "attention" and "value"
    assert len({cells.sum().item() for cells in found.values()}) == len(has) - equal


@pytest.mark.parametrize("dense", ["clearclip", "resclip"])
def test_what_an_attention_pool_does_not_have_is_refused(dense):
    with pytest.raises(ValueError, match=f"is '{dense}', which an attention pool does not have. Choose from"):
        pool_of(dense)


def test_what_other_encoders_do_not_have_is_refused():
    with pytest.raises(
        ValueError, match="is 'key-key', which timm's ConvNeXt does not have. Choose from 'atten"
    ):
        visual_of(clip_of("ConvNeXt"), "ConvNeXt", dense="key-key")
    backbone = TimmBackbone(create_trunk("test_resnet"), norm="BN")
    with pytest.raises(ValueError, match="is 'key-key', which a linear embedding does not have"):
        ProjectedBackbone(backbone, embed_dim=32, embedding="linear", dense="key-key")
    with pytest.raises(ValueError, match="needs the global attention of all blocks, and window_size is 2"):
        CLIPViT(**TINY_VIT, dense="resclip", window_size=2)
