"""The benchmarks run and write what they say; what they measure is looked at elsewhere."""

import importlib
import json
import sys

import pytest

from benchmarks import devices

TOYS = {
    "throughput": "--replicas 2 --batch 4 --steps 1 --rounds 1 --variants sequential own",
    "exchange_overhead": "--model lenet --replicas 2 --batch 2 --probe 2 --validation 4 --steps 1 --rounds 1",
    "scaling": "--most 1 --batch 2 --steps 1 --rounds 1",
    "step_costs": "--replicas 2 --batch 2 --steps 1 --rounds 1",
    "precisions": "--replicas 1 --seeds 1 --batch 2 --every 1 --steps 2",
    "convolutions": "--model lenet --replicas 1 --batch 2 --rounds 1 --least 0",
    "devices": "--replicas 2 --batch 2 --devices 1 --steps 1 --rounds 1 --counted 2",
}
SLOW = ("throughput", "precisions", "step_costs", "devices")
ROW = {
    "throughput": {"model", "replicas", "batch", "variant", "time_ratio", "seconds", "spread"},
    "exchange_overhead": {"model", "replicas", "batch", "every", "what", "seconds", "share_of_training"},
    "scaling": {"model", "replicas", "batch", "images_per_second", "seconds", "spread", "bytes_per_device"},
    "step_costs": {"replicas", "compile_seconds", "to_the_first"},
    "precisions": {"precision", "steps", "training_loss", "test_error", "time_ratio", "seconds"},
    "devices": {"model", "replicas", "batch", "devices", "images_per_second", "speedup", "speedup_spread"},
    "convolutions": {"model", "layer", "part", "lowering", "seconds", "spread", "chosen", "time_ratio"},
}


def run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split()])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", [*TOYS, "soak"])  # a soak ends its process by a signal
def test_each_says_what_it_takes(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help", monkeypatch)
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:JAX has started already")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in TOYS]
)
def test_each_measures_and_says_how(name, tmp_path, monkeypatch, quick_compiler):
    out = tmp_path / "deep" / "out.json"
    run(name, f"{TOYS[name]} --out {out}", monkeypatch)
    written = json.loads(out.read_text())
    assert written["command"] == f"benchmarks/{name}.py {TOYS[name]} --out {out}"
    assert written["seeds"][0] == 0
    assert {"date", "device", "versions"} <= set(written)
    rows = written["rows"]
    assert ROW[name] <= set(rows[0])
    if name == "throughput":
        assert [row["variant"] for row in rows] == ["sequential", "own"]
        assert rows[0]["time_ratio"] == 1
        by_hand, by_xla = rows[0]["flops_per_image_by_hand"], rows[0]["flops_per_image_by_xla"]
        assert 0.8 < by_xla / by_hand < 1.5, "layers counted by hand against XLA's own count"


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
