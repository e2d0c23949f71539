"""What the trainer refuses, in words of our options."""

from __future__ import annotations

import pytest

from apps.core.run.trainer import build_trainer, refuse_impossible
from graftwork.errors import ConfigError, MissingPackageError
from tests.resume.runs import toy


def test_several_machines_need_a_launcher(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    config = toy(tmp_path, **{"trainer.num_nodes": 2})
    with pytest.raises(ConfigError, match=r"num_nodes=2.*torchrun --nnodes 2 .* -m apps\.toy fit"):
        refuse_impossible(config, "toy")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    refuse_impossible(config, "toy")


def test_compiling_needs_setuptools(tmp_path, monkeypatch):
    monkeypatch.setattr("apps.core.run.trainer.importlib.util.find_spec", lambda name: None)
    refuse_impossible(toy(tmp_path), "toy")
    with pytest.raises(
        MissingPackageError, match=r"trainer\.compile=True needs .*'setuptools'.*pip install setuptools"
    ):
        refuse_impossible(toy(tmp_path, **{"trainer.compile": True}), "toy")


@pytest.mark.parametrize(("key", "value"), [("precision", "33"), ("strategy", "ddpp"), ("accelerator", "abacus")])
def test_an_option_that_lightning_refuses_is_named(key, value, tmp_path):
    with pytest.raises(ConfigError, match=rf"^trainer\.{key}: "):
        build_trainer(toy(tmp_path, **{f"trainer.{key}": value}), tmp_path)


def test_batch_norms_are_not_shared_between_processes_on_cpus(tmp_path):
    words = {"trainer.sync_batchnorm": True, "trainer.accelerator": "cpu"}
    build_trainer(toy(tmp_path, **words), tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.sync_batchnorm: torch shares .* 2 processes on CPUs"):
        build_trainer(toy(tmp_path, **words, **{"trainer.devices": 2, "trainer.strategy": "ddp"}), tmp_path)
