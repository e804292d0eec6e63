#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a CheckpointManager that keeps the one checkpoint of the lowest loss deletes it when a loss of
# NaN arrives, keeps that of NaN and calls it the best, without a message. After a NaN in the middle it keeps a worse one.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'END'
import math
import os
import tempfile
from importlib.metadata import version

import numpy as np
import orbax.checkpoint as ocp


def kept(losses):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, best_fn=lambda metrics: metrics["loss"], best_mode="min", enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(tempfile.mkdtemp(dir=os.getcwd()), options=options) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, args=ocp.args.StandardSave({"w": np.ones(2)}), metrics={"loss": loss})
        return manager.best_step(), list(manager.all_steps())


print("orbax-checkpoint", version("orbax-checkpoint"))
found = {}
for losses in ((0.5, 0.3, 0.7), (0.5, 0.3, math.nan), (0.3, math.nan, 0.5, 0.7)):
    best, steps = kept(losses)
    found[str(losses)] = best, steps
    print(f"losses {losses}: best step {best}, kept {steps}")

expected = [(1, [1]), (2, [2]), (2, [2])]
assert list(found.values()) == expected, "NaN is ordered in another way now"
END
