"""Public datasets in miniature, and CamVid itself where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules.segmentation.config import (
    DATASETS,
    Ade20kConfig,
    CamvidConfig,
    CityscapesConfig,
    CocoPanopticConfig,
    VocConfig,
)
from datamodules.segmentation.labels import Labels
from datamodules.segmentation.layout import Layout
from graftwork.errors import DataError
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_json


def labels(layout: Layout, split: str = "train") -> Labels:
    part = layout.splits[split]
    return part.labels.read(part.items[0], (40, 48), part.labels.tells_segments)


def public(name: str) -> bool:
    return name in ("camvid", "ade20k", "cityscapes", "coco_panoptic", "voc")


@pytest.mark.parametrize("name", filter(public, DATASETS.names()))
def test_a_missing_root_tells_tree_source_and_licence(name, tmp_path):
    for root in (None, str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(DataError) as caught:
            DATASETS.get(name)(root=root).find()
        assert "Expected root/" in str(caught.value) and "Source: " in str(caught.value)
        assert any(word in str(caught.value) for word in ("research", "CC BY", "terms of Flickr"))


def test_camvid(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "0001TP_1.jpg")
        write_array(tmp_path / f"{split}annot" / "0001TP_1.png", striped(labels=(0, 10, 11)))
    layout = CamvidConfig(root=str(tmp_path)).find()
    assert (labels(layout).mask == np.array([0] * 10 + [10, 255])[striped(labels=(0, 10, 11))]).all()
    assert list(layout.splits) == ["train", "val"] and layout.classes.names[10] == "bicyclist"
    on_val = CamvidConfig(root=str(tmp_path), test_on="val").find()
    assert on_val.splits["test"] is on_val.splits["val"]


def info_table(root: Path) -> None:
    names = ["wall", "building, edifice", "screen", *[f"thing{n}, x" for n in range(3, 149)], "screen"]
    rows = [f"{n + 1}\t0.1\t1\t1\t{name}" for n, name in enumerate(names)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]), encoding="utf-8")


def test_ade20k_counts_from_1(tmp_path):
    for split, short in (("training", "train"), ("validation", "val")):
        write_image(tmp_path / "images" / split / f"ADE_{short}_1.jpg")
        write_array(tmp_path / "annotations" / split / f"ADE_{short}_1.png", striped(labels=(0, 1, 150)))
    with pytest.raises(DataError, match=r"objectInfo150\.txt: no such file"):
        Ade20kConfig(root=str(tmp_path)).find()
    info_table(tmp_path)
    layout = Ade20kConfig(root=str(tmp_path)).find()
    assert np.unique(labels(layout).mask).tolist() == [0, 149, 255]
    assert layout.classes.names[:3] == ("wall", "building", "screen 2") and len(set(layout.classes.names)) == 150
    assert layout.splits["test"] is layout.splits["val"]
    write_array(tmp_path / "annotations" / "training" / "ADE_train_1.png", striped(labels=(0, 1, 151)))
    with pytest.raises(DataError, match=r"has number 151 .* expected 1 to 150, or 0"):
        labels(layout)


def panoptic(path: Path, folder: Path, name: str) -> None:
    ids = np.array([5, 258, 0])[striped()]
    write_array(folder / f"{name}.png", np.stack([ids & 255, ids >> 8, 0 * ids], -1).astype(np.uint8))
    infos = [{"id": 5, "category_id": 1, "iscrowd": 0}, {"id": 258, "category_id": 90, "iscrowd": 1}]
    categories = [{"id": 1, "name": "wall", "isthing": 0}, {"id": 90, "name": "cat", "isthing": 1}]
    annotations = [{"image_id": 4, "file_name": f"{name}.png", "segments_info": infos}]
    images = [{"id": 4, "file_name": f"{name}.jpg"}]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def test_ade20k_panoptic(tmp_path):
    for split, short in (("training", "train"), ("validation", "val")):
        write_image(tmp_path / "images" / split / "a.jpg")
        panoptic(tmp_path / f"ade20k_panoptic_{short}.json", tmp_path / f"ade20k_panoptic_{short}", "a")
    found = labels(Ade20kConfig(root=str(tmp_path)).find())
    assert found.classes == (0, 1) and found.crowd == (False, True)


def test_coco_panoptic_has_things_first(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / f"{split}2017" / "0001.jpg")
        folder = tmp_path / "annotations" / f"panoptic_{split}2017"
        panoptic(tmp_path / "annotations" / f"panoptic_{split}2017.json", folder, "0001")
    layout = CocoPanopticConfig(root=str(tmp_path)).find()
    assert layout.classes.names == ("cat", "wall") and layout.classes.things == (0,)
    found = labels(layout)
    assert found.classes == (1, 0) and found.crowd == (False, True)
    assert (found.mask == np.array([1, 0, 255])[striped()]).all()


def test_cityscapes_maps_label_ids_and_tells_instances_and_groups_apart(tmp_path):
    for split in ("train", "val"):
        base = "ulm/ulm_000000_000019"
        write_image(tmp_path / "leftImg8bit" / split / f"{base}_leftImg8bit.png")
        gt = tmp_path / "gtFine" / split
        write_array(gt / f"{base}_gtFine_labelIds.png", striped(labels=(7, 26, 26, 26, 0, 33, 255)))
        ids = np.array([7, 26, 26000, 26001, 0, 33000, 65535], dtype=np.uint16)[striped(labels=range(7))]
        write_array(gt / f"{base}_gtFine_instanceIds.png", ids)
    layout = CityscapesConfig(root=str(tmp_path)).find()
    found = labels(layout)
    assert (found.mask == np.array([0, 13, 13, 13, 255, 18, 255])[striped(labels=range(7))]).all()
    assert sorted(zip(found.classes, found.crowd, strict=True)) == [
        *((0, False), (13, False), (13, False), (13, True), (18, False)),
    ]
    assert layout.splits["train"].items[0].name == "ulm_000000_000019"
    (tmp_path / "gtFine" / "val" / f"{base}_gtFine_instanceIds.png").unlink()
    with pytest.raises(DataError, match=r"val/ulm/.*instanceIds\.png: no such file; 1 of 2 images have none"):
        CityscapesConfig(root=str(tmp_path)).find()
    assert not CityscapesConfig(root=str(tmp_path), panoptic=False).find().splits["train"].labels.tells_segments
    (tmp_path / "gtFine" / "train" / f"{base}_gtFine_instanceIds.png").unlink()
    assert not CityscapesConfig(root=str(tmp_path)).find().splits["train"].labels.tells_segments
    (tmp_path / "gtFine" / "val" / f"{base}_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"labelIds\.png: no such file for the image"):
        CityscapesConfig(root=str(tmp_path)).find()


def test_voc_lists(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write_array(tmp_path / "SegmentationClass" / f"{name}.png", striped(labels=(0, 15, 15, 255)))
        write_array(tmp_path / "SegmentationObject" / f"{name}.png", striped(labels=(0, 1, 2, 255)))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    layout = VocConfig(root=str(tmp_path)).find()
    found = labels(layout)
    assert found.classes == (0, 15, 15) and layout.classes.names[15] == "person"
    assert layout.classes.palette[15] == (192, 128, 128)
    with pytest.raises(DataError, match=r"trainaug\.txt: no such list"):
        VocConfig(root=str(tmp_path), train_list="trainaug").find()
    (lists / "val.txt").write_text("c\n")
    with pytest.raises(DataError, match=r"c\.jpg: no such file, which val\.txt names"):
        VocConfig(root=str(tmp_path)).find()


def test_camvid_itself(shared):
    """Counts and median-frequency weights of the whole training split against the published table."""
    root = shared / "data" / "camvid"
    if not root.is_dir():
        pytest.skip("needs CamVid in ../shared/data/camvid")
    data = CamvidConfig(root=str(root)).build(0)
    info = data.info
    assert len(data.layout.splits["train"]) == 367 and len(data.layout.splits["val"]) == 101
    frequency = np.array(info.pixels) / np.array(info.present)
    weights = np.median(frequency) / frequency
    expected = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert np.allclose(weights, expected, atol=6e-5)
    sample = data.datasets()["val"][3]
    assert sample["image"].shape == (3, 360, 480)
    assert set(sample["mask"].unique().tolist()) <= {*range(11), 255}  # 11 in the file is ignored
