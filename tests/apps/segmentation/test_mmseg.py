"""mmsegmentation itself: its heads, our backbones in it, its datasets, and both metrics side by side."""

from __future__ import annotations

import copy
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from apps.segmentation.losses import cross_entropy, resize
from apps.segmentation.metrics import SegmentationMetrics
from apps.segmentation.mmseg_bridge import build, open_mmseg
from apps.segmentation.mmseg_data import MMSegImages, OfficialScores, Reading, info_of
from apps.segmentation.models.config import HEADS
from apps.segmentation.models.head import Targets
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mmseg_config import FACTS
from apps.segmentation.models.mmseg_head import MMSegHead
from apps.segmentation.models.segmenter import Segmenter
from apps.segmentation.prediction import Prediction
from apps.segmentation.windows import slide
from backbones.vision.create import create_backbone
from checkpoints.keymap import load_official
from checkpoints.official.segmentation import KEYMAPS
from datamodules.segmentation.config import CamvidConfig
from datamodules.segmentation.dataset import collate_samples
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, DataError, ShapeError
from tests.apps.segmentation.runs import results, run
from tests.backbones.vision.toy import CHANNELS, NAME
from tests.parity.adapters.segmentation_pixel import head_of, levels_of
from tests.parity.case import read_case

pytestmark = pytest.mark.skipif(
    find_spec("mmseg") is None, reason="needs mmsegmentation: pip install 'graftwork[mmseg]'"
)

SIZE = (72, 104)
INFO = HeadInfo(channels=(16, 24, 32, 48), strides=(4, 8, 16, 32), classes=5)
NARROW = {
    "LightHamHead": {"ham_channels": 16},
    "DAHead": {"pam_channels": 8},
    "ISAHead": {"isa_channels": 8},
    "ANNHead": {"project_channels": 8},
    "EMAHead": {"ema_channels": 16, "num_bases": 8},
}


def head(kind: str, info: HeadInfo = INFO, in_levels: tuple[int, ...] = (), **options: Any) -> MMSegHead:
    torch.manual_seed(0)
    options = {"channels": 16, **NARROW.get(kind, {}), **options}
    found: MMSegHead = HEADS.get(f"mmseg:{kind}")(in_levels=in_levels, options=options).build(info)
    return found


def pyramid(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in INFO.strides]
    levels = zip(INFO.channels, sizes, strict=True)
    return [torch.randn(batch, channels, *size, generator=generator) for channels, size in levels]


def labels(batch: int = 2) -> Tensor:
    mask = torch.randint(0, 5, (batch, *SIZE), generator=torch.Generator().manual_seed(2))
    mask[:, :10] = 255
    return mask


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FACTS)
def test_every_head_trains_and_predicts(kind: str) -> None:
    found = head(kind).train()
    levels = [level.requires_grad_() for level in pyramid()]
    parts = found.loss(found(levels, SIZE), Targets(labels(), []))
    parts["loss"].backward()
    total = sum(value for name, value in parts.items() if name != "loss")
    torch.testing.assert_close(parts["loss"], total)
    read = [level.grad is not None and bool(level.grad.abs().max() > 0) for level in levels]
    assert read[found.chosen[-1]] and all(p.grad is None or p.grad.isfinite().all() for p in found.parameters())
    nothing = found.loss(found(levels, SIZE), Targets(torch.full_like(labels(), 255), []))["loss"]
    nothing.backward()
    assert float(nothing) == 0 and all(p.grad is None or p.grad.isfinite().all() for p in found.parameters())
    with torch.no_grad():
        scores = found.eval().class_scores(found(pyramid(1), SIZE), SIZE)
    assert scores.shape == (1, 5, *SIZE)
    torch.testing.assert_close(found.probabilities(scores).sum(1), torch.ones(1, *SIZE))
    assert set(copy.deepcopy(found).state_dict()) == set(found.state_dict())


