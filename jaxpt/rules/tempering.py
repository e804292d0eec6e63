"""Parallel tempering: adjacent rungs swap by the Metropolis rule."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxpt.core import tree
from jaxpt.core.ladder import Ladder
from jaxpt.core.types import AnyArray, Info, Move, Observation
from jaxpt.rules.exchange import energy_spread, exchange, replicas_on
from jaxpt.rules.pairing import Pairing, check_pairing, named, random_adjacent
from jaxpt.rules.rule import Rule
from jaxpt.rules.tuning import Tuning, begin, observe, settle_C, tune_C, tune_ladder


@jax.tree_util.register_static
class _Word(str):
    """The word "scaled" or "auto" as a pytree without leaves, so that it may stand where numbers do."""

    __slots__ = ()


@tree.register(
    data=("C", "strength", "target", "settle", "tuning"),
    meta=("pairing", "adapt_ladder", "noise_corrected", "window", "swap_while_tuning"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Tempering(Rule):
    """Replica exchange over one ladder, or over several in turn (period t: ladder t modulo their number).

        >>> rule = jaxpt.Tempering()  # nothing by hand
        >>> rule = jaxpt.Tempering(C=100.0)  # the paper's: a fixed C
        >>> rule = jaxpt.Tempering(1.0, "deo", adapt_ladder=True, swap_while_tuning=True)  # sampling
        >>> tempered = dataclasses.replace(engine, rule=jaxpt.Tempering(C=3.0))  # compiles nothing

    By default energies are measured in units of their own spread, so nothing has to be tuned, and the rule follows them
    as they fall. Tuning, for those who ask for it, runs on the device and ends: ladders adapt during burn-in and are
    fixed from its end on; C="auto" is frozen `settle` exchanges later. `trace.info` records the C and the beta of every
    exchange.

    Args:
        C: "scaled", the default; or the factor between energies and inverse temperatures, in the paper's rule.
            "scaled": two neighbours swap with probability min(1, exp(strength (E_i - E_{i+1}) / spread)), where the
            spread is the median absolute deviation of the energies of all replicas in this period. Only the order of
            the rungs counts, not their beta; with two replicas the exponent is always -2 or +2 strength. `trace.info`
            has strength / spread as C, and the rungs' numbers as beta.
            A number is traced, so a new value compiles nothing. 1 samples exp(-beta E) exactly if replicas sample
            exp(-beta E) between exchanges (Langevin noise). For training losses it is a free parameter (arXiv
            1909.04013 uses 20 to 300,000). With several ladders, one number for all or one for each, in the order of
            their sorted names. "auto" finds a C for each ladder at which the mean acceptance is `target`: first from
            the differences of energies in the last `window` periods of burn-in (see
            `jaxpt.rules.tuning.balanced_acceptance`), then from the first exchanges.
        pairing: the adjacent pairs that are offered a swap: `random_adjacent`, `seo` or `deo`, by name; or a function
            (key, turn, num_rungs) -> bool[num_rungs - 1] whose pairs do not share a rung. Static; the engine tries it
            for 512 turns.
        strength: for C="scaled", the exponent for energies that are one spread apart (traced). 0 accepts every swap; a
            large one sorts.
        target: mean acceptance probability for C="auto". One half is best under DEO (arXiv 1905.02939).
        adapt_ladder: move the rungs during burn-in until all pairs reject equally often; the ends are fixed. Each
            ladder moves once in `window` of its periods (algorithm 4 of arXiv 1905.02939). Its other hyperparameters
            follow, see `jaxpt.core.ladder.respaced`. If replicas are trapped without swaps, their energies mislead and
            can make a good ladder worse; use `swap_while_tuning` then. A ladder with a diverged replica does not move.
            Needs `window` periods of burn-in per ladder.
        noise_corrected: correct for the noise of energies from a probe batch: the log acceptance ratio is lowered by
            half its variance (see `noise_correction`); `trace.info.correction` records by how much. The variance is
            estimated from the paired per-example energies. Needs the engine's `probe`.
        window: periods of burn-in that tuning uses (static).
        settle: exchanges of each ladder after burn-in during which C="auto" still follows the observed acceptance, in
            shrinking steps; 0 freezes C at the end of burn-in. In training, swaps change the energies (a replica that
            moves to a colder rung improves at once), so a C from burn-in alone can miss the target.
        swap_while_tuning: also offer swaps during burn-in, as algorithm 4 of arXiv 1905.02939 does (static). Right for
            sampling, where replicas must travel along a ladder to judge it. In training, burn-in lets the rungs
            separate before replicas move.

    Raises:
        ValueError: C is neither "scaled" nor "auto" nor positive and finite; strength is negative or not finite, or
            given with another C; no such pairing; target is not between 0 and 1, or given with C="scaled"; window or
            settle is out of range; adapt_ladder without a C; swap_while_tuning is set but nothing is tuned.

    Attributes:
        tuning: the tuning state, with the C that is tuned; None if nothing is tuned.
    """

    C: Float[AnyArray, " *L"] | Sequence[float] | float | str = "scaled"
    pairing: Pairing | str = random_adjacent
    strength: Float[Array, ""] | float = dataclasses.field(default=1.0, kw_only=True)
    target: Float[Array, ""] | float = dataclasses.field(default=0.5, kw_only=True)
    adapt_ladder: bool = dataclasses.field(default=False, kw_only=True)
    noise_corrected: bool = dataclasses.field(default=False, kw_only=True)
    window: int = dataclasses.field(default=32, kw_only=True)
    settle: Int[Array, ""] | int = dataclasses.field(default=64, kw_only=True)
    swap_while_tuning: bool = dataclasses.field(default=False, kw_only=True)
    tuning: Tuning | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        word = isinstance(self.C, str) and self.C in ("scaled", "auto")
        C, auto = _Word(self.C) if word else _as_numbers(self.C), word and self.C == "auto"
        if not isinstance(self.strength, int | float | np.number) or not 0 <= self.strength < np.inf:
            raise ValueError(f"strength must be a finite number, 0 or more, but it is {self.strength!r}")
        if not isinstance(self.target, int | float | np.number) or not 0 < self.target < 1:
            raise ValueError(f"target must be an acceptance probability between 0 and 1, but it is {self.target!r}")
        for name, low in {"window": 1, "settle": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, but it is {value!r}")
        set_field = partial(object.__setattr__, self)
        set_field("C", C)
        set_field("strength", float(self.strength))  # numbers of one type: another one compiles nothing
        set_field("pairing", named(self.pairing))
        set_field("tuning", begin(1, 1, self.window, auto=auto) if auto or self.adapt_ladder else None)
        if self.adapt_ladder and self.scaled:
            raise ValueError(
                'adapt_ladder=True moves the rungs by their beta and a C, which C="scaled" does not use; give C="auto" '
                "or a number"
            )
        if self.strength != 1 and not self.scaled:
            raise ValueError(
                f'strength={self.strength:g} would change nothing: it is the exponent of C="scaled", but C is {C!r}; '
                "leave one of them out"
            )
        if self.target != 0.5 and self.scaled:
            raise ValueError(
                f'target={self.target:g} would change nothing, since C="scaled" is not tuned; give C="auto", or a '
                "strength"
            )
        if self.swap_while_tuning and self.tuning is None:
            raise ValueError(
                'swap_while_tuning=True, but nothing is tuned: add C="auto" or adapt_ladder=True, or give the engine '
                "burn_in=0 for swaps from the start"
            )

    @property
    def auto(self) -> bool:
        """Whether C is tuned."""
        return isinstance(self.C, _Word) and self.C == "auto"

    @property
    def scaled(self) -> bool:
        """Whether energies are measured in units of their spread."""
        return isinstance(self.C, _Word) and self.C == "scaled"

    def check(self, engine: Any) -> None:
        """Raises ValueError if C, pairing, burn-in or probe of an engine do not fit this rule."""
        counts, ladders = np.shape(self.C), sorted(engine.ladders)
        if counts not in ((), (len(ladders),)):
            raise ValueError(
                f"C must be one number, or one for each ladder ({', '.join(ladders)}), but there are {counts[0]}"
            )
        check_pairing(named(self.pairing), engine.num_replicas)
        turns = engine.burn_in // (engine.every * len(ladders))
        if self.adapt_ladder and turns < self.window:
            raise ValueError(
                f"adapt_ladder=True adapts once in window={self.window} periods of burn-in per ladder, but burn_in="
                f"{engine.burn_in} holds {turns}; take a longer burn_in or a shorter window"
            )
        search = getattr(engine, "beginning", None)
        if self.auto and search is not None and search.share is None and engine.burn_in < search.end + engine.every:
            raise ValueError(
                f'C="auto" is found in burn-in after the search, which ends at step {search.end}; give burn_in='
                f"{search.end + self.window * engine.every}, say, or the default rule, Tempering(), which needs none"
            )
        if self.noise_corrected and (engine.probe or 0) < 2:
            raise ValueError(
                "noise_corrected=True allows for the noise of energies on a probe batch; give the engine probe=512, "
                "say (at least 2), or leave it out: energies on the whole validation split have no such noise"
            )

    def init(self, ladders: Mapping[str, Ladder]) -> "Tempering":
        """Returns the rule at the start of a run over these ladders."""
        if self.tuning is None:
            return self
        count, rungs = len(ladders), next(iter(ladders.values())).num_rungs
        tuning = begin(count, rungs, self.window, auto=self.auto)
        return _replace(self, tuning=jax.tree.map(jnp.asarray, tuning))

    def propose(self, key: Key[Array, ""], seen: Observation) -> tuple[Move, "Tempering", Info]:
        """Exchanges the ladder whose turn it is (see `jaxpt.Rule`)."""
        ladders, energy = seen.ladders, seen.energy
        names, ladder = list(ladders), seen.turn % len(ladders)
        beta = jnp.stack([ladders[name].beta for name in names])[ladder]
        before = jnp.stack([seen.rung[name] for name in names])
        rule = self
        if self.tuning is not None:
            rule = self._observe(ladder, beta, energy, before[ladder], seen.variance)
            if seen.search is not None:  # its energies are those of another ladder, whose rates fall to zero
                rule = jax.tree.map(partial(jnp.where, seen.search), self, rule)
        if self.scaled:
            C, beta = self.strength / energy_spread(energy), jnp.arange(len(energy), 0, -1, dtype=beta.dtype)
        else:
            C = rule._factors(len(names))[ladder]
        after, info = exchange(
            key,
            beta,
            energy,
            before[ladder],
            C=C,
            pairing=self.pairing,
            turn=seen.turn // len(ladders),
            allowed=seen.allowed | rule._early(ladder, seen.cooldown),
            variance=seen.variance,
        )
        rungs = before.at[ladder].set(after)
        rung = {name: rungs[i] for i, name in enumerate(names)}
        if self.tuning is not None:
            finite = jnp.isfinite(energy)[replicas_on(before[ladder])]
            # A ladder without any exchange does not begin to move in the cooldown.
            over = seen.allowed if seen.cooldown is None else seen.allowed | seen.cooldown
            rule, ladders = rule._tune(ladder, ladders, info, finite[:-1] & finite[1:], seen.allowed, over)
        permuted = {key: v[rung[name]] for name in names for key, v in ladders[name].values.items()}
        move = Move(rung, {**seen.hyper, **permuted}, ladders=dict(ladders) if self.adapt_ladder else None)
        return move, rule, info._replace(ladder=ladder)

    def _factors(self, num_ladders: int) -> Float[Array, " L"]:
        """Returns the C of each ladder: the tuned ones, or those given."""
        C: Any = self.C if self.tuning is None or self.tuning.C is None else self.tuning.C
        return jnp.broadcast_to(jnp.asarray(C), (num_ladders,))

    def _early(self, ladder: Array, cooldown: Array | None) -> Bool[Array, ""] | bool:
        """Returns whether swaps are offered during burn-in."""
        if self.tuning is None or not self.swap_while_tuning:
            return False
        early = self.tuning.exchanges[ladder] == 0
        return early if cooldown is None else early & ~cooldown

    def _observe(self, ladder: Array, beta: Array, energy: Array, rung: Array, variance: Array | None) -> "Tempering":
        """Returns the rule with this period's energies recorded and C tuned to them."""
        tuning: Any = self.tuning
        replica, step = replicas_on(rung), beta[:-1] - beta[1:]
        difference = energy[replica[:-1]] - energy[replica[1:]]
        noise = jnp.zeros_like(step) if variance is None else step**2 * variance[replica[:-1], replica[1:]]
        tuning = observe(tuning, ladder, step * difference, noise)
        if self.auto:
            tuning = tune_C(tuning, ladder, self.target)
        return _replace(self, tuning=tuning)

    def _tune(
        self, ladder: Array, ladders: Mapping[str, Ladder], info: Info, healthy: Array, allowed: Array, over: Array
    ) -> tuple["Tempering", Mapping[str, Ladder]]:
        """Returns the rule and the ladders for the next period."""
        C = self._factors(len(ladders))
        tuning: Any = self.tuning
        if self.adapt_ladder:
            tuning, ladders = tune_ladder(tuning, ladder, ladders, C[ladder], over)
        if self.auto:
            done = tuning.exchanges[ladder]
            settled = settle_C(C[ladder], done, info.attempted & healthy, info.probability, self.target)
            C = C.at[ladder].set(jnp.where(allowed & (done < self.settle), settled, C[ladder]))
            tuning = tuning._replace(C=C)
        tuning = tuning._replace(exchanges=tuning.exchanges.at[ladder].add(allowed.astype(jnp.int32)))
        return _replace(self, tuning=tuning), ladders


def _as_numbers(C: Any) -> Any:
    """Returns C as given, or as an array if it is a list.

    Raises:
        ValueError: it is not positive and finite, one number or a row of them.
    """
    if isinstance(C, jax.core.Tracer):
        raise ValueError(
            "C is traced, but a rule is made of known numbers; make it outside jit, and hand the engine that has it to "
            "the function as an argument: another C compiles nothing"
        )
    try:
        numbers = np.full((), np.nan) if isinstance(C, str) else np.asarray(C).astype(np.float64)
    except (TypeError, ValueError):  # for example lists of lists of different lengths
        numbers = np.full((), np.nan)
    if numbers.ndim > 1 or not numbers.size or not np.all((numbers > 0) & (numbers <= np.finfo(np.float32).max)):
        raise ValueError(
            f'C must be "scaled" or "auto", or positive and finite, one number or one for each ladder, but it is {C!r}'
        )
    return np.asarray(C, np.float32) if isinstance(C, Sequence) else C


def _replace(rule: Tempering, **changes: Any) -> Tempering:
    """Returns a copy with changes; unlike `dataclasses.replace` it checks nothing, so numbers may be traced."""
    changed = copy.copy(rule)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed
