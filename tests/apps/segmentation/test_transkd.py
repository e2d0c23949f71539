"""Distillation between backbones: losses by hand, what the modules promise, and any student with any teacher."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apps.segmentation.distill_config import DistillConfig
from apps.segmentation.models.head import PixelHead, PixelOutput
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.segmenter import Segmenter
from apps.segmentation.pyramid import PyramidReader, PyramidSizes
from apps.segmentation.transkd import Distiller, Teacher, build_distiller, open_teacher
from apps.segmentation.transkd_losses import channel_loss, pyramid_loss
from apps.segmentation.transkd_modules import CrossSelectiveFusion, EmbeddingAssistant, GlobalLocalMixer
from backbones.vision.create import create_backbone
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, ShapeError
from tests.apps.segmentation.runs import run, weights
from tests.backbones.vision.toy import CHANNELS, NAME

STUDENT = PyramidSizes(channels=(8, 16, 12, 24), strides=(4, 8, 16, 32), embeddings=(8, 6, 12, 24))
TEACHER = PyramidSizes(channels=(10, 12, 14, 16), strides=(4, 8, 16, 32), embeddings=(9, 7, 5, 3))
WITHOUT_FIRST = PyramidSizes(*(values[1:] for values in TEACHER))
KINDS = ("base", "gl", "ea")


def maps(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pyramid(sizes, batch=2, height=64, width=96, seed=0):
    """Levels and embeddings of images whose sides need not be multiples of the strides."""
    places = [(-(-height // stride), -(-width // stride)) for stride in sizes.strides]
    levels = [maps(batch, c, *place, seed=seed + i) for i, (c, place) in enumerate(zip(sizes[0], places, strict=True))]
    embedded = zip(sizes.embeddings, places, strict=True)
    return levels, [maps(batch, c, *place, seed=seed + 9 + i) for i, (c, place) in enumerate(embedded)]


def distiller(kind, student=STUDENT, teacher=TEACHER, **options):
    torch.manual_seed(0)
    return Distiller(DistillConfig(kind=kind, teacher="run", width=16, **options), student, teacher)


def cells(x, side):
    """Means of side x side equal cells."""
    return F.avg_pool2d(x, (x.shape[2] // side, x.shape[3] // side))


def test_levels_are_compared_at_four_resolutions():
    ours, theirs = maps(2, 3, 8, 12), maps(2, 3, 8, 12, seed=1)
    terms = [(ours - theirs).square().mean()]
    terms += [(cells(ours, side) - cells(theirs, side)).square().mean() for side in (4, 2, 1)]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4 + terms[3] / 8) / 1.875
    torch.testing.assert_close(pyramid_loss(ours, theirs), expected)
    assert pyramid_loss(theirs, theirs) == 0


def test_a_level_of_two_rows_is_pooled_to_one_cell_alone():
    ours, theirs = maps(1, 3, 2, 6), maps(1, 3, 2, 6, seed=1)
    pooled = (cells(ours, 1) - cells(theirs, 1)).square().mean()
    torch.testing.assert_close(pyramid_loss(ours, theirs), ((ours - theirs).square().mean() + pooled / 2) / 1.5)


def test_channels_are_compared_as_distributions_over_positions():
    ours, theirs = maps(2, 3, 2, 2), maps(2, 3, 2, 2, seed=1)
    total = 0.0
    for sample in range(2):
        for channel in range(3):
            p = (theirs[sample, channel].flatten() / 4).softmax(0)
            q = (ours[sample, channel].flatten() / 4).softmax(0)
            total += sum(float(a * math.log(a / b)) for a, b in zip(p, q, strict=True))
    torch.testing.assert_close(channel_loss(ours, theirs, temperature=4.0), torch.tensor(total / 6 * 16))
    offsets = maps(2, 3, 1, 1, seed=2)
    torch.testing.assert_close(channel_loss(theirs + offsets, theirs), torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["channel", "spatial", "channel_mean", "none"])
def test_squares_are_divided_by_what_is_compared(norm):
    ours, theirs = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1)
    forms = {
        "channel": (lambda x: x.flatten(2).softmax(2), 6),
        "spatial": (lambda x: x.softmax(1), 40),
        "channel_mean": (lambda x: x.mean((2, 3)), 6),
        "none": (lambda x: x, 40),
    }
    form, units = forms[norm]
    expected = (form(ours) - form(theirs)).square().sum() / units
    torch.testing.assert_close(channel_loss(ours, theirs, norm=norm, divergence="mse"), expected)


@pytest.mark.parametrize("loss", [pyramid_loss, channel_loss])
def test_losses_are_float32_and_give_the_teacher_no_gradient(loss):
    ours = maps(1, 2, 8, 8).bfloat16().requires_grad_()
    theirs = maps(1, 2, 8, 8, seed=1).bfloat16().requires_grad_()
    found = loss(ours, theirs)
    assert found.dtype == torch.float32
    found.backward()
    assert theirs.grad is None and ours.grad.abs().sum() > 0


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ShapeError, match=r"got \[1, 2, 3, 3\] of the student and \[1, 2, 4, 4\] of the teacher"):
        pyramid_loss(maps(1, 2, 3, 3), maps(1, 2, 4, 4))
    with pytest.raises(ConfigError, match="norm=none gives no distributions"):
        channel_loss(maps(1, 2, 3, 3), maps(1, 2, 3, 3), norm="none")


def test_fused_levels_have_the_teachers_widths_at_any_size():
    fusion = CrossSelectiveFusion(STUDENT.channels, TEACHER.channels, 16)
    levels, _ = pyramid(STUDENT, height=65, width=97)
    fused = fusion(levels)
    assert [x.shape[1] for x in fused] == list(TEACHER.channels)
    assert [x.shape[2:] for x in fused] == [x.shape[2:] for x in levels]


def test_a_level_sees_coarser_ones_and_no_finer_ones():
    fusion = CrossSelectiveFusion(STUDENT.channels, TEACHER.channels, 16).eval()
    levels, _ = pyramid(STUDENT)
    before = fusion(levels)
    levels[2] = levels[2] + 1
    changed = [not torch.equal(a, b) for a, b in zip(before, fusion(levels), strict=True)]
    assert changed == [True, True, True, False]


@pytest.mark.parametrize("separate", [True, False])
def test_a_single_image_can_be_trained_on(separate):
    torch.manual_seed(0)
    fusion = CrossSelectiveFusion(STUDENT.channels, TEACHER.channels, 16, separate_single=separate).train()
    levels, _ = pyramid(STUDENT, batch=1)
    assert all(x.isfinite().all() for x in fusion(levels))
    # in evaluation, an image among others is the image by itself unless it has a layer of its own
    fusion.eval()
    alone, among = fusion(levels)[0], fusion([x.repeat(2, 1, 1, 1) for x in levels])[0]
    assert torch.allclose(alone, among[:1], atol=1e-5) is not separate


def test_the_global_branch_knows_no_order_and_the_local_one_only_neighbours():
    torch.manual_seed(0)
    mixer = GlobalLocalMixer(16, 4)
    x = maps(1, 16, 3, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    shuffled = x.flatten(2)[..., order].unflatten(2, (3, 4))
    with torch.no_grad():
        mixer.convolution_weight.zero_()
        torch.testing.assert_close(mixer(shuffled).flatten(2), mixer(x).flatten(2)[..., order])
        mixer.attention_weight.zero_()
        mixer.convolution_weight.fill_(1)
        moved = x.clone()
        moved[..., 1, 1] += 1  # the sixth position in raster order
        touched = (mixer(moved) != mixer(x)).flatten(2).any(1)[0].nonzero().flatten().tolist()
        assert touched == [4, 5, 6]


def test_the_mixer_adds_to_its_input_if_told_to():
    torch.manual_seed(0)
    mixer, x = GlobalLocalMixer(16, 4), maps(2, 16, 3, 4)
    mixed = mixer(x)
    mixer.residual = True
    torch.testing.assert_close(mixer(x), x + mixed)


def test_heads_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ConfigError, match=r"heads=8 must divide the 12 channels.*Try heads=6"):
        GlobalLocalMixer(12, 8)


def test_the_assistant_embeds_images_and_levels_at_the_sizes_of_the_embeddings():
    assistant = EmbeddingAssistant(3, STUDENT.channels, STUDENT.strides, TEACHER.embeddings)
    kernels = [layer.conv.kernel_size[0] for layer in assistant.embeddings]
    assert kernels == [7, 3, 3, 3]
    torch.testing.assert_close(assistant.weights.data, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]))
    levels, _ = pyramid(STUDENT, height=65, width=97)
    _, aligned = pyramid(TEACHER, height=65, width=97)
    found = assistant(aligned, levels, maps(2, 3, 65, 97))
    assert [x.shape for x in found] == [x.shape for x in aligned]
    # each is the student's own by the first factors and layer-normalised patches by the others
    layer = assistant.embeddings[1]
    patches = F.conv2d(levels[0], layer.conv.weight, layer.conv.bias, stride=2, padding=1)
    patches = F.layer_norm(patches.permute(0, 2, 3, 1), (7,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found[1], 0.2 * aligned[1] + 0.6 * patches)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", ["hcl", "channel"])
def test_every_part_learns_and_the_teacher_does_not(kind, features):
    module = distiller(kind, features=features)
    levels, embeddings = (list(map(torch.Tensor.requires_grad_, x)) for x in pyramid(STUDENT))
    targets, embedded = (list(map(torch.Tensor.requires_grad_, x)) for x in pyramid(TEACHER, seed=50))
    losses = module(levels, embeddings, targets, embedded, maps(2, 3, 64, 96))
    torch.testing.assert_close(losses["loss"], losses["features"] + losses["embeddings"])
    losses["loss"].backward()
    assert all(x.grad is not None for x in [*module.parameters(), *levels, *embeddings])
    assert all(x.grad is None for x in [*targets, *embedded])


def test_factors_weigh_the_terms():
    parts = pyramid(STUDENT) + pyramid(TEACHER, seed=50)
    images = maps(2, 3, 64, 96)
    once = distiller("base")(*parts, images)
    doubled = distiller("base", feature_weight=2.0, embedding_weights=(0.2, 0.2, 1.0, 2.0))(*parts, images)
    for name in once:
        torch.testing.assert_close(doubled[name], 2 * once[name])
    last = distiller("base", embedding_weights=(0.0, 0.0, 0.0, 1.0))
    expected = F.mse_loss(last.align(parts[1], parts[0], images)[3], parts[3][3])
    torch.testing.assert_close(last(*parts, images)["embeddings"], expected)


def test_maps_of_other_strides_are_compared_at_the_teachers_size():
    fine = TEACHER._replace(strides=(2, 4, 8, 16))
    losses = distiller("base", teacher=fine)(*pyramid(STUDENT), *pyramid(fine), maps(2, 3, 64, 96))
    assert losses["loss"].isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_gives_losses_in_float32(kind):
    module = distiller(kind)
    parts = (*pyramid(STUDENT), *pyramid(TEACHER, seed=50), maps(2, 3, 64, 96))
    exact = module(*parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = module(*parts)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.03, atol=0.01)


def test_fewer_levels_take_the_last_factors():
    student, teacher = PyramidSizes(*(values[1:] for values in STUDENT)), WITHOUT_FIRST
    module = distiller("ea", student=student, teacher=teacher)
    assert module.embedding_weights == (0.1, 0.5, 1.0)
    assert module(*pyramid(student), *pyramid(teacher), maps(2, 3, 64, 96))["loss"].isfinite()


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (
            r"4 levels \(strides \[4, 8, 16, 32\]\), the teacher's 3",
            {"teacher": PyramidSizes(*(x[1:] for x in TEACHER))},
        ),
        ("has 2 factors, the backbones have 4 levels", {"embedding_weights": (1.0, 1.0)}),
        (r"kind=ea needs levels whose strides are multiples", {"student": STUDENT._replace(strides=(4, 6, 8, 16))}),
    ],
)
def test_backbones_that_do_not_go_together_are_named(message, options):
    with pytest.raises(ConfigError, match=message):
        distiller("ea", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "base"}, "kind=base needs a teacher"),
        ({"teacher": "run"}, "teacher=run is not used with kind=none"),
        ({"feature_weight": -1.0}, "feature_weight=-1 must be 0 or more"),
        ({"embedding_weights": (1.0, -1.0)}, "must be one or more numbers from 0 on"),
        ({"temperature": 0.0}, "temperature=0 must be above 0"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"heads": 0}, "heads=0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    problems = list(DistillConfig(**options).problems())
    assert len(problems) == 1 and message in problems[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:pvt_v2_b0", {}),
        ("timm:resnet18", {"out_indices": (4, 1, 2)}),
        ("timm:vit_tiny_patch16_224", {"out_indices": (0, 1)}),
        ("maxvit_pico", {"out_indices": (0, 1)}),
        ("swin_tiny", {"out_indices": (0, 1), "output_norms": True}),
        ("dinat_mini", {"out_indices": (0, 1)}),
        ("vig_tiny", {}),
    ],
)
def test_embeddings_of_any_backbone_are_maps_beside_its_levels(name, options):
    torch.manual_seed(0)
    backbone = create_backbone(name, **options).train()
    state = torch.get_rng_state()
    reader = PyramidReader(backbone)
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in backbone.modules())
    images = maps(2, 3, 65, 97)
    with reader.reading() as found:
        levels = backbone(images)
    sizes = reader.sizes
    assert sizes.strides == tuple(sorted(backbone.strides))
    assert {id(level) for level in found.levels} == {id(level) for level in levels}
    assert tuple(x.shape[1] for x in found.levels) == sizes.channels
    assert tuple(x.shape[1] for x in found.embeddings) == sizes.embeddings
    for embedding, level in zip(found.embeddings, found.levels, strict=True):
        assert embedding.shape[2] in (level.shape[2], 2 * level.shape[2] - 1)  # or what comes into its stage
    backbone(images)  # outside of the block nothing is read
    assert found.levels[0] is levels[backbone.strides.index(min(backbone.strides))]


def test_embeddings_are_what_patches_were_embedded_to():
    torch.manual_seed(0)
    backbone = create_backbone("timm:pvt_v2_b0").eval()
    images = maps(1, 3, 64, 96)
    with torch.no_grad(), PyramidReader(backbone).reading() as found:
        levels = backbone(images)
        first = backbone.trunk.patch_embed(images).permute(0, 3, 1, 2)
        second = backbone.trunk.stages[1].downsample(levels[0])
    torch.testing.assert_close(found.embeddings[0], first)
    torch.testing.assert_close(found.embeddings[1], second.permute(0, 3, 1, 2))


def test_a_backbone_without_stages_is_named():
    with pytest.raises(ConfigError, match="does not tell which of its parts makes level 0"):
        PyramidReader(create_backbone("timm:hrnet_w18_small"))


def test_a_graph_that_was_compiled_before_is_named():
    backbone, images = create_backbone(NAME), maps(1, 3, 32, 48)
    reader = PyramidReader(backbone)
    backbone.compile(backend="eager")
    backbone(images)
    with pytest.raises(ConfigError, match=r"Leave trainer\.compile at false"), reader.reading():
        backbone(images)


def test_an_error_while_reading_is_the_one_that_is_seen():
    backbone = create_backbone(NAME)
    with pytest.raises(ShapeError, match="at least 32 pixels"), PyramidReader(backbone).reading():
        backbone(maps(1, 3, 8, 8))


class LastLevel(PixelHead):
    """Scores from the coarsest level."""

    def __init__(self, info):
        super().__init__(info)
        self.scores = nn.Conv2d(info.channels[-1], info.classes, 1)

    def forward(self, levels, size):
        return PixelOutput(self.scores(levels[-1]))

    def loss(self, output, targets):
        raise NotImplementedError


def segmenter(name="timm:pvt_v2_b0", seed=0):
    torch.manual_seed(seed)
    backbone = create_backbone(name)
    return Segmenter(backbone, LastLevel(HeadInfo(channels=backbone.channels, strides=backbone.strides, classes=2)))


def data_info(**values):
    return SegmentationInfo(classes=("a", "b"), palette=((0, 0, 0), (9, 9, 9)), **values)


def test_a_teacher_sees_its_own_scale_of_pixels_and_is_only_looked_at():
    theirs, ours = data_info(), data_info(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = segmenter()
    teacher = Teacher(model, theirs, ours)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (theirs.mean, theirs.std))
    torch.testing.assert_close(teacher.rescaled(pixels), (pixels - mean) / std)
    found = teacher(pixels.requires_grad_())
    with torch.no_grad():
        expected = model.backbone((pixels - mean) / std)
    for level, wanted in zip(found.levels, expected, strict=True):
        torch.testing.assert_close(level, wanted)
    assert not any(x.requires_grad for x in [*found.levels, *found.embeddings, *teacher.backbone.parameters()])
    assert not isinstance(teacher, nn.Module)


def test_a_teacher_of_other_channels_is_named():
    with pytest.raises(ConfigError, match="teacher sees images of 3 channels, the data has 1"):
        Teacher(segmenter(), data_info(), data_info(channels=1, mean=(0.5,), std=(0.2,)))


def test_a_run_can_be_a_teacher(tmp_path):
    assert run(tmp_path, **{"trainer.max_epochs": 1}) == 0
    folder = next(tmp_path.rglob("checkpoints")).parent
    teacher = open_teacher(str(folder), data_info())
    assert teacher.sizes.channels == teacher.sizes.embeddings == CHANNELS
    trained = {name.removeprefix("model.backbone."): value for name, value in weights(folder, "best").items()}
    for name, value in teacher.backbone.state_dict().items():
        torch.testing.assert_close(value, trained[name])
    assert [x.shape[2:] for x in teacher(maps(1, 3, 32, 48)).embeddings] == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_nearer_to_its_teacher(kind):
    student = segmenter("timm:convnext_atto", seed=1)
    teacher = Teacher(segmenter(), data_info(), data_info())
    module = build_distiller(DistillConfig(kind=kind, teacher="run", width=16), student.backbone, teacher)
    reader = PyramidReader(student.backbone)
    images = maps(2, 3, 64, 64)
    optimiser = torch.optim.AdamW([*student.parameters(), *module.parameters()], lr=3e-3)
    goal, course = teacher(images), []
    for _ in range(8):
        with reader.reading() as found:
            student(images)
        losses = module(found.levels, found.embeddings, goal.levels, goal.embeddings, images)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        course.append(float(losses["loss"]))
    assert course[-1] < 0.7 * course[0]
