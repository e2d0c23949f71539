from __future__ import annotations

import numpy as np
import pytest
import torch

import apps
from apps.core.cli import tasks
from apps.core.inference.load import choose_device, load, load_module
from apps.core.inference.predict import paths, predict
from apps.core.task import VerbOptions
from graftwork.errors import ConfigError, UserError, WeightsError
from tests.apps.core.inference.toy_model import TASK, save_checkpoint
from tests.toy_task import LinesConfig, NetConfig, ToyConfig

POINTS = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]], dtype=np.float32)


@pytest.fixture
def known_task(monkeypatch):
    monkeypatch.setattr(tasks, "get_task", lambda name: TASK)


def expected(module) -> np.ndarray:
    with torch.no_grad():
        return module.predict_batch({"points": torch.from_numpy(POINTS)}).numpy()


@pytest.mark.usefixtures("known_task")
@pytest.mark.parametrize("given", ["file", "folder"])
def test_load_gives_the_predictor_of_a_checkpoint_alone(given, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    trained = save_checkpoint(path, ToyConfig(model=NetConfig(width=5)))  # no default width, and no data
    predictor = apps.load("toy", path if given == "file" else tmp_path / "run", device="cpu")
    np.testing.assert_array_equal(predictor(POINTS), expected(trained))
    assert not predictor.module.training


@pytest.mark.usefixtures("known_task")
def test_weights_that_do_not_know_their_model_are_refused(tmp_path):
    path = tmp_path / "plain.pt"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="does not hold the configuration"):
        load("toy", path)
    with pytest.raises(WeightsError, match="no such"):
        load("toy", tmp_path / "gone.ckpt")


def test_trained_weights_need_no_data(tmp_path, monkeypatch):
    trained = save_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr(LinesConfig, "build", lambda *_, **__: pytest.fail("the data was read"))
    found = load_module(TASK, ToyConfig(), VerbOptions(weights=str(tmp_path / "best.ckpt")), need_weights=True)
    assert found.datamodule is None and found.info == {"inputs": 3} and found.meta.step == 7
    for name, tensor in trained.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor)


def test_without_weights_the_module_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_module(TASK, ToyConfig(), VerbOptions())
    assert torch.equal(torch.random.get_rng_state(), before)  # loading moves nobody's random numbers
    torch.manual_seed(2)
    second = load_module(TASK, ToyConfig(), VerbOptions())
    other = load_module(TASK, ToyConfig(seed=1), VerbOptions())
    weights = [found.module.model[0].weight for found in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.info == {"inputs": 3} and first.datamodule is not None


def test_weights_of_another_size_are_refused(tmp_path):
    save_checkpoint(tmp_path / "best.ckpt")
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"))
    with pytest.raises(WeightsError, match="do not fit"):
        load_module(TASK, ToyConfig(model=NetConfig(width=16)), options)


def test_predict_writes_and_says_what_it_wrote(tmp_path, capsys):
    trained = save_checkpoint(tmp_path / "best.ckpt")
    np.savetxt(tmp_path / "points.csv", POINTS, delimiter=",")
    target = tmp_path / "predicted.csv"
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"), input=str(tmp_path / "points.csv"), output=str(target))
    assert predict(TASK, ToyConfig(), options) == 0
    np.testing.assert_allclose(np.loadtxt(target), expected(trained)[:, 0], rtol=1e-6)
    assert f"wrote {target} (" in capsys.readouterr().out


def test_predict_needs_input_and_weights(tmp_path):
    with pytest.raises(UserError, match="--input: no file"):
        predict(TASK, ToyConfig(), VerbOptions(weights="best.ckpt"))
    with pytest.raises(UserError, match="no such file or folder"):
        predict(TASK, ToyConfig(), VerbOptions(input=str(tmp_path / "gone.csv")))
    (tmp_path / "points.csv").write_text("1,2,3\n")
    with pytest.raises(UserError, match="--weights: no trained weights"):
        predict(TASK, ToyConfig(), VerbOptions(input=str(tmp_path / "points.csv")))


def test_paths_of_what_a_predictor_returns(tmp_path):
    assert paths(None) == [] and paths(str(tmp_path)) == [tmp_path] and paths([tmp_path, "b"])[0] == tmp_path


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="no device 'tpuu'"):
        choose_device("tpuu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda' here"):
            choose_device("cuda")


def test_options_that_the_weights_would_overrule_are_refused(tmp_path):
    module = save_checkpoint(tmp_path / "best.ckpt")
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    checkpoint["graftwork"]["info"]["samples"] = 50  # a fact that is an option of the data, too
    torch.save(checkpoint, tmp_path / "best.ckpt")
    options = VerbOptions(weights=str(tmp_path / "best.ckpt"))
    assert load_module(TASK, module.config, options).info["samples"] == 50
    with pytest.raises(ConfigError, match=r"data\.samples=50, not 10\. Drop --data\.samples 10, or train with it"):
        load_module(TASK, ToyConfig(data=LinesConfig(samples=10)), options)
