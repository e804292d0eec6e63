"""A one-page diagnosis of tempering in a run, with verdicts."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxpt.core.state import Trace
from jaxpt.diagnostics.barrier import round_trip_rate
from jaxpt.diagnostics.exchanges import acceptance, check_trace, exchanges, ladder_name, offered, windows
from jaxpt.diagnostics.index import (
    energy_by_rung,
    flow,
    move_acceptance,
    relaxation_time,
    round_trips_per_exchange,
    samples,
    time_share,
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The contents of `diagnose`'s page; means over the seeds, if there are several. `str()` is the page.

    Attributes:
        ladder: the ladder's name.
        exchanges: its number of exchanges.
        acceptance: mean acceptance probability of each pair.
        barrier: Lambda.
        suggested: number of replicas that the barrier suggests.
        trips: round trips of all replicas of one seed.
        expected_trips: expected round trips, if energies mixed between exchanges.
        verdicts: problems and advice, in words; empty if there are no problems.
        page: the whole page as text.
    """

    ladder: str
    exchanges: int
    acceptance: Float[np.ndarray, " pairs"]
    barrier: float
    suggested: int
    trips: float
    expected_trips: float
    verdicts: tuple[str, ...]
    page: str = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.page


def diagnose(trace: Trace, ladder: str | None = None) -> None:
    """Prints a page: acceptance pair by pair, barrier, round trips, and verdicts with advice.

    >>> jaxpt.diagnose(result.trace)
    ladder learning_rate: 4 rungs, 20 exchanges
    C 100
    rung       beta     energy  flow longest stay   acceptance with the next, and over time
       0         20 ...

    Args:
        trace: `result.trace`, or a stretch of it.
        ladder: the ladder's name; by default prints a page for every ladder.
    """
    check_trace(trace)
    for name in [ladder] if ladder else list(trace.rung):
        print(diagnosis(trace, name))


def diagnosis(trace: Trace, ladder: str | None = None) -> Diagnosis:
    """Returns the diagnosis that `diagnose` prints.

    Raises:
        ValueError: there are several ladders and none is chosen, or no such ladder.
    """
    name = ladder_name(trace, ladder)
    made = exchanges(trace, name)
    count = len(made.step)
    if not count:
        verdict = "no swap was offered: the rule makes none, or the run ended within its burn-in or search"
        nothing = np.full(np.shape(trace.rung[name])[-1] - 1, np.nan)
        page = f"ladder {name}: {verdict}\n"
        return Diagnosis(name, 0, nothing, float("nan"), 0, 0.0, 0.0, (verdict,), page)
    accepted = _over_seeds(acceptance(trace, name))
    stretches = [_over_seeds(acceptance(part, name)) for part in windows(made, min(4, count))]
    rejected = np.nan_to_num(1 - accepted, nan=0.5)
    total = float(rejected.sum())
    trips = float(np.mean(round_trips_per_exchange(trace, name))) * count
    pairing = "deo" if _alternates(np.asarray(made.info.attempted)) else _over_seeds(offered(trace, name))
    expected = float(round_trip_rate(rejected, pairing)) * count
    energies = _over_seeds(energy_by_rung(trace, name))
    suggested = max(2, round(2 * total) + 1)
    factor = "strength" if _is_scaled(made) else "C"
    searched = _was_searched(trace)
    verdicts = (
        *_on_pairs(accepted, _error(made), stretches, factor, _to_even_out(trace, name, factor, searched)),
        # After a search the ladder is short and exchanges only sort.
        *([] if searched else _on_travel(trips, expected, len(energies), count, deo=isinstance(pairing, str))),
        *_on_size(accepted, suggested, factor),
        *_on_energies(made, name, energies, factor, searched),
    )
    page = _page(name, made, accepted, stretches, energies)
    page += (
        f"barrier Lambda {total:.2f}: about {suggested} replicas for an acceptance near one half\n"
        f"round trips {trips:.1f}; {expected:.1f} if energies mixed between exchanges\n"
        f"relaxation time {float(np.mean(relaxation_time(trace, name))):.3g} exchanges\n"
    )
    if made.reported is not None and "acceptance" in made.reported:
        moves = _over_seeds(move_acceptance(trace, name))
        page += f"moves accepted on each rung: {', '.join(f'{share:.0%}' for share in moves)}\n"
    if searched:
        page += "the ladder contracted in a search; exchanges after it sort replicas, round trips are not their aim\n"
    page += "verdicts:\n" + "".join(f"- {verdict}\n" for verdict in verdicts or ("nothing to complain about",))
    return Diagnosis(name, count, accepted, total, suggested, trips, expected, verdicts, page)


