"""The benchmarks run and write what they say; what they measure is looked at elsewhere."""

import argparse
import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import compiled, devices, networks, peers, throughput
from experiments import datasets
from experiments.models import LeNetEMNIST
from tests import pages
from tests.experiments import small_sets

TOYS = {
    "throughput": "--replicas 2 --batch 4 --steps 1 --rounds 1 --variants sequential own",
    "exchange_overhead": "--model lenet --replicas 2 --batch 2 --probe 2 --validation 4 --steps 1 --rounds 1",
    "fit_overhead": "--model lenet --replicas 2 --batch 2 --every 1 --periods 3 --validation 2 --rounds 1",
    "scaling": "--most 1 --batch 2 --steps 1 --rounds 1",
    "step_costs": "--replicas 2 --batch 2 --steps 1 --rounds 1",
    "precisions": "--replicas 1 --seeds 1 --batch 2 --every 1 --steps 2",
    "convolutions": "--model lenet --replicas 1 --batch 2 --rounds 1 --least 0",
    "devices": "--replicas 2 --batch 2 --devices 1 --steps 1 --rounds 1 --counted 2",
    "compiled": "--device cpu --models lenet --variants stock single --replicas 2 --batch 2",
    "hand_written": "--every 2 --steps 4 --rounds 1",
    "samplers": "--dimensions 2 --every 2 --steps 8 --rounds 1",
    "arithmetic": "--size 16 --replicas 1 --batch 2",
    "tuning": "--cases toy --tuned 0.1 --rounds 1 --seconds 0.01 --devices 1",
    "peers": "--replicas 2 --batch 2 --steps 4 --every 2 --probe 4 --arms pbt torch_func tune_pbt",
}
ROW = {
    "throughput": {"model", "replicas", "batch", "variant", "time_ratio", "seconds", "spread"},
    "exchange_overhead": {"model", "replicas", "batch", "every", "what", "seconds", "share_of_training"},
    "fit_overhead": {"variant", "model", "replicas", "every", "periods", "seconds"},
    "scaling": {"model", "replicas", "batch", "images_per_second", "seconds", "spread", "bytes_per_device"},
    "step_costs": {"replicas", "compile_seconds", "to_the_first"},
    "precisions": {"precision", "steps", "training_loss", "test_error", "time_ratio", "seconds"},
    "devices": {"model", "replicas", "batch", "devices", "images_per_second", "speedup", "speedup_spread"},
    "peers": {"arm", "seed", "seconds", "startup_seconds", "images_per_second", "test_error", "mixture_test_error"},
    "compiled": {"model", "variant", "label", "replicas", "collectives", "host_transfers", "temporary_bytes"},
    "hand_written": {"every", "replicas", "batch", "steps", "rounds", "microseconds_a_step", "engine_to_hand_written"},
    "samplers": {"dimensions", "every", "chains", "rungs", "steps", "jaxpt_to_tfp", "standard_deviation"},
    "arithmetic": {"check", "error", "bound", "right"},
    "tuning": {"case", "replicas", "chosen", "best", "chosen_to_best", "auto_to_best", "candidates", "tuned"},
    "convolutions": {"model", "layer", "part", "lowering", "seconds", "spread", "chosen", "time_ratio"},
}


