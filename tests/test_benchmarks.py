"""The benchmarks run and write what they say; what they measure is looked at elsewhere."""

import importlib
import json
import sys

import pytest

from benchmarks import devices

SCRIPTS = ("throughput", "exchange_overhead", "scaling", "step_costs", "precisions", "convolutions", "devices")


def run(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments.split()])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_says_what_it_takes(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(name, "--help", monkeypatch)
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:JAX has started already")
def test_throughput_counts_and_compares(tmp_path, monkeypatch):
    out = tmp_path / "deep" / "out.json"
    small = "--replicas 2 --batch 4 --steps 1 --rounds 1 --variants sequential own"
    run("throughput", f"{small} --out {out}", monkeypatch)
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["sequential", "own"]
    assert rows[0]["time_ratio"] == 1
    assert {"model", "replicas", "batch", "variant", "time_ratio", "seconds", "spread"} <= set(rows[0])
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