def _page(name: str, made: Trace, accepted: np.ndarray, stretches: list[np.ndarray], energies: np.ndarray) -> str:
    """Returns the page's head and its table of rungs and pairs."""
    seeds = np.asarray(made.info.attempted).ndim > 2
    count, rungs = len(made.step), len(energies)
    C = np.asarray(np.nan if made.info.C is None else made.info.C[-1], np.float64)
    head = f"ladder {name}: {rungs} rungs, {count} exchanges"
    head += f", means over {np.asarray(made.info.attempted).shape[1]} seeds\n" if seeds else "\n"
    head += f"C {np.mean(C):.4g}" + (f" (from {C.min():.4g} to {C.max():.4g} over the seeds)" if np.ptp(C) else "")
    head += (
        ", strength / spread of the energies at the end; beta only numbers the rungs\n" if _is_scaled(made) else "\n"
    )
    if made.info.correction is not None:
        taken = np.nanmean(np.where(made.info.attempted, made.info.correction, np.nan))
        head += f"noise correction: {taken:.3g} off the log acceptance ratio in the mean\n"
    beta = _beta(made, rungs)
    share = _over_seeds(time_share(made, name).max(-2))
    travelled = _over_seeds(flow(made, name))
    columns = f"{'rung':>4} {'beta':>10} {'energy':>10} {'flow':>5} {'longest stay':>12}"
    lines = [columns + "   acceptance with the next, and over time"]
    for k in range(rungs):
        row = f"{k:>4} {beta[k]:>10} {energies[k]:>10.4g} {travelled[k]:>5.2f} {share[k]:>12.0%}"
        if k < rungs - 1:
            over_time = (part[k] for part in stretches)
            row += f"   {accepted[k]:>6.1%}  " + " ".join("   -" if np.isnan(p) else f"{p:>4.0%}" for p in over_time)
        lines.append(row)
    return head + "\n".join(lines) + "\n"


def _beta(made: Trace, rungs: int) -> list[str]:
    """Returns the inverse temperatures as text; a mean over seeds of different ladders would be that of no rung."""
    if made.info.beta is None:
        return ["-"] * rungs
    each = np.asarray(made.info.beta, np.float64)[-1].reshape(-1, rungs)
    return [f"{b:.4g}" if (each[:, k] == b).all() else "by seed" for k, b in enumerate(each[0])]


def _error(made: Trace) -> float:
    """Returns the approximate standard error of a pair's mean acceptance, as if its offers were independent."""
    where = np.asarray(made.info.attempted)
    spread = np.std(np.asarray(made.info.probability)[where])
    return float(spread / np.sqrt(max(1.0, where.sum() / where.shape[-1])))


def _on_pairs(accepted: np.ndarray, error: float, stretches: list[np.ndarray], factor: str, remedy: str) -> list[str]:
    """Returns verdicts on single pairs, or on all pairs.

    `factor` names what makes swaps rarer, `remedy` says what makes acceptance even.
    """
    found = []
    if np.nanmin(accepted) > 0.9:
        found.append(f"all pairs swap nearly always, so the ladder does not sort: raise {factor}, or spread the rungs")
    for k, share in enumerate(accepted):
        if np.isnan(share):
            found += [f"rungs {k} and {k + 1} were never offered a swap: run longer"]
        if share < 0.05:
            found += [
                f"rungs {k} and {k + 1} exchanged {100 * share:.1f} % of the time: add a rung between, or lower "
                f"{factor}"
            ]
    if np.nanstd(accepted) > max(0.15, 2 * error) and len(accepted) > 1:
        found.append(f"acceptance is uneven, {np.nanmin(accepted):.0%} to {np.nanmax(accepted):.0%}: {remedy}")
    means = [float(np.nanmean(part)) for part in stretches if np.isfinite(part).any()]
    if len(means) > 1 and abs(means[-1] - means[0]) > 0.2:
        only = ": C fits a part of it only" if factor == "C" else ""
        found.append(f"acceptance went from {means[0]:.0%} to {means[-1]:.0%} in the course of the run{only}")
    return found


def _to_even_out(trace: Trace, name: str, factor: str, searched: bool) -> str:
    """Returns what makes the acceptance of the pairs more even."""
    if searched:
        return "a smaller factor of the search, jaxpt.Search(0.1, factor=...), brings all rungs closer together"
    if factor != "C":
        return "move the values of the rungs, closer together where pairs swap rarely"
    if _was_respaced(trace, name):
        return (
            "the ladder was adapted, but on other energies: lengthen the burn-in, or set beta = "
            "diagnostics.barrier(trace).rungs(M)"
        )
    return "space the rungs anew (adapt_ladder=True, or beta = diagnostics.barrier(trace).rungs(M))"


def _on_travel(trips: float, expected: float, rungs: int, count: int, deo: bool) -> list[str]:
    """Returns verdicts on the replicas' travel along the ladder."""
    if expected < rungs:
        lasts = f"about {rungs * count / expected:.0f}" if expected > 0 else "for ever, not so many"
        pairing = "" if deo else "use pairing='deo', "
        return [
            f"a round trip takes {lasts} exchanges, and there were {count}, so the ladder sorts rather than mixes: "
            f"exchange more often (smaller every), {pairing}or take fewer rungs"
        ]
    # The stretch cuts a replica's first and last trip, which costs it about one trip.
    if expected > 3 * rungs and trips < (expected - rungs) / 3:
        return [
            f"{trips:.0f} round trips instead of {expected:.0f}: replicas keep their energies, and so their places, "
            "from one exchange to the next; raise every, or read this as sorting rather than mixing"
        ]
    return []


