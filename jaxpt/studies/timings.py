"""What `jaxpt.tune` returns: the engine that it chose, and the times of all candidates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpt.devices.execution import ReplicaAxis
from jaxpt.engine.engine import Engine
from jaxpt.results.summary import columns


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one candidate; None where it was not timed.

    Attributes:
        part: "execution": how the replicas are executed; "evaluation": how many examples are evaluated at a time.
        replica_axis: as in `Engine`.
        replicas_at_once: as in `Engine`.
        evaluation_batch: as in `Engine`.
        step: seconds of one training step of all replicas; the median over the rounds.
        evaluation: seconds of the evaluations of one period; the median.
        period: seconds of a period, `every` steps and its evaluations; the median. Of candidates of the part
            "evaluation" only the evaluations.
        least: the least of them.
        most: the greatest of them.
        rounds: how many rounds it took part in; it left the race when it was clearly slower than the fastest.
        compile_seconds: time to trace and compile its programs.
        given: whether the engine had these settings already.
        chosen: whether it is the fastest of its part.
        refusal: why it was not timed: it does not fit in memory.
    """

    part: str
    replica_axis: ReplicaAxis
    replicas_at_once: int
    evaluation_batch: int
    step: float | None = None
    evaluation: float | None = None
    period: float | None = None
    least: float | None = None
    most: float | None = None
    rounds: int = 0
    compile_seconds: float | None = None
    given: bool = False
    chosen: bool = False
    refusal: str | None = None


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The engine with the fastest settings, and what all candidates took; `print` it, or take `as_dict`.

    Attributes:
        engine: the given engine with the `replica_axis`, `replicas_at_once` and `evaluation_batch` that were fastest.
        rows: the candidates, in the order of the table.
        device: the number and the kind of the devices.
        kept: whether the choice comes from the directory; nothing was timed then.
        note: what was left as it is, and why; None if nothing was.
    """

    engine: Engine
    rows: tuple[Timing, ...]
    device: str
    kept: bool = False
    note: str | None = None

    @property
    def gain(self) -> float | None:
        """How many times as long a period takes with the given settings; None if these do not fit in memory."""
        part = [row for row in self.rows if row.part == "execution"]
        old, new = next((r for r in part if r.given), None), next(r for r in part if r.chosen)
        last = next(row for row in self.rows if row.part == "evaluation" and row.chosen)
        first = next((row for row in self.rows if row.part == "evaluation" and row.given), None)
        if old is None or old.period is None or not new.period or first is None or not first.evaluation:
            return None
        # The evaluations were timed twice: what the part "evaluation" gained is a share of the period's evaluations.
        saved = (new.evaluation or 0.0) * (1 - (last.evaluation or 0.0) / first.evaluation)
        return old.period / (new.period - saved)

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings chosen, the rows and the rest as plain numbers and text, which JSON can hold."""
        return {
            "device": self.device,
            "replica_axis": self.engine.replica_axis,
            "replicas_at_once": self.engine.replicas_at_once,
            "evaluation_batch": self.engine.evaluation_batch,
            "gain": self.gain,
            "note": self.note,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        engine = self.engine
        title = f"{self.device}: {engine.num_replicas} replicas, periods of {engine.every} steps"
        execution = [
            (
                "replica_axis",
                "at once",
                "step, ms",
                "evaluations, ms",
                "period, ms",
                "range",
                "rounds",
                "compiled, s",
                "",
            )
        ]
        evaluation = [("evaluation_batch", "evaluations, ms", "range", "rounds", "compiled, s", "")]
        for row in self.rows:
            range_ = "-" if row.least is None else f"{_ms(row.least)} to {_ms(row.most)}"
            marks = [word for word, is_so in (("given", row.given), ("chosen", row.chosen)) if is_so]
            compiled = "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
            last = (
                str(row.rounds or "-"),
                compiled,
                ", ".join(marks if row.refusal is None else [*marks, "does not fit"]),
            )
            if row.part == "evaluation":
                evaluation.append((str(row.evaluation_batch), _ms(row.evaluation), range_, *last))
            else:
                times = (_ms(row.step), _ms(row.evaluation), _ms(row.period), range_)
                at_once = str(row.replicas_at_once) if row.replica_axis == "map" else "-"
                execution.append((row.replica_axis, at_once, *times, *last))
        lines = [title + (", as kept in the directory" if self.kept else ""), *columns(execution)]
        lines += ["", *columns(evaluation)]
        if self.gain is not None:
            lines += ["", f"with the given settings a period takes {self.gain:.2f} times as long"]
        return "\n".join(lines if self.note is None else [*lines, self.note])


def from_kept(engine: Engine, found: Mapping[str, Any]) -> Tuned:
    """Returns a choice that was kept as `Tuned.as_dict`, for the engine as the user gave it."""
    names = ("replica_axis", "replicas_at_once", "evaluation_batch")
    rows = tuple(Timing(**row) for row in found["rows"])
    chosen = dataclasses.replace(engine, **{name: found[name] for name in names})
    return Tuned(chosen, rows, found["device"], kept=True, note=found["note"])


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
