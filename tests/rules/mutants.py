"""The exchange as it is, and with one mistake each: what the proofs must tell apart."""

import types
from pathlib import Path

import jaxpt

ROOT = Path(jaxpt.__file__).parent
PARTS = {"exchange": "rules/exchange.py", "pairing": "rules/pairing.py"}

MUTANTS = {
    "flipped sign": ("exchange", "(energy_i - energy_j)\n    log", "(energy_j - energy_i)\n    log"),
    "C left out": ("exchange", "log_ratio = C * (", "log_ratio = ("),
    "no correction for noise": ("exchange", "log_ratio - correction", "log_ratio"),
    "missing half variance": ("exchange", "* variance / 2", "* variance"),
    "correction of the wrong pair": (
        "exchange",
        "noise_correction(beta[:-1], beta[1:], variance[replica[:-1], replica[1:]], C)",
        "noise_correction(beta[:-1], beta[1:], variance[rung[:-1], rung[1:]], C)",
    ),
    "parity held": ("pairing", "_parity(turn % 2", "_parity(turn * 0"),
    "coin held": ("pairing", "jax.random.bernoulli(key)", "jnp.ones((), bool)"),
    "swap applied twice": (
        "exchange",
        "    ladder, C = jnp.zeros",
        "    moved = moved + up[moved].astype(int) - down[moved].astype(int)\n    ladder, C = jnp.zeros",
    ),
    "two uniforms for one pair": (
        "exchange",
        "jnp.concatenate([closed, accepted])\n",
        "jnp.concatenate([closed, attempted & (jnp.log(jax.random.uniform(key_pair, (beta.shape[0] - 1,))) "
        "< log_alpha)])\n",
    ),
    "one uniform for all pairs": (
        "exchange",
        "jax.random.uniform(key_swap, log_alpha.shape, log_alpha.dtype)",
        "jax.random.uniform(key_swap, (), log_alpha.dtype)",
    ),
    "energies of the replica of the rung's number": ("exchange", "on_rung = energy[replica]", "on_rung = energy"),
    "a pair that was not offered swaps": ("exchange", "accepted = attempted & (", "accepted = ("),
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
    exchange, pairing = modules.values()
    return types.SimpleNamespace(
        exchange=exchange.exchange, seo=pairing.seo, deo=pairing.deo, random_adjacent=pairing.random_adjacent
    )