def _on_size(accepted: np.ndarray, suggested: int, factor: str) -> list[str]:
    """Returns verdicts on the number of rungs."""
    rungs = len(accepted) + 1
    if suggested >= 1.4 * rungs:
        return [f"the barrier calls for about {suggested} replicas, there are {rungs}: add rungs, or lower {factor}"]
    if rungs > 2 * suggested:
        return [
            f"the barrier calls for about {suggested} replicas, there are {rungs}: fewer would do, or raise {factor}"
        ]
    return []


def _on_energies(made: Trace, name: str, energies: np.ndarray, factor: str, searched: bool) -> list[str]:
    """Returns verdicts on the energies."""
    cooled = made.cooldown is not None
    found = []
    broken = ~np.isfinite(made.valid["energy"])
    if broken.all():
        found.append("no energy is finite: look at the data, and at the loss where init draws the weights")
    elif broken.any():
        respawns = made.info.parents is None and searched
        remedy = 'give Engine(diverged="respawn")' if respawns else "lower the hottest rung's value"
        found.append(f"{broken.mean():.1%} of all energies are not finite: {remedy}")
    elif (
        not (searched and cooled) and len(made.step) > 3 and energies[0] - energies[-1] > 2 * _energy_error(made, name)
    ):
        remedy = "end with a cooldown (cooldown=0.3)" if searched else f"lengthen the burn-in, or raise {factor}"
        found.append(
            f"the coldest rung holds the higher energy ({energies[0]:.4g}, the hottest {energies[-1]:.4g}): cold "
            f"replicas train more slowly than swaps sort them; {remedy}"
        )
    if made.info.correction is not None:
        taken = float(np.nanmean(np.where(made.info.attempted, made.info.correction, np.nan)))
        if taken > 1:
            found.append(
                f"noise takes {taken:.2g} off the log acceptance ratio: a larger probe would let more swaps pass"
            )
    return found


def _energy_error(made: Trace, name: str) -> float:
    """Returns the standard error of the mean difference between the coldest and the hottest rung's energies.

    Estimated from the means of eight stretches per seed, since energies of neighbouring exchanges are correlated.
    """
    on_rung = samples(made, "energy", name)
    difference = on_rung[..., 0] - on_rung[..., -1]
    means = [part.mean(0) for part in np.array_split(difference, min(8, len(difference)))]
    return float(np.std(means) / np.sqrt(max(1, np.size(means) - 1)))


def _over_seeds(values: np.ndarray) -> np.ndarray:
    """Returns the mean over leading axes; NaN only where no seed has a number."""
    flat = np.asarray(values, np.float64).reshape(-1, np.shape(values)[-1])
    known = np.isfinite(flat)
    return np.where(known.any(0), np.sum(flat, 0, where=known) / np.maximum(known.sum(0), 1), np.nan)


def _was_respaced(trace: Trace, name: str) -> bool:
    """Returns whether the ladder's inverse temperatures changed during the run, as with `adapt_ladder`."""
    if trace.info.beta is None:
        return False
    turns = np.asarray(trace.info.ladder).reshape(len(trace.step), -1)[:, 0] == list(trace.rung).index(name)
    beta = np.asarray(trace.info.beta)[turns]
    return bool((beta != beta[-1:]).any())


def _was_searched(trace: Trace) -> bool:
    """Returns whether the ends of all values on the ladders moved during the run, which only a search does.

    An adapted ladder keeps its ends; adapted step sizes move theirs, but those of the temperatures stay.
    """
    moved = []
    for values in trace.hyper.values():
        ends = np.sort(np.asarray(values, np.float64)[[0, -1]], -1)[..., [0, -1]]
        if not np.allclose(ends[0, ..., 0], ends[0, ..., 1]):  # else all replicas share it
            moved.append(not np.allclose(ends[0], ends[1], rtol=1e-3, atol=0))
    return bool(moved) and all(moved)


def _is_scaled(made: Trace) -> bool:
    """Returns whether energies were measured in units of their spread, as with `Tempering(C="scaled")`.

    C then changes from exchange to exchange, and beta is M .. 1.
    """
    if made.info.beta is None or made.info.C is None:
        return False
    beta, C = np.asarray(made.info.beta), np.asarray(made.info.C)
    return bool((beta == np.arange(beta.shape[-1], 0, -1)).all() and (C[1:] != C[:-1]).any())


def _alternates(attempted: np.ndarray) -> bool:
    """Returns whether even and odd pairs alternated, as under DEO."""
    pairs = np.arange(attempted.shape[-1])
    rows = attempted.reshape(len(attempted), -1, len(pairs))[:, 0]
    parity = (np.arange(len(rows))[:, None] + pairs) % 2 == 0
    return bool(len(rows) > 7 and ((rows == parity).all() or (rows == ~parity).all()))