@pytest.mark.parametrize("name", ["uperhead", "segformerhead", "fcnhead_aux"])
def test_weights_of_mmsegmentation_give_the_same_in_both_heads(name: str, shared: Path) -> None:
    case = read_case(shared / "goldens" / "segmentation" / f"{name}.json")
    assert case is not None
    official, levels = dict(case.config), levels_of(case)
    channels, target = [level.shape[1] for level in levels], case.inputs["label"].long()
    wanted = official.pop("in_index", -1)
    of_backbone = ("type", "in_channels", "num_classes", "input_transform")
    config = HEADS.get(f"mmseg:{official['type']}")(
        in_levels=(wanted,) if isinstance(wanted, int) else tuple(wanted),
        options={key: value for key, value in official.items() if key not in of_backbone},
    )
    info = HeadInfo(channels=tuple(channels), strides=INFO.strides[: len(channels)], classes=official["num_classes"])
    bridged = config.build(info)
    bridged.decode.load_state_dict(case.weights, strict=False)
    output = bridged.eval()(levels, (64, 64))
    torch.testing.assert_close(output.logits, case.expected["logits"], rtol=1e-4, atol=1e-5)
    found = bridged.loss(output, Targets(target, []))
    torch.testing.assert_close(found["ce"], case.expected["loss.loss_ce"], rtol=1e-4, atol=1e-5)
    ours = head_of(case.config, case.weights, channels)(levels, (64, 64))
    torch.testing.assert_close(output.logits, ours.logits, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_image_is_refused_where_batch_norm_cannot_train() -> None:
    with pytest.raises(ShapeError, match=r"mmseg:PSPHead pools to one position.*batches of two or more"):
        head("PSPHead").train()(pyramid(1), SIZE)
    grouped = head("PSPHead", norm_cfg={"type": "GN", "num_groups": 4}).train()
    assert grouped(pyramid(1), SIZE).logits.isfinite().all()


def test_several_levels_are_joined_for_a_head_of_one() -> None:
    found = head("FCNHead", in_levels=(1, -1))
    assert found.chosen == (1, 3) and found.decode.in_channels == 24 + 48
    assert found(pyramid(), SIZE).logits.shape == (2, 5, 9, 13)
    with pytest.raises(ConfigError, match=r"in_levels=\[4\].*the 4 that the backbone gives"):
        head("FCNHead", in_levels=(4,))
    with pytest.raises(ShapeError, match=r"mmseg:FCNHead: expected channels \[24, 48\], got \[24\]"):
        found(pyramid()[:2], SIZE)


def test_class_weights_go_together_with_ignored_pixels() -> None:
    weights = (1.0, 2.0, 1.0, 0.5, 3.0)
    weighted = HeadInfo(channels=INFO.channels, strides=INFO.strides, classes=5, weights=weights)
    found = head("SegformerHead", weighted)
    output = found(pyramid(), SIZE)
    expected = cross_entropy(resize(output.logits, SIZE), labels(), weights=torch.tensor(weights))
    torch.testing.assert_close(found.loss(output, Targets(labels(), []))["loss"], expected)
    with pytest.raises(ConfigError, match=r"loss_decode and model\.class_weights both"):
        head("SegformerHead", weighted, loss_decode={"type": "DiceLoss"})
    theirs = head("SegformerHead", loss_decode={"type": "CrossEntropyLoss", "class_weight": list(weights)})
    with pytest.raises(ConfigError, match="cannot ignore pixels"):
        theirs.loss(output, Targets(labels(), []))
    everywhere = labels().clamp(max=4)
    ours = cross_entropy(resize(output.logits, SIZE), everywhere, weights=torch.tensor(weights))
    torch.testing.assert_close(theirs.loss(output, Targets(everywhere, []))["loss"], ours)


def test_our_cross_entropy_leaves_out_what_a_sampler_leaves_out() -> None:
    sampler = {"type": "OHEMPixelSampler", "thresh": 0.05, "min_kept": 500}
    found = head("FCNHead", loss_decode={"type": "GraftworkCrossEntropy", "label_smoothing": 0.1}, sampler=sampler)
    output = found(pyramid(), SIZE)
    every = head("FCNHead", loss_decode={"type": "GraftworkCrossEntropy", "label_smoothing": 0.1})
    hard, all_of_them = (one.loss(output, Targets(labels(), []))["loss"] for one in (found, every))
    assert float(hard) > float(all_of_them) > 0


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown option of mmseg:UPerHead 'pool_scale'; did you mean pool_scales"):
        head("UPerHead", pool_scale=(1, 2))
    with pytest.raises(ConfigError, match=r"options: mmsegmentation's PSPHead cannot be built: .*NoSuchLoss"):
        head("PSPHead", loss_decode={"type": "NoSuchLoss"})
    with pytest.raises(ConfigError, match="nothing would be trained"):
        head("PSPHead", loss_decode={"type": "CrossEntropyLoss", "loss_name": "ce"})


def test_building_a_head_says_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    head("UPerHead", HeadInfo(channels=INFO.channels, strides=INFO.strides, classes=2))
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_a_run_with_one_of_its_heads(tmp_path: Path) -> None:
    options = {"model.head.options.channels": 16, "model.head.channels": None}
    assert run(tmp_path, **{"model.head": "mmseg:UPerHead", "model.class_weights": "median", **options}) == 0
    assert results(tmp_path)["miou"]["value"] > 0


# -- our backbones in it ----------------------------------------------------------------------------------------------


def encoder_decoder(backbone: dict[str, Any], channels: tuple[int, ...], **changes: Any) -> Any:
    import apps.segmentation.mmseg_parts

    assert apps.segmentation.mmseg_parts
    decode = {
        "type": "UPerHead",
        "in_channels": list(channels),
        "in_index": list(range(len(channels))),
        "channels": 16,
        "num_classes": 5,
        "norm_cfg": {"type": "BN"},
    }
    whole = {"type": "EncoderDecoder", "backbone": backbone, "decode_head": decode, "test_cfg": {"mode": "whole"}}
    return build("MODELS", {**whole, **changes})


def test_our_backbones_in_its_segmentor() -> None:
    from apps.segmentation.models.mmseg_head import labelled

    window = {"mode": "slide", "crop_size": (48, 64), "stride": (32, 40)}
    model = encoder_decoder({"type": "GraftworkBackbone", "name": NAME, "drop_path": 0.1}, CHANNELS, test_cfg=window)
    assert model.backbone.out_channels == CHANNELS and model.backbone.strides == (4, 8, 16)
    assert model.backbone.backbone.output_norms is not None
    before = copy.deepcopy(model.backbone.state_dict())
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    images, samples = torch.randn(2, 3, *SIZE), labelled(labels())
    for sample in samples:
        sample.set_metainfo({"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE})
    losses = model.train().loss(images, samples)
    losses["decode.loss_ce"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    with torch.no_grad():
        found = model.eval().predict(images, samples)[0].seg_logits.data

        def scores(seen: Tensor) -> Tensor:
            return resize(model.decode_head(model.backbone(seen)), (seen.shape[-2], seen.shape[-1]))

        torch.testing.assert_close(found, slide(scores, images[:1], (48, 64), (32, 40))[0], rtol=1e-4, atol=1e-5)


def test_wrong_backbones_in_its_segmentor() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'dinat_tini'; did you mean dinat_tiny"):
        encoder_decoder({"type": "GraftworkBackbone", "name": "dinat_tini"}, CHANNELS)
    with pytest.raises(ConfigError, match=r"init_cfg=.*is not for GraftworkBackbone.*weights=FILE"):
        encoder_decoder({"type": "GraftworkBackbone", "name": NAME, "init_cfg": {"type": "Pretrained"}}, CHANNELS)


@pytest.mark.slow
def test_a_whole_checkpoint_of_its_swin_gives_its_logits() -> None:
    """mmsegmentation's own Swin and head, with all numbers drawn anew, in our Swin with its head and with ours."""
    swin = {"type": "SwinTransformer", "embed_dims": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    channels = (96, 192, 384, 768)
    official = encoder_decoder({**swin, "drop_path_rate": 0.0}, channels).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in official.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("running_var"):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    images = torch.randn(1, 3, 256, 320, generator=generator)
    info = HeadInfo(channels=channels, strides=INFO.strides, classes=5)
    upernet = HEADS.get("upernet")(channels=16, auxiliary_weight=0.0).build(info)
    with torch.no_grad():
        expected = official.decode_head(official.backbone(images))
        for name, one in (("mmseg", head("UPerHead", info)), ("upernet", upernet)):
            model = Segmenter(create_backbone("swin_tiny", output_norms=True), one)
            assert load_official(model, official.state_dict(), KEYMAPS[name]).fits
            torch.testing.assert_close(model.eval()(images).logits, expected, rtol=1e-4, atol=1e-4)


# -- datasets ---------------------------------------------------------------------------------------------------------

LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
PACK = [{"type": "PackSegInputs"}]
AUGMENT = [
    {"type": "RandomResize", "scale": (80, 60), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (48, 48), "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
]
NAMES = ("road", "sky", "car")


def written(folder: Path) -> dict[str, Any]:
    """A dataset of three images, as its configuration."""
    draw = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(3):
        Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"images/{number}.png")
        Image.fromarray(draw.integers(0, 3, (60, 80), dtype=np.uint8)).save(folder / f"masks/{number}.png")
    return {
        "type": "BaseSegDataset",
        "data_root": str(folder),
        "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
        "img_suffix": ".png",
        "metainfo": {"classes": NAMES, "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]},
    }


def test_samples_are_functions_of_seed_epoch_and_index(tmp_path: Path) -> None:
    config = {**written(tmp_path), "pipeline": [*LOAD, *AUGMENT, *PACK]}
    info = info_of(MMSegImages(config).dataset, crop=(48, 48))
    assert (info.classes, info.palette[2], info.crop) == (NAMES, (7, 8, 9), (48, 48))
    data = MMSegImages(config, Reading(info, size=(48, 48)), seed=5)
    assert len(data) == 3 and data.info is info
    np.random.seed(1)
    random.seed(1)
    first = data[(2, 1)]
    drawn = (np.random.random(), random.random())
    np.random.seed(1)
    random.seed(1)
    assert drawn == (np.random.random(), random.random())  # as if nobody had drawn in between
    again, later = data[(2, 1)], data[(3, 1)]
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["image"], later["image"])
    batch = collate_samples([first, later, data[0]], 3)
    assert batch["image"].shape == (3, 3, 48, 48) and batch["mask"].shape == (3, 48, 48)
    assert batch["name"] == ["1", "1", "0"] and set(batch["mask"].unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(IndexError, match="index 3 is not in the 3 images"):
        data[3]


def test_whole_images_are_those_of_the_files(tmp_path: Path) -> None:
    data = MMSegImages({**written(tmp_path), "pipeline": [*LOAD, *PACK], "test_mode": True})
    sample = data[2]
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "images/2.png"))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.info.mean, data.info.std))
    torch.testing.assert_close(sample["image"], (pixels - mean) / std, rtol=1e-5, atol=1e-5)
    assert sample["mask"].tolist() == np.array(Image.open(tmp_path / "masks/2.png")).tolist()


def test_wrong_datasets(tmp_path: Path) -> None:
    config = {**written(tmp_path), "pipeline": [*LOAD, *PACK]}
    with pytest.raises(DataError, match=r"BaseSegDataset: .*nowhere"):
        MMSegImages({**config, "data_root": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match=r"BaseSegDataset found no images.*img_suffix"):
        MMSegImages({**config, "img_suffix": ".jpg"})
    with pytest.raises(ConfigError, match=r"BaseSegDatasets cannot be built: .*BaseSegDatasets is not in"):
        MMSegImages({**config, "type": "BaseSegDatasets"})
    with pytest.raises(DataError, match="does not name its classes"):
        MMSegImages({**config, "metainfo": None})
    resized = [LOAD[0], {"type": "Resize", "scale": (40, 30)}, LOAD[1], *PACK]
    with pytest.raises(ShapeError, match=r"\[30, 40\] pixels has labels of \[60, 80\]"):
        MMSegImages({**config, "pipeline": resized})[0]


def test_transforms_are_found_by_their_plain_names() -> None:
    open_mmseg("a test")
    from mmengine.dataset import Compose
    from mmseg.registry import TRANSFORMS

    assert len(Compose([{"type": "mmseg.RandomCrop", "crop_size": (8, 8)}]).transforms) == 1
    assert build("TRANSFORMS", {"type": "RandomCrop", "crop_size": (8, 8)}).crop_size == (8, 8)
    assert TRANSFORMS.get("RandomCrop") is not None


# -- metric -----------------------------------------------------------------------------------------------------------

SCORES = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "fscore": "mFscore"}


def both_agree(info: SegmentationInfo, pairs: list[tuple[Tensor, Tensor]]) -> None:
    ours, official = SegmentationMetrics(info), OfficialScores(info, ("mIoU", "mFscore"))
    for found, truth in pairs:
        empty = torch.zeros(len(found))
        ours.update({"mask": truth}, Prediction(found, empty, empty))
        official.update(found, truth)
    expected, scores = official.compute(), ours.compute()
    assert official.images == sum(len(found) for found, _ in pairs)
    for name, theirs in SCORES.items():
        assert scores[name] == pytest.approx(expected[theirs], abs=0.0051), name  # it rounds to two decimals


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_random_predictions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = 7
    info = SegmentationInfo(classes=tuple("abcdefg"), palette=((0, 0, 0),) * classes)
    pairs = []
    for _ in range(3):
        truth = torch.randint(0, classes, (2, 21, 34), generator=generator)
        found = truth.where(torch.rand(truth.shape, generator=generator) < 0.6, truth.roll(1, -1))
        truth[:, :3] = 255
        pairs.append((found, truth))
    both_agree(info, pairs)


def test_scores_leave_out_a_class_that_never_occurs() -> None:
    info = SegmentationInfo(classes=("a", "b", "c", "d"), palette=((0, 0, 0),) * 4)
    truth = torch.tensor([[[0, 0, 1, 255]]])
    both_agree(info, [(torch.tensor([[[0, 1, 1, 3]]]), truth)])
    with pytest.raises(ConfigError, match="unknown score 'mIou'; did you mean mIoU"):
        OfficialScores(info, ("mIou",))


def test_camvid_through_both(shared: Path) -> None:
    """Three images of the validation split: the same samples from both readers, the same scores from both metrics."""
    root = shared / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("needs CamVid in ../shared/data/camvid")
    ours = CamvidConfig(root=str(root)).build(0)
    config = {
        "type": "BaseSegDataset",
        "data_root": str(root),
        "data_prefix": {"img_path": "val", "seg_map_path": "valannot"},
        "metainfo": {"classes": ours.info.classes, "palette": [list(colour) for colour in ours.info.palette]},
        "pipeline": [*LOAD, *PACK],
        "test_mode": True,
    }
    theirs, own = MMSegImages(config, Reading(ours.info, ignored=(11,))), ours.datasets()["val"]
    assert len(theirs) == len(own) == 101
    generator, pairs = torch.Generator().manual_seed(0), []
    for index in (0, 50, 100):
        expected, sample = own[index], theirs[index]
        assert sample["name"] == Path(expected["name"]).stem
        torch.testing.assert_close(sample["image"], expected["image"], rtol=1e-5, atol=1e-5)
        assert torch.equal(sample["mask"], expected["mask"]) and torch.equal(sample["size"], expected["size"])
        noise = torch.randint(0, 11, expected["mask"].shape, generator=generator)
        found = expected["mask"].where(torch.rand(noise.shape, generator=generator) < 0.7, noise)
        pairs.append((found.where(found != 255, noise)[None], expected["mask"][None]))
    both_agree(ours.info, pairs)
