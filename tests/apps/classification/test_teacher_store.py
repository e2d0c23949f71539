"""Stored teachers: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.classification import teach as command
from apps.classification import teaching
from apps.classification.module import ClassificationModule
from apps.classification.teacher_store import TeacherStore, describe
from apps.classification.teaching import rescaled, store_epoch, teach
from apps.core.run.atomic import replace_file
from datamodules.classification.config import AugmentConfig, FolderConfig
from datamodules.classification.layout import SplitFiles
from graftwork.errors import ConfigError, DataError, UserError
from tests.apps.classification.runs import LINEAR, run, small
from tests.datamodules.classification.images import write_image


def data(root: Path, **changes: object):
    for number in range(12):
        write_image(root / f"train/{'ab'[number % 2]}/{number}.png", number, 32)
    found = FolderConfig(root=str(root), image_size=32, val_share=0.0, eval_batch_size=5, **changes).build(seed=1)
    found.setup()
    return found


def header(found, kept: int = 2, epochs: int = 2, **teacher: str):
    files = found.layout.splits["train"]
    return describe(found.config, found.info, found.seed, files, {"digest": "x", **teacher}, kept=kept, epochs=epochs)


def filled(folder: Path, found, **options: int) -> TeacherStore:
    store = TeacherStore.create(folder, header(found, **options))
    outputs = torch.tensor([[0.7, 0.3]]).log().repeat(12, 1)
    for epoch in range(store.epochs):
        store.write(epoch, torch.arange(12), outputs.roll(epoch, 1) if epoch else outputs)
        store.commit(epoch, 12)
    return store


def test_what_is_written_is_read(tmp_path):
    found = data(tmp_path / "data")
    values = torch.randn(12, 2).log_softmax(1)
    store = TeacherStore.create(tmp_path / "store", header(found, epochs=1))
    store.write(0, torch.tensor([3, 0]), values[[3, 0]])
    store.write(
        0, torch.tensor([i for i in range(12) if i not in (0, 3)]), values[[i for i in range(12) if i not in (0, 3)]]
    )
    store.commit(0, 12)
    targets = TeacherStore.open(tmp_path / "store").targets(0, torch.tensor([7, 3]))
    wanted = values[[7, 3]].topk(2)
    assert torch.equal(targets.indices, wanted.indices)
    torch.testing.assert_close(targets.values, wanted.values, atol=2e-3, rtol=1e-3)
    arrays = {path.name: np.load(path) for path in (tmp_path / "store").glob("*.npy")}
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "epoch_0.values.npy": "float16",
        "epoch_0.indices.npy": "int16",
    }


def test_epochs_come_again_and_again(tmp_path):
    store = filled(tmp_path / "store", data(tmp_path / "data"))
    firsts = [int(store.targets(epoch, torch.tensor([0])).indices[0, 0]) for epoch in range(5)]
    assert firsts == [0, 1, 0, 1, 0]


def test_many_classes_need_wider_numbers(tmp_path):
    found = data(tmp_path / "data")
    wide = header(found, kept=1, epochs=1) | {"classes": [str(number) for number in range(40_000)]}
    store = TeacherStore.create(tmp_path / "store", wide)
    outputs = torch.full((1, 40_000), -50.0)
    outputs[0, 39_999] = 0.0
    store.write(0, torch.tensor([4]), outputs)
    assert int(store.targets(0, torch.tensor([4])).indices[0, 0]) == 39_999
    assert np.load(tmp_path / "store/epoch_0.indices.npy").dtype == np.int32


# -- refusals ---------------------------------------------------------------------------------------------------------


def refusal(store: TeacherStore, found) -> str:
    with pytest.raises(ConfigError) as caught:
        store.refuse_other(found.config, found.info, found.seed)
    return str(caught.value)


CHANGES = [
    ({"augment": AugmentConfig(flip=0.1)}, "data.augment.flip=0.5, not 0.1"),
    ({"augment": AugmentConfig(policy="rand")}, "data.augment.policy=none, not rand"),
    ({"mean": (0.5, 0.5, 0.5)}, "data.mean=[0.485, 0.456, 0.406], not [0.5, 0.5, 0.5]"),
    ({"interpolation": "bilinear"}, "data.interpolation=bicubic, not bilinear"),
    ({"image_size": 48}, "data.image_size=32, not 48"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=str)
def test_other_transforms_are_refused(tmp_path, changes, message):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    store.refuse_other(found.config, found.info, found.seed)
    other = replace(found.config, **changes).build(seed=1)
    assert message in refusal(store, other) and "make a store for these" in refusal(store, other)


def test_another_seed_is_refused(tmp_path):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    found.seed = 2
    assert "seed=1, not 2" in refusal(store, found)


def test_workers_and_batches_may_differ(tmp_path):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    other = replace(found.config, num_workers=3, batch_size=4, eval_batch_size=7).build(seed=1)
    store.refuse_other(other.config, other.info, other.seed)
    other.seed = 2  # it is looked at, all the same
    assert "seed=1, not 2" in refusal(store, other)


def test_other_classes_and_numbers_of_images_are_refused(tmp_path):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    (tmp_path / "data/train/b").rename(tmp_path / "data/train/c")
    assert "the teacher knows 2 classes" in refusal(store, found.config.build(seed=1))
    (tmp_path / "data/train/c").rename(tmp_path / "data/train/b")
    write_image(tmp_path / "data/train/b/new.png", 50, 32)
    assert "holds 12 training images, the data has 13" in refusal(store, found.config.build(seed=1))


def test_other_files_are_refused(tmp_path):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    store.refuse_other_files(found.layout.splits["train"])
    (tmp_path / "data/train/a/0.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match="are not those that the store was made from"):
        store.refuse_other_files(found.layout.splits["train"])
    moved = SplitFiles(
        found.layout.root / "train", found.layout.splits["train"].paths[::-1], np.zeros(12, dtype=np.int64)
    )
    with pytest.raises(ConfigError, match="are not those"):
        store.refuse_other_files(moved)


def test_other_packages_are_told(tmp_path, monkeypatch, caplog):
    found = data(tmp_path / "data")
    store = filled(tmp_path / "store", found)
    monkeypatch.setattr("apps.classification.teacher_store.packages", lambda: {"pillow": "1.0"})
    store.refuse_other(found.config, found.info, found.seed)
    assert "now 1.0: its images may differ in a few pixels" in caplog.text


def test_stores_that_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match=r"holds no outputs of a teacher.*classification\.teach --store"):
        TeacherStore.open(tmp_path / "nowhere")
    found = data(tmp_path / "data")
    store = TeacherStore.create(tmp_path / "store", header(found))
    store.write(0, torch.arange(5), torch.zeros(5, 2))
    store.commit(0, 5)
    with pytest.raises(DataError, match=r"epoch 0 holds 5 of 12 images\. Run the teach command again"):
        TeacherStore.open(tmp_path / "store")
    (tmp_path / "store/header.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        TeacherStore.open(tmp_path / "store")
    (tmp_path / "store/header.json").write_text('{"version": 9}')
    with pytest.raises(DataError, match="has format 9, expected 1"):
        TeacherStore.open(tmp_path / "store")
    (tmp_path / "store/header.json").write_text('{"version": 1, "samples": 2}')
    with pytest.raises(DataError, match="lacks classes, epochs"):
        TeacherStore.open(tmp_path / "store")


def test_damaged_arrays_are_named(tmp_path):
    filled(tmp_path / "store", data(tmp_path / "data"))
    (tmp_path / "store/epoch_1.values.npy").write_bytes(b"damaged")
    np.save(tmp_path / "store/epoch_0.indices.npy", np.zeros((3, 2), np.int16))
    store = TeacherStore.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"epoch_0\.indices\.npy: has shape \(3, 2\)"):
        store.targets(0, torch.tensor([0]))
    with pytest.raises(DataError, match=r"epoch_1\.values\.npy: cannot be read"):
        store.targets(1, torch.tensor([0]))


def test_a_store_is_gone_on_with_by_its_own_teacher_alone(tmp_path):
    found = data(tmp_path / "data")
    filled(tmp_path / "store", found, epochs=1)
    more = TeacherStore.create(tmp_path / "store", header(found, epochs=3, weights="elsewhere"))
    assert more.epochs == 3 and more.progress() == {0: 12}
    assert TeacherStore.create(tmp_path / "store", header(found, epochs=1)).epochs == 3
    with pytest.raises(ConfigError, match=r"was begun with kept=2, not 1.*another folder by --store"):
        TeacherStore.create(tmp_path / "store", header(found, kept=1))
    with pytest.raises(ConfigError, match=r"teacher\.digest=x, not y"):
        TeacherStore.create(tmp_path / "store", header(found, digest="y"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no store"):
        TeacherStore.create(tmp_path / "other", header(found))


# -- teaching ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert run(folder, **LINEAR) == 0
    return folder


def test_the_student_sees_the_images_that_the_teacher_saw(teacher_run, tmp_path):
    """Every stored row is what the teacher says of the image that the student's loader makes."""
    config = small(tmp_path / "student")
    lines = list(teach(config, str(teacher_run), tmp_path / "store", epochs=2, top=3))
    assert (
        "48 images" not in lines[0] and "teacher's accuracy" in lines[0] and lines[-1] == f"store: {tmp_path / 'store'}"
    )
    store = TeacherStore.open(tmp_path / "store")
    student_data = config.data.build(seed=config.seed)
    student_data.setup()
    student_data.repeat_epochs(2)
    teacher = teaching.open_teacher(config, str(teacher_run), student_data.info)
    for epoch in (0, 1, 2, 5):
        loader = student_data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        batch = next(iter(loader))
        with torch.no_grad():
            wanted = teacher.predict_batch(batch).log_softmax(1).topk(3)
        targets = store.targets(epoch, batch["index"])
        assert torch.equal(targets.indices, wanted.indices)
        torch.testing.assert_close(targets.values, wanted.values, atol=4e-3, rtol=1e-3)


