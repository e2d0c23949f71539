"""Classes of new images: what is read, what is written, and what is refused. The model knows dark from light."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.classification.config import ClassificationConfig
from apps.classification.models.config import LinearConfig, PositionsConfig
from apps.classification.module import create_module
from apps.classification.predict import ImagePredictor
from datamodules.classification.config import FolderConfig
from datamodules.classification.info import ClassificationInfo
from graftwork.errors import ConfigError, DataError, UserError
from tests.backbones.vision.toy import ToyConfig

INFO = ClassificationInfo(8, 3, ("dark", "light", "never"), (1, 1, 1), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


def predictor(top: int = 2, **data: object) -> ImagePredictor:
    """Light pixels speak for light, dark ones for dark."""
    folder = FolderConfig(image_size=8, eval_batch_size=2, **data)  # type: ignore[arg-type]
    module = create_module(ClassificationConfig(data=folder, model=LinearConfig(side=8), top=top), INFO)
    with torch.no_grad():
        module.model.linear.weight[1] = 0.02
        module.model.linear.weight[0] = -0.02
        module.model.linear.bias[2] = -5.0
    return ImagePredictor(module)  # type: ignore[arg-type]


def grey(value: int, side: int = 10) -> np.ndarray:
    return np.full((side, side), value, dtype=np.uint8)


def photos(folder: Path, **files: int) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grey(value)).save(path)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_image_of_any_kind():
    ours = predictor()
    guess = ours(grey(255))
    assert guess.name == "light" and guess.classes == ("light", "dark")
    # 192 values of 1 times 0.02 are 3.84 for light, -3.84 for dark, -5 for never
    wanted = torch.tensor([-3.84, 3.84, -5.0]).softmax(0)
    np.testing.assert_allclose(guess.all_probabilities, wanted.numpy(), rtol=1e-5)
    np.testing.assert_allclose(guess.probabilities, wanted[[1, 0]].numpy(), rtol=1e-5)
    assert guess.image.shape == (8, 8, 3) and guess.image.min() == 1.0
    same = [grey(255) / 255, grey(255)[..., None].repeat(3, 2), Image.fromarray(grey(255)), grey(255) > 0]
    assert all(np.allclose(ours(image).all_probabilities, guess.all_probabilities) for image in same)
    assert guess.figure().axes


def test_several_images(tmp_path):
    ours = predictor()
    path = photos(tmp_path / "in", a=0) / "a.png"
    found = ours([grey(255), str(path), path, Image.fromarray(grey(0)), grey(255, 200)])
    assert [guess.name for guess in found] == ["light", "dark", "dark", "dark", "light"]
    assert [guess.name for guess in ours(np.stack([grey(0), grey(255)])[..., None])] == ["dark", "light"]
    assert ours([]) == []


def test_what_is_no_image_is_refused():
    ours = predictor()
    with pytest.raises(DataError, match=r"image: shape \[5\] is no image"):
        ours(np.zeros(5))
    with pytest.raises(DataError, match="image 1: floating-point pixels from 0 to 3"):
        ours([grey(0), np.array([[0.0, 3.0]])])
    with pytest.raises(DataError, match="cannot be read"):
        ours("nowhere.png")


def test_a_file_becomes_a_table_and_a_picture(tmp_path):
    source = photos(tmp_path / "in", cat=250) / "cat.png"
    written = predictor().predict_file(source)
    assert written == [tmp_path / "in/cat_classes.csv", tmp_path / "in/cat_classes.png"]
    (row,) = rows(written[0])
    assert list(row) == ["file", "class", "probability", "class_2", "probability_2"]
    assert (row["file"], row["class"], row["class_2"]) == ("cat.png", "light", "dark")
    assert float(row["probability"]) > 0.9 and written[1].stat().st_size > 1000


def test_a_folder_is_read_with_all_below_it(tmp_path):
    source = photos(tmp_path / "in", b=255, a=0, more__c=255, more__d=0, e=255)
    (source / "notes.txt").write_text("no image")
    written = predictor().predict_file(source, tmp_path / "out")
    found = rows(written[0])
    assert [(row["file"], row["class"]) for row in found] == [
        ("a.png", "dark"), ("b.png", "light"), ("e.png", "light"), ("more/c.png", "light"), ("more/d.png", "dark"),
    ]  # fmt: skip


def test_top_is_cut_to_the_classes(tmp_path):
    source = photos(tmp_path / "in", a=0) / "a.png"
    (row,) = rows(predictor(top=10).predict_file(source, tmp_path / "out.csv")[0])
    assert list(row)[-1] == "probability_3"
    assert sum(float(row[name]) for name in ("probability", "probability_2", "probability_3")) == pytest.approx(
        1, rel=1e-4
    )


def test_corrupt_files_stop_or_are_skipped(tmp_path):
    source = photos(tmp_path / "in", a=0, b=255, c=0)
    (source / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b\.png: cannot be decoded"):
        predictor().predict_file(source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    found = rows(predictor(on_corrupt="skip").predict_file(source, tmp_path / "out.csv")[0])
    assert [(row["file"], row["class"]) for row in found] == [("a.png", "dark"), ("b.png", ""), ("c.png", "dark")]
    for name in ("a", "c"):
        (source / f"{name}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of its images can be decoded"):
        predictor(on_corrupt="skip").predict_file(source, tmp_path / "out.csv")


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        predictor().predict_file(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images\. Expected files that end in \.jpg"):
        predictor().predict_file(tmp_path / "empty")


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("in/a.png", "in/a.csv", r"would overwrite the input .*a\.png"),
        ("in/a.png", "x.png", r"--output .*x\.png: classes are written as a CSV file"),
        ("in", "in/a.csv", r"would overwrite the input .*a\.png"),
        ("in/a.png", "file/x.csv", "cannot be written"),
    ],
)
def test_outputs_that_would_harm_are_refused(tmp_path, source, output, message):
    photos(tmp_path / "in", a=0)
    (tmp_path / "file").write_text("mine")
    before = (tmp_path / "in/a.png").read_bytes()
    with pytest.raises(UserError, match=message):
        predictor().predict_file(tmp_path / source, tmp_path / output)
    assert (tmp_path / "in/a.png").read_bytes() == before and (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


def test_outputs_may_be_folders(tmp_path):
    source = photos(tmp_path / "in", a=0)
    (tmp_path / "here").mkdir()
    assert predictor().predict_file(source, tmp_path / "here")[0] == tmp_path / "here/in_classes.csv"
    assert predictor().predict_file(source / "a.png", f"{tmp_path}/new/")[0] == tmp_path / "new/a_classes.csv"
    assert predictor().predict_file(source)[0] == tmp_path / "in_classes.csv"


def test_outputs_that_are_not_finite_are_refused():
    ours = predictor()
    with torch.no_grad():
        ours.module.model.linear.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        ours(grey(0))


def test_models_without_classes_are_refused():
    info = ClassificationInfo(64, 3, ("image",), (1,), (0.5,) * 3, (0.5,) * 3)
    config = ClassificationConfig(
        data=FolderConfig(image_size=64, labels=False), model=PositionsConfig(backbone=ToyConfig())
    )
    with pytest.raises(ConfigError, match=r"predicts no classes\. Fine-tune it first"):
        ImagePredictor(create_module(config, info))  # type: ignore[arg-type]
