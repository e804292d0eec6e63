#!/usr/bin/env bash
# optax 0.2.8: MultiSteps.update takes extra arguments and hands them on, but gradient_transformation() returns the class
# GradientTransformation, for which optax.chain hands none on. So optimisers that need `value` (polyak_sgd) work inside
# MultiSteps alone, and end in a TypeError about a missing argument when the same object is a part of a chain.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'END'
import jax.numpy as jnp
import optax

params, gradient = jnp.ones(2), jnp.ones(2)
alone = optax.MultiSteps(optax.polyak_sgd(), 2)
transformation = alone.gradient_transformation()
chained = optax.chain(optax.clip(1.0), transformation)


def outcome(optimizer):
    try:
        return optimizer.update(gradient, optimizer.init(params), params, value=1.0)[0].tolist()
    except TypeError as error:
        return f"TypeError: {error}"


print("optax", optax.__version__, "gradient_transformation() is a", type(transformation).__name__)
print("MultiSteps(polyak_sgd):", outcome(alone))
print("chain(clip, MultiSteps(polyak_sgd)):", outcome(chained))
assert not isinstance(transformation, optax.GradientTransformationExtraArgs), "the class takes extra arguments now"
assert outcome(alone) == [0.0, 0.0] and "'value'" in outcome(chained), "a chain hands the value on now"
END
