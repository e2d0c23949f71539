"""A user's own folder: every layout, every kind of mask, and each mistake with its sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.segmentation.config import FolderConfig
from datamodules.segmentation.labels import Labels
from datamodules.segmentation.layout import Layout
from graftwork.errors import ConfigError, DataError
from tests.datamodules.segmentation.pictures import striped, write_array, write_image, write_json, write_pairs


def find(root: Path, **options: Any) -> Layout:
    return FolderConfig(root=str(root), **options).find()


def labels(layout: Layout, split: str = "train", number: int = 0, size: tuple[int, int] = (40, 48)) -> Labels:
    part = layout.splits[split]
    return part.labels.read(part.items[number], size, part.labels.tells_segments)


def test_splits_below_images_and_masks(tmp_path):
    layout = find(write_pairs(tmp_path, ("train", "val", "test")))
    assert layout.classes.names == ("sky", "road", "car") and list(layout.splits) == ["train", "val", "test"]
    assert not layout.cut and [len(split) for split in layout.splits.values()] == [2, 2, 2]
    assert (labels(layout).mask == striped()).all()


def test_images_and_masks_below_splits_by_another_name(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / split / "photos" / "a.png")
        write_array(tmp_path / split / "labels" / "a_mask.png", striped())
    (tmp_path / "names.txt").write_text("a\nb\nc", encoding="utf-8")
    layout = find(tmp_path, images_folder="photos", masks_folder="labels", classes="names.txt")
    assert list(layout.splits) == ["train", "val"] and layout.unused == ()


def test_one_folder_is_shared_out_by_names(tmp_path):
    for number in range(20):
        write_image(tmp_path / "images" / f"{number}.png", number)
        write_array(tmp_path / "masks" / f"{number}.png", striped())
    (tmp_path / "classes.txt").write_text("a\nb\nc", encoding="utf-8")
    layout = find(tmp_path, val_share=0.2, test_share=0.1)
    assert {name: len(split) for name, split in layout.splits.items()} == {"train": 14, "val": 4, "test": 2}
    assert layout.cut == ("val", "test")
    again = find(tmp_path, val_share=0.2, test_share=0.3)
    assert again.splits["val"].items == layout.splits["val"].items


def test_only_the_missing_validation_split_is_cut(tmp_path):
    layout = find(write_pairs(tmp_path, ("train", "test"), count=10))
    assert layout.cut == ("val",) and len(layout.splits["train"]) == 9 and len(layout.splits["test"]) == 10


def test_colours_with_a_palette(tmp_path):
    write_image(tmp_path / "images" / "train" / "a.png")
    palette = np.array([[0, 0, 0], [128, 64, 128], [9, 9, 9]], dtype=np.uint8)
    write_array(tmp_path / "masks" / "train" / "a.png", palette[striped()])
    (tmp_path / "palette.txt").write_text("0 0 0 void\n128 64 128 road\n9 9 9 car\n", encoding="utf-8")
    layout = find(tmp_path, ignore_id=0)
    assert layout.classes.names == ("road", "car") and layout.classes.palette == ((128, 64, 128), (9, 9, 9))
    assert (labels(layout).mask == np.array([255, 0, 1])[striped()]).all()
    (tmp_path / "classes.txt").write_text("void\nstreet\ncar\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.txt: does not agree with palette\.txt on class 1"):
        find(tmp_path)


def palette_masks(root: Path, numbers: str, palette: list[int], colours: str) -> Path:
    """Masks of training with a palette of their own, each with the given numbers, beside palette.txt."""
    for place, used in enumerate(numbers.split()):
        write_image(root / "images" / "train" / f"{place}.png", place)
        mask = Image.fromarray(striped(labels=[int(number) for number in used.split(",")]))
        mask.putpalette(palette + [0] * (3 * 256 - len(palette)))  # whole, or numbers are cut to fewer bits
        (root / "masks" / "train").mkdir(parents=True, exist_ok=True)
        mask.save(root / "masks" / "train" / f"{place}.png")
    (root / "palette.txt").write_text(colours, encoding="utf-8")
    return root


VOID_ROAD_CAR = "0 0 0 void\n128 64 128 road\n9 9 9 car\n"
CAR_VOID_ROAD = [9, 9, 9, 0, 0, 0, 128, 64, 128]


def test_masks_whose_palette_has_the_colours_in_another_order_are_colours(tmp_path):
    layout = find(palette_masks(tmp_path, "0,1,2 0", CAR_VOID_ROAD, VOID_ROAD_CAR), val_share=0)
    assert (labels(layout).mask == np.array([2, 0, 1])[striped()]).all() and (labels(layout, number=1).mask == 2).all()
    asked = find(tmp_path, val_share=0, masks="index")
    assert (labels(asked).mask == striped()).all()


@pytest.mark.parametrize(
    "palette",
    [
        [0, 0, 0, 128, 64, 128, 9, 9, 9],  # the order of the file
        [1, 1, 1, 128, 64, 128, 0, 0, 0],  # a colour that the file lacks
        [0, 0, 0, 1, 1, 1, 2, 2, 2],  # greys that nobody chose
        [0, 0, 0],  # black for every number
    ],
)
@pytest.mark.parametrize("numbers", ["0,1,2", "0 0,1,2,255"])
def test_masks_whose_palette_does_not_contradict_are_numbers(tmp_path, palette, numbers):
    layout = find(palette_masks(tmp_path, numbers, palette, VOID_ROAD_CAR), val_share=0)
    expected = striped(labels=(0, 1, 2, 255)) if "255" in numbers else striped()
    assert (labels(layout, number=-1).mask == expected).all()


def test_a_later_mask_whose_palette_contradicts_stops(tmp_path):
    black_first = [0, 0, 0, 9, 9, 9, 128, 64, 128]
    layout = find(palette_masks(tmp_path, "0 0,1", black_first, VOID_ROAD_CAR), val_share=0)
    with pytest.raises(DataError, match=r"1\.png: its palette gives the colours .* --data\.masks colour"):
        labels(layout, number=1)
    coloured = find(tmp_path, val_share=0, masks="colour")
    assert (labels(coloured, number=1).mask == striped(labels=(0, 2))).all()


CATEGORIES = [{"id": 3, "name": "sky", "isthing": 0}, {"id": 8, "name": "car", "isthing": 1, "color": [1, 2, 3]}]


def panoptic_root(root: Path, infos: list[dict[str, Any]] | None = None) -> Path:
    write_image(root / "images" / "train" / "a.jpg")
    ids = np.array([7, 300, 70000])[striped()]
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    write_array(root / "masks" / "train" / "a.png", colours)
    infos = infos or [
        {"id": 7, "category_id": 3},
        {"id": 300, "category_id": 8, "iscrowd": 0},
        {"id": 70000, "category_id": 8, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
        "categories": CATEGORIES,
    }
    write_json(root / "masks" / "train" / "panoptic.json", content)
    return root


def test_panoptic_files(tmp_path):
    layout = find(panoptic_root(tmp_path), val_share=0)
    found = labels(layout)
    assert layout.classes.names == ("sky", "car") and layout.classes.things == (1,)
    assert layout.classes.palette[1] == (1, 2, 3)
    assert found.classes == (0, 1, 1) and found.crowd == (False, False, True)
    assert found.segments is not None and (found.segments == striped()).all()
    assert (found.mask == np.array([0, 1, 1])[striped()]).all()


def test_a_segment_that_is_not_listed(tmp_path):
    layout = find(panoptic_root(tmp_path, [{"id": 7, "category_id": 3}, {"id": 300, "category_id": 8}]))
    with pytest.raises(DataError, match=r"a\.png: has the segment 70000, which .*panoptic\.json does not list"):
        labels(layout)


def test_a_category_that_is_not_listed(tmp_path):
    infos = [{"id": number, "category_id": 5} for number in (7, 300, 70000)]
    with pytest.raises(DataError, match="has the category 5, which is not listed"):
        labels(find(panoptic_root(tmp_path, infos)))


def instances_root(root: Path) -> Path:
    write_image(root / "train" / "images" / "a.png")
    square = [4, 4, 24, 4, 24, 24, 4, 24]
    small = [10, 10, 14, 10, 14, 14, 10, 14]
    crowd = {"size": [40, 48], "counts": [0, 40 * 2, 40 * 46]}  # the first two columns
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 8, "segmentation": [small], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": [square], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": crowd, "iscrowd": 1},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations, "categories": categories}
    write_json(root / "train" / "instances.json", content)
    return root


def test_instances_lie_on_the_background_small_ones_on_top(tmp_path):
    layout = find(instances_root(tmp_path))
    found = labels(layout)
    assert layout.classes.names == ("background", "cat", "dog") and layout.classes.things == (1, 2)
    assert np.bincount(found.mask.ravel()).tolist() == [40 * 48 - 400 - 80, 400 - 16 + 80, 16]
    assert sorted(zip(found.classes, found.crowd, strict=True)) == [(0, False), (1, False), (1, True), (2, False)]
    ignoring = find(tmp_path, background="")
    assert ignoring.classes.names == ("cat", "dog")
    assert (labels(ignoring).mask == 255).sum() == 40 * 48 - 480


def test_annotations_of_images_in_folders_of_one_name_each(tmp_path):
    root = instances_root(tmp_path)
    for place in ("a", "b"):
        write_image(root / "train" / "images" / place / "1.png")
    images = [{"id": 1, "file_name": "a/1.png"}, {"id": 2, "file_name": "b/1.png"}]
    square = [4, 4, 24, 4, 24, 24, 4, 24]
    annotations = [{"id": 1, "image_id": 2, "category_id": 3, "segmentation": [square]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cat"}]}
    write_json(root / "train" / "instances.json", content)
    layout = find(root, val_share=0)
    assert [item.name for item in layout.splits["train"].items] == ["a/1", "b/1"]
    assert labels(layout).classes == (0,) and labels(layout, number=1).classes == (0, 1)
    write_json(root / "train" / "instances.json", {**content, "images": [{"id": 2, "file_name": "c/2.png"}]})
    with pytest.raises(DataError, match=r"names the image c/2\.png, which .* lacks"):
        find(root)


def test_files_that_are_no_annotations(tmp_path):
    root = instances_root(tmp_path)
    file = root / "train" / "instances.json"
    for content, text in (("{", "cannot be read as JSON"), ('{"images": []}', "is no file of COCO annotations")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=text):
            find(root)


def test_labelme_files_beside_the_images_in_the_root(tmp_path):
    labelme_root(tmp_path / "of")
    for name in ("images/train/a.png", "masks/train/a.json"):
        shutil.move(tmp_path / "of" / name, tmp_path)
    layout = find(tmp_path, images_folder=".", masks_folder=".", val_share=0, test_share=0)
    assert layout.classes.names == ("background", "cat", "dog") and len(layout.splits["train"]) == 1


def test_categories_of_another_split_must_have_the_same_numbers(tmp_path):
    instances_root(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    content = (tmp_path / "val" / "instances.json").read_text(encoding="utf-8").replace('"dog"', '"wolf"')
    (tmp_path / "val" / "instances.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"category 8 is 'wolf', in .* it is 'dog'"):
        find(tmp_path)


def labelme_root(root: Path, label: str = "cat", kind: str = "polygon") -> Path:
    write_image(root / "images" / "train" / "a.png")
    shapes = [
        {"label": label, "points": [[4, 4], [24, 4], [24, 24], [4, 24]], "shape_type": kind, "group_id": 1},
        {"label": "cat", "points": [[30, 4], [40, 14]], "shape_type": "rectangle", "group_id": 1},
        {"label": "dog", "points": [[10, 10], [14, 14]], "shape_type": "rectangle", "group_id": None},
        {"label": "__ignore__", "points": [[0, 30], [48, 40]], "shape_type": "rectangle"},
    ]
    write_json(root / "masks" / "train" / "a.json", {"shapes": shapes, "imageHeight": 40, "imageWidth": 48})
    return root


def test_labelme_polygons(tmp_path):
    layout = find(labelme_root(tmp_path))
    assert layout.classes.names == ("background", "cat", "dog") and not layout.splits["train"].labels.tells_segments
    counts = np.bincount(labels(layout).mask.ravel(), minlength=256)
    assert counts[[1, 2, 255]].tolist() == [400 - 16 + 100, 16, 480]
    found = labels(find(tmp_path, things=("cat", "dog")))
    assert sorted(found.classes) == [0, 1, 2]  # both cats are one object, by their group
    with pytest.raises(DataError, match=r"data\.things: there is no class 'cats'\. Did you mean 'cat'\?"):
        find(tmp_path, things=("cats",))


def test_labelme_shapes_that_cannot_be_used(tmp_path):
    layout = find(labelme_root(tmp_path / "kind", kind="linestrip"))
    with pytest.raises(DataError, match="'cat' is drawn as a linestrip"):
        labels(layout)
    labelme_root(tmp_path / "name", label="catt")
    (tmp_path / "name" / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"class 'catt', which is not among the classes\. Did you mean 'cat'"):
        labels(find(tmp_path / "name"))
    write_json(tmp_path / "name" / "masks" / "train" / "a.json", [1])
    with pytest.raises(DataError, match="no list of shapes"):
        labels(find(tmp_path / "name"))


@pytest.mark.parametrize("split_first", [False, True])
def test_files_of_instances(tmp_path, split_first):
    place = tmp_path / "train" if split_first else tmp_path
    below = "" if split_first else "train"
    write_image(place / "images" / below / "a.png")
    write_array(place / "masks" / below / "a.png", striped(labels=(0, 1, 1, 2)))
    (tmp_path / "classes.txt").write_text("sky\ncar\ntree\n", encoding="utf-8")
    assert not find(tmp_path).splits["train"].labels.tells_segments
    with pytest.raises(DataError, match=r"instances.*: no such folder, which data\.things needs"):
        find(tmp_path, things=("car",))
    write_array(place / "instances" / below / "b.png", striped(labels=(7, 300 - 256, 3, 9)))
    with pytest.raises(DataError, match=r"1 of 1 images have no file here, first 'a'"):
        find(tmp_path, things=("car",))
    write_array(place / "instances" / below / "a.png", striped(labels=(7, 5, 3, 9)))
    layout = find(tmp_path, things=("car",))
    assert layout.classes.things == (1,) and sorted(labels(layout).classes) == [0, 1, 1, 2]


def test_no_folder_a_file_and_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"data\.root: no folder of images given\. Expected root/images/train"):
        FolderConfig().find()
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        find(tmp_path / "file")
    with pytest.raises(DataError, match="has no folder of images; found no folders"):
        find(tmp_path)
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"masks.train: no such folder of masks"):
        find(tmp_path)
    (tmp_path / "masks" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"masks.train: no masks"):
        find(tmp_path)
    write_array(tmp_path / "masks" / "train" / "a.png", striped())
    with pytest.raises(DataError, match=r"images.train: no images"):
        find(tmp_path)


def test_a_missing_mask_and_one_too_many(tmp_path):
    root = write_pairs(tmp_path)
    (root / "masks" / "train" / "1.png").rename(root / "masks" / "train" / "5.png")
    with pytest.raises(DataError, match=r"1 of 2 images have no mask here, first .*1\.png\. Expected 1\.png"):
        find(root)
    (root / "images" / "train" / "1.png").unlink()
    assert [path.name for path in find(root).unused] == ["5.png"]


def test_two_images_of_one_name(tmp_path):
    root = write_pairs(tmp_path)
    write_image(root / "images" / "train" / "1.jpg")
    with pytest.raises(DataError, match=r"both named '1'"):
        find(root)


def test_no_names_and_no_training_images(tmp_path):
    root = write_pairs(tmp_path)
    (root / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt: no such file; classes need names"):
        find(root)
    shutil.rmtree(root / "images" / "train")
    with pytest.raises(DataError, match="has images for val but none for training"):
        find(root)
    with pytest.raises(DataError, match=r"data\.test_folder"):
        find(write_pairs(tmp_path / "b"), test_folder="night")


def test_asked_for_segments_that_labels_do_not_tell(tmp_path):
    data = FolderConfig(root=str(write_pairs(tmp_path)), panoptic=True).build(0)
    with pytest.raises(DataError, match="labels of train tell no objects apart"):
        _ = data.info


def test_every_wrong_option_is_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        FolderConfig(root=str(tmp_path), crop=(8, 64), batch_size=0, balance=9, ignore_id=-1).check()
    for text in ("crop=[8, 64]", "batch_size=0", "balance=9", "ignore_id=-1"):
        assert text in str(caught.value)
