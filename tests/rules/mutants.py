"""The exchange as it is, and with one mistake each: what the proofs must tell apart."""

import types
from pathlib import Path

import jaxpt

ROOT = Path(jaxpt.__file__).parent
PARTS = {"metropolis": "metropolis.py", "pairing": "pairing.py", "tempering": "rules/tempering.py"}

MUTANTS = {
    "flipped sign": ("metropolis", "(energy_i - energy_j)\n    log", "(energy_j - energy_i)\n    log"),
    "C left out": ("metropolis", "log_ratio = C * (", "log_ratio = ("),
    "no correction for noise": ("metropolis", "log_ratio - correction", "log_ratio"),
    "missing half variance": ("metropolis", "* variance / 2", "* variance"),
    "correction of the wrong pair": (
        "tempering",
        "noise_correction(beta[:-1], beta[1:], variance[replica[:-1], replica[1:]], C)",
        "noise_correction(beta[:-1], beta[1:], variance[rung[:-1], rung[1:]], C)",
    ),
    "parity held": ("pairing", "_parity(turn % 2", "_parity(turn * 0"),
    "coin held": ("pairing", "jax.random.bernoulli(key)", "jnp.ones((), bool)"),
    "swap applied twice": (
        "tempering",
        "    ladder, C = jnp.zeros",
        "    moved = moved + up[moved].astype(int) - down[moved].astype(int)\n    ladder, C = jnp.zeros",
    ),
    "two uniforms for one pair": (
        "tempering",
        "jnp.concatenate([closed, accepted])\n",
        "jnp.concatenate([closed, attempted & (jnp.log(jax.random.uniform(key_pair, (beta.shape[0] - 1,))) "
        "< log_alpha)])\n",
    ),
    "one uniform for all pairs": (
        "tempering",
        "jax.random.uniform(key_swap, log_alpha.shape, log_alpha.dtype)",
        "jax.random.uniform(key_swap, (), log_alpha.dtype)",
    ),
    "energies of the replica of the rung's number": ("tempering", "on_rung = energy[replica]", "on_rung = energy"),
    "a pair that was not offered swaps": ("tempering", "accepted = attempted & (", "accepted = ("),
}


def load(name=None):
    """The modules of the exchange in one namespace, from their source, with a mutant's change if one is named."""
    sources = {part: (ROOT / path).read_text() for part, path in PARTS.items()}
    if name is not None:
        part, old, new = MUTANTS[name]
        assert sources[part].count(old) == 1, f"the mutant {name!r} no longer fits the source"
        sources[part] = sources[part].replace(old, new)
    modules = {}
    for part, source in sources.items():
        module = types.ModuleType(f"mutant_{part}")
        exec(compile(source, f"{part}.py", "exec"), module.__dict__)
        modules[part] = module
    metropolis, pairing, tempering = modules.values()
    tempering.log_acceptance, tempering.noise_correction = metropolis.log_acceptance, metropolis.noise_correction
    return types.SimpleNamespace(
        exchange=tempering.exchange, seo=pairing.seo, deo=pairing.deo, random_adjacent=pairing.random_adjacent
    )