def test_teaching_killed_goes_on_where_it_stopped(teacher_run, tmp_path, monkeypatch):
    config = small(tmp_path / "student", **{"data.eval_batch_size": 4})
    whole = list(teach(config, str(teacher_run), tmp_path / "whole", epochs=2, top=2))
    monkeypatch.setattr(teaching, "COMMIT_S", 0.0)
    write, calls = TeacherStore.write, []

    def killed(self, *words):
        calls.append(words[0])
        if len(calls) == 13:
            raise KeyboardInterrupt
        write(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            list(teach(config, str(teacher_run), tmp_path / "killed", epochs=2, top=2))
    done = TeacherStore._read(tmp_path / "killed").progress()
    assert done[0] == TeacherStore.open(tmp_path / "whole").samples and 0 < done[1] < done[0]
    rest = list(teach(config, str(teacher_run), tmp_path / "killed", epochs=2, top=2))
    assert "0 images, stored before" in rest[0] and rest[0] != whole[0]
    for name in ("epoch_0.values.npy", "epoch_0.indices.npy", "epoch_1.values.npy", "epoch_1.indices.npy"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_corrupt_files_leave_their_place_empty(tmp_path, teacher_run):
    found = data(tmp_path / "data", on_corrupt="skip")
    (tmp_path / "data/train/b/1.png").write_bytes(b"")
    store = TeacherStore.create(tmp_path / "store", header(found, epochs=1))
    module = ClassificationModule(
        small(tmp_path, **{"model.name": "linear", "model.backbone": None, "model.backbone.drop_path": None}),
        found.info,
    ).eval()
    assert store_epoch(store, module, found, 0)[1] == 12
    corrupt = next(i for i in range(12) if found.layout.splits["train"].path(i).name == "1.png")
    others = torch.tensor([i for i in range(12) if i != corrupt])
    assert store.targets(0, others).indices.shape == (11, 2)
    with pytest.raises(DataError, match=f"holds nothing of image {corrupt}"):
        store.targets(0, torch.tensor([corrupt]))


def test_pixels_are_brought_to_the_teachers_scale():
    found = small(Path("unused")).data.build(seed=0).info
    theirs = replace(found, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    raw = torch.rand(2, 3, 4, 4)
    ours = (raw - torch.tensor(found.mean)[:, None, None]) / torch.tensor(found.std)[:, None, None]
    wanted = (raw - 0.5) / torch.tensor(theirs.std)[:, None, None]
    torch.testing.assert_close(rescaled(ours, found, theirs), wanted, atol=1e-5, rtol=1e-5)
    assert rescaled(ours, found, found) is ours


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], ""),
        (["--epochs", "2"], "--store: no folder to write to"),
        (["--store", "x", "--epochs", "none"], "--epochs none must be a whole number"),
        (["--store", "x", "--top", "0"], "--top 0 must be a whole number, 1 or more"),
        (["--store", "x", "--data.batch_sze", "3"], "unknown option 'data.batch_sze'"),
        (["--store", "x", "--config", "nowhere.yaml"], "no such configuration file"),
        (["--store", "x", "--data.name", "generated"], "the teacher has not learnt anything"),
        (["--store", "x", "--data.name", "generated", "--weights", "gone.ckpt"], "gone.ckpt"),
    ],
)
def test_the_command_complains_in_a_line(words, message, capsys, tmp_path, monkeypatch):
    words = [str(tmp_path / word) if word == "x" else word for word in words]
    code = command.main(words)
    out, err = capsys.readouterr()
    if not message:
        assert code == 0 and "usage: python -m apps.classification.teach --store" in out
    else:
        assert code == 2 and message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_command_stores(teacher_run, tmp_path, capsys):
    store = tmp_path / "store"
    config = tmp_path / "student.yaml"
    config.write_text("data: {name: generated, images: 60, side: 24}\ntrainer: {accelerator: cpu}\n")
    words = [
        "--config",
        str(config),
        "--weights",
        str(teacher_run),
        "--store",
        str(store),
        "--epochs",
        "1",
        "--top",
        "2",
    ]
    assert command.main(words) == 0
    assert "epoch 1/1: 36 images, teacher's accuracy" in capsys.readouterr().out
    assert json.loads((store / "header.json").read_text())["kept"] == 2


def test_a_teacher_of_other_classes_is_refused(teacher_run, tmp_path):
    config = small(tmp_path / "student", **{"data.classes": 6})
    with pytest.raises(ConfigError, match="the teacher knows 4 classes, the data has 6"):
        list(teach(config, str(teacher_run), tmp_path / "store", epochs=1, top=2))


def test_stores_are_written_whole(tmp_path):
    found = data(tmp_path / "data")
    filled(tmp_path / "store", found)
    assert not list((tmp_path / "store").glob(".*"))
    replace_file(tmp_path / "store/progress.json", "{broken")
    assert TeacherStore._read(tmp_path / "store").progress() == {}
