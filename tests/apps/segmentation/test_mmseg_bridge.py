"""Names, options and errors of the bridge to mmsegmentation, which nobody needs to have; it answers without it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apps.core.cli.resolve import config_from_plain, resolve
from apps.core.cli.schema import to_plain
from apps.segmentation import mmseg_bridge
from apps.segmentation.config import SegmentationConfig
from apps.segmentation.mmseg_bridge import AbsentOperators
from apps.segmentation.mmseg_data import Reading, sample_of
from apps.segmentation.models.config import HEADS
from apps.segmentation.models.info import HeadInfo
from apps.segmentation.models.mmseg_config import FACTS, MMSegHeadConfig
from checkpoints.official.segmentation import KEYMAPS
from datamodules.segmentation.dataset import collate_samples
from datamodules.segmentation.info import SegmentationInfo
from graftwork.errors import ConfigError, DataError, MissingPackageError, ShapeError

ROOT = Path(__file__).resolve().parents[3]
INFO = SegmentationInfo(classes=("road", "sky", "car"), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def test_help_of_a_head_imports_neither_torch_nor_mmsegmentation() -> None:
    probe = """
import runpy, sys
sys.argv = ["apps.segmentation", "fit", "--model.head", "mmseg:UPerHead", "--help"]
try:
    runpy.run_module("apps.segmentation", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("CODE", end.code or 0, sorted({"torch", "mmseg", "mmengine", "mmcv"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "CODE 0 []", done.stderr
    assert "--model.head.options" in done.stdout and "A decode head of mmsegmentation" in done.stdout


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmseg_bridge, "find_spec", lambda name: None)
    info = HeadInfo(channels=(8, 16), strides=(4, 8), classes=3)
    with pytest.raises(MissingPackageError, match=r"mmseg:FCNHead needs .*'mmsegmentation'.*'graftwork\[mmseg\]'"):
        HEADS.get("mmseg:FCNHead")().build(info)


def test_packages_that_do_not_fit_are_told_from_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError("MMCV==2.2.0 is used but incompatible")

    def half() -> None:
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setattr(mmseg_bridge, "find_spec", lambda name: object())
    monkeypatch.setattr(mmseg_bridge, "_opened", refused)
    with pytest.raises(MissingPackageError, match=r"a head: .*refuses.*MMCV==2\.2\.0.*graftwork\[mmseg\]"):
        mmseg_bridge.open_mmseg("a head")

    def without_libraries() -> None:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(mmseg_bridge, "_opened", without_libraries)
    with pytest.raises(MissingPackageError, match=r"libGL\.so\.1.*opencv-python-headless"):
        mmseg_bridge.open_mmseg("a head")
    monkeypatch.setattr(mmseg_bridge, "_opened", half)
    with pytest.raises(MissingPackageError, match="needs the package 'cv2'"):
        mmseg_bridge.open_mmseg("a head")


def test_compiled_operators_can_be_looked_up_but_not_called() -> None:
    operators = AbsentOperators()
    assert operators.__spec__ is not None and operators.__spec__.loader is None
    with pytest.raises(MissingPackageError, match="psamask_forward is a compiled operator"):
        operators.psamask_forward(1, mask=2)
    assert not hasattr(operators, "__path__")


@pytest.mark.parametrize("kind", FACTS)
def test_every_name_has_a_configuration(kind: str) -> None:
    config = HEADS.get(f"mmseg:{kind}")(in_levels=(0, -1))
    assert HEADS.name_of(config) == f"mmseg:{kind}" and not list(config.problems())
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.arguments["channels"] > 0


def test_wrong_names_and_options() -> None:
    with pytest.raises(ConfigError, match=r"unknown head 'mmseg:UperHead'; did you mean mmseg:UPerHead"):
        HEADS.get("mmseg:UperHead")
    with pytest.raises(ConfigError, match="mmseg:Mask2FormerHead is a shell around mmdet; use mask2former"):
        HEADS.get("mmseg:Mask2FormerHead")
    with pytest.raises(ConfigError, match="unknown head 'upernetz'; did you mean upernet"):
        HEADS.get("upernetz")
    with pytest.raises(ConfigError, match=r"model\.head\.options\.num_classes=19 follows from the data"):
        settings({"model.head.options.num_classes": 19})
    with pytest.raises(ConfigError, match=r"model\.head\.options\.in_channels=\[8\] follows from the backbone"):
        settings({"model.head.options": {"in_channels": [8]}})
    with pytest.raises(ConfigError, match=r"model\.head\.in_levels=\[1, 1\] names a level twice"):
        settings({"model.head.in_levels": [1, 1]})


def settings(words: dict[str, Any]) -> SegmentationConfig:
    config: SegmentationConfig = resolve(SegmentationConfig, [], {"model.head": "mmseg:UPerHead", **words})
    return config


def test_options_are_kept_with_the_run() -> None:
    loss = [{"type": "CrossEntropyLoss"}, {"type": "DiceLoss", "use_sigmoid": False}]
    words = {"channels": 32, "norm_cfg.type": "GN", "norm_cfg.num_groups": 8, "loss_decode": loss}
    config = settings({f"model.head.options.{key}": value for key, value in words.items()})
    head = config.model.head
    assert isinstance(head, MMSegHeadConfig) and head.kind == "UPerHead"
    assert head.arguments == {"channels": 32, "norm_cfg": {"type": "GN", "num_groups": 8}, "loss_decode": loss}
    assert config_from_plain(SegmentationConfig, to_plain(config)) == config


def test_checkpoints_of_mmsegmentation_find_the_bridged_head() -> None:
    official = {
        "backbone.stages.0.downsample.reduction.weight": torch.arange(8.0)[None],
        "backbone.norm0.weight": torch.zeros(1),
        "decode_head.psp_modules.0.1.bn.weight": torch.zeros(1),
        "auxiliary_head.conv_seg.bias": torch.zeros(1),
        "data_preprocessor.mean": torch.zeros(1),
    }
    found = KEYMAPS["mmseg"].translate(official).tensors
    assert set(found) == {
        "backbone.trunk.layers.1.downsample.reduction.weight",
        "backbone.output_norms.0.weight",
        "head.decode.psp_modules.0.1.bn.weight",
    }
    moved = found["backbone.trunk.layers.1.downsample.reduction.weight"][0].tolist()
    assert moved == [0, 4, 2, 6, 1, 5, 3, 7]  # two channels of four neighbours


# -- samples ----------------------------------------------------------------------------------------------------------


class Described(SimpleNamespace):
    """As much of a SegDataSample as is read."""

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


def packed(mask: torch.Tensor, image: torch.Tensor | None = None) -> dict[str, Any]:
    if image is None:
        image = torch.stack([torch.full(mask.shape, value, dtype=torch.uint8) for value in (10, 20, 30)])
    described = Described(metainfo={"img_path": "folder/street.jpg"}, gt_sem_seg=SimpleNamespace(data=mask[None]))
    return {"inputs": image, "data_samples": described}


def test_a_sample_is_red_first_scaled_and_filled_up() -> None:
    mask = torch.tensor([[0, 1, 2], [255, 11, 0]])
    reading = Reading(INFO, size=(4, 5), ignored=(11,))
    sample = sample_of(packed(mask), 7, reading)
    assert (sample["name"], int(sample["index"]), sample["size"].tolist()) == ("street", 7, [2, 3])
    expected = [(value / 255 - m) / s for value, m, s in zip((30, 20, 10), INFO.mean, INFO.std, strict=True)]
    torch.testing.assert_close(sample["image"][:, 0, 0], torch.tensor(expected))
    assert (
        sample["image"].shape == (3, 4, 5) and not sample["image"][:, 2:].any() and not sample["image"][..., 3:].any()
    )
    assert sample["mask"][:2, :3].tolist() == [[0, 1, 2], [255, 255, 0]] and sample["mask"].dtype == torch.int64
    assert bool((sample["mask"][2:] == 255).all()) and bool((sample["mask"][:, 3:] == 255).all())
    batch = collate_samples([sample, sample], 2)
    assert batch["image"].shape == (2, 3, 4, 5) and batch["name"] == ["street", "street"]
    other = sample_of(packed(mask), 7, reading._replace(blue_first=False, size=None))
    torch.testing.assert_close(other["image"][0, 0, 0], torch.tensor((10 / 255 - INFO.mean[0]) / INFO.std[0]))


def test_samples_that_cannot_be_read() -> None:
    mask = torch.tensor([[0, 11]])
    with pytest.raises(DataError, match=r"street\.jpg: has the label 11, which is none of the 3 classes"):
        sample_of(packed(mask), 0, Reading(INFO))
    with pytest.raises(DataError, match="has the label -1"):
        sample_of(packed(mask - 1), 0, Reading(INFO))
    with pytest.raises(ShapeError, match=r"image of \[2, 2\] pixels has labels of \[1, 2\].*Leave Resize out"):
        sample_of(packed(mask, torch.zeros(3, 2, 2, dtype=torch.uint8)), 0, Reading(INFO))
    with pytest.raises(ShapeError, match=r"image of \[1, 2\] pixels is larger than \[1, 1\]"):
        sample_of(packed(mask), 0, Reading(INFO, size=(1, 1), ignored=(11,)))
    unlabelled = packed(mask)
    del unlabelled["data_samples"].gt_sem_seg
    with pytest.raises(DataError, match=r"has no labels.*LoadAnnotations"):
        sample_of(unlabelled, 0, Reading(INFO))