def run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *arguments.split()])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", [*TOYS, "soak"])  # a soak ends its process by a signal
def test_each_says_what_it_takes(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help", monkeypatch)
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAX has started already")
@pytest.mark.parametrize("name", TOYS)
def test_each_measures_and_says_how(name, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "out.json"
    arguments = f"{TOYS[name]} --out {out}"
    if name == "peers":
        arguments += f" --data-dir {small_sets.write('emnist_letters', tmp_path / 'data')}"
    run(name, arguments, monkeypatch)
    written = json.loads(out.read_text())
    said = f"{TOYS[name]} --out out.json" + (" --data-dir data" if name == "peers" else "")
    assert written["command"] == f"benchmarks/{name}.py {said}", "folders by their last name"
    assert written["seeds"][0] == 0
    assert {"date", "device", "versions"} <= set(written)
    rows = written["rows"]
    assert ROW[name] <= set(rows[0])
    if name == "fit_overhead":
        variants = ["a dispatch of itself", "fit", "fit, everything on", "its last checkpoint"]
        assert [row["variant"] for row in rows] == variants
        for row in rows[1:3]:
            cost = row["between_dispatches"] + row["dispatches"] * rows[0]["seconds"]
            assert row["overhead"] == pytest.approx(cost / (row["seconds"] - cost))
            assert 0 < row["between_dispatches"] < row["seconds"]
            assert 1 <= row["dispatches"] <= 3
    if name == "throughput":
        assert [row["variant"] for row in rows] == ["sequential", "own"]
        assert rows[0]["time_ratio"] == 1
        by_hand, by_xla = rows[0]["flops_per_image_by_hand"], rows[0]["flops_per_image_by_xla"]
        assert 0.8 < by_xla / by_hand < 1.5, "layers counted by hand against XLA's own count"
    if name == "tuning":
        assert rows[0]["chosen_to_best"][0] >= 1, "no candidate is faster than the fastest"
        settings = [{key: row[key] for key in rows[0]["chosen"]} for row in rows[0]["candidates"]]
        assert settings[0] == rows[0]["chosen"]
        assert len(settings) == 3 + 4, "vmap, unroll and map; and four more sizes of evaluations"
    if name == "arithmetic":
        assert all(row["right"] for row in rows)
        assert rows[0]["error"] > 0, "float32 is not float64"
    if name == "compiled":
        assert [row["variant"] for row in rows] == ["stock", "single"]
        assert all(row["step_loop_found"] and row["collectives"] == row["host_transfers"] == 0 for row in rows)
    if name == "peers":
        arms = ["pbt", "torch_func", "tune_pbt"]
        assert [row["arm"] for row in rows] == [arm for arm in arms if arm not in written["left_out"]]
        assert all(row["replica_images"] == 2 * 2 * 4 for row in rows if row["arm"] != "tune_pbt")


@pytest.mark.slow
def test_an_evaluation_is_compiled_without_a_run():
    options = argparse.Namespace(
        device="cpu", program="evaluation", replicas=2, batch=3, precision="default", label="now", text=None
    )
    row = compiled.compile_one("block64", "stock", options)
    assert (row["program"], row["replicas"], row["batch"], row["step_loop_found"]) == ("evaluation", 2, 3, False)
    assert row["host_transfers"] == row["collectives"] == 0 < row["temporary_bytes"]


def test_a_wrong_number_ends_the_check_of_a_device(monkeypatch):
    from benchmarks import arithmetic

    monkeypatch.setattr(arithmetic, "sums", lambda size: iter([("a sum", 0.1, 0.01)]))
    monkeypatch.setattr(arithmetic, "gradients", lambda replicas, batch: iter(()))
    with pytest.raises(SystemExit, match=r"does not compute what NumPy computes: a sum$"):
        run("arithmetic", "--size 4", monkeypatch)


def test_the_commands_for_a_gpu_exist_with_their_options(tmp_path, monkeypatch, capsys):
    script = pages.ROOT / "benchmarks" / "gpu.sh"
    where = {"PYTHON": "echo", "OUT": str(tmp_path / "out"), "DATA": "data", "MINUTES": "5"}
    told = subprocess.run(["bash", script], env=os.environ | where, capture_output=True, text=True, check=True).stdout
    commands = [line.split() for line in told.splitlines() if line.startswith("benchmarks/")]
    names = [Path(script).stem for script, *_ in commands]
    assert names == ["arithmetic", *6 * ["throughput"], "tuning", "reproduce"]
    for path, *words in commands:
        monkeypatch.setattr(sys, "argv", [path, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(pages.ROOT / path), run_name="__main__")
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--"))


def test_steps_may_be_computed_in_bfloat16():
    options = argparse.Namespace(steps=1, batch=4, precision="bfloat16")
    engine = throughput.engine("lenet", jax.lax.conv_general_dilated, options, 2)
    weights = jax.eval_shape(engine.problem.init, jax.random.key(0))
    hyper = {"dropout_rate": 0.1}
    step = jax.make_jaxpr(engine.problem.loss)(*weights, networks.images("lenet", 4), hyper, jax.random.key(0))
    found = [eqn.outvars[0].aval.dtype for eqn in step.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert found == 3 * [jax.numpy.bfloat16]
    assert (engine.precision, step.out_avals[0].dtype) == ("default", jax.numpy.float32)


@pytest.fixture
def small_work(tmp_path):
    data, _ = datasets.load("emnist_letters", data_dir=small_sets.write("emnist_letters", tmp_path))
    numbers = {"replicas": 2, "batch": 3, "steps": 4, "every": 2, "probe": 4, "dropout": 0.0}
    return peers.work(argparse.Namespace(coldest=0.01, hottest=0.02, **numbers), data, 1)


@pytest.mark.slow
def test_weights_come_back_from_their_names_in_pytorch():
    params = jax.tree.map(lambda w: np.stack([w, 2 * w]), nnx.state(LeNetEMNIST(rngs=nnx.Rngs(0)), nnx.Param))
    weights = peers.to_torch(params)
    assert weights["conv3.weight"].shape == (2, 120, 16, 5, 5)
    assert weights["dense.weight"].shape == (2, 84, 120)
    jax.tree.map(np.testing.assert_array_equal, peers.from_torch(weights, params), params)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_peers_in_pytorch_do_the_same_work_to_the_last_weight(small_work):
    from benchmarks import peers_torch

    _, state = peers.OURS["grid"](small_work)
    ours = peers.to_torch(state.replicas.params)
    peers.check_networks(small_work)
    in_a_row = peers_torch.train_in_a_row(small_work.task, range(2), peers_torch.Settings(1, "channels-last")).weights
    for theirs in in_a_row, peers_torch.at_once(small_work.task).weights:
        for name, first in small_work.task.weights.items():
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-5)
            assert np.abs(ours[name] - first).max() > 1e-4, "it learned"


def test_what_crosses_devices_is_read_from_the_program():
    text = """
      %a = s32[8]{0} all-gather(%x), channel_id=1
      %b = (bf16[8,6,2]{2,1,0}, pred[8]{0}) all-gather-done(%y)
      %c = f32[8,16]{1,0} add(%all-gather.1, %z)
      %d = f32[] all-reduce(%w), to_apply=%sum
    """
    assert devices.collectives(text) == [
        ("all-gather", [8], 4),
        ("all-gather", [8, 6, 2], 2),
        ("all-gather", [8], 1),
        ("all-reduce", [], 4),
    ]
