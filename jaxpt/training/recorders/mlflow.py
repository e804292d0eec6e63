"""A run's periods in MLflow."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxpt.core.extras import extra
from jaxpt.training.recorders.base import Run
from jaxpt.training.recorders.tracker import FIRST, Part, Per, Rows, Tracker, optional, plain

_METRICS, _PARAMS = 1000, 100  # most of each that MLflow takes in one call


class MLflow(Tracker):
    """Keeps every period in MLflow, by default as one MLflow run for each ladder; the x axis is the step.

        recorders=[jaxpt.MLflow("my-experiment", tracking_uri="sqlite:///mlflow.db")]  # a file, without a server
        recorders=[jaxpt.MLflow("my-experiment", per="replica")]  # one MLflow run for each replica

    The metrics have the names that `jaxpt.WandB` describes; the settings of the run are parameters. With S seeds there
    are S ladders, and as many MLflow runs, or S M for replicas.

    A run with a directory keeps the ids of its MLflow runs in DIRECTORY/trackers.json. A resumed run continues them
    with the rows that they lack, so each step is there once. The point of a last period that was short stays when the
    run becomes longer. A parameter never changes in MLflow; if a setting has, such as the number of steps, its new
    value is a tag `resumed/NAME`. Without a directory each call begins new MLflow runs.

    If MLflow fails, the run warns and goes on without it. MLflow repeats calls to a server that does not answer, and
    the run waits meanwhile; the environment variable MLFLOW_HTTP_REQUEST_MAX_RETRIES states how often.

    Args:
        experiment: the experiment's name; created if needed.
        tracking_uri: a server or a database; by default MLflow's own, the environment variable MLFLOW_TRACKING_URI or
            sqlite:///mlflow.db.
        name: name of the MLflow run, followed by the seed or replica if there are several, which share it as the tag
            `group`; by default the name of the run's directory.
        per: "ladder", one MLflow run for all replicas of a ladder, or "replica", one for each.
        tags: {name: text} further tags of the MLflow runs.
        config: further settings to show as parameters.

    Raises:
        ModuleNotFoundError: mlflow is not installed.
        ValueError: an argument has a wrong type or value.
    """

    service: ClassVar[str] = "MLflow"

    def __init__(
        self,
        experiment: str = "jaxpt",
        *,
        tracking_uri: str | None = None,
        name: str | None = None,
        per: Per = "ladder",
        tags: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, per, config)
        self._mlflow = extra("mlflow", "mlflow", "MLflow()")
        if optional("experiment", experiment) is None:
            raise ValueError("experiment must be the name of an MLflow experiment, but it is None")
        if tags is not None and not isinstance(tags, Mapping):
            raise ValueError(f"tags must be a dict of texts by their names, but it is {tags!r}")
        self._experiment, self._uri = experiment, optional("tracking_uri", tracking_uri)
        self._tags = {str(name): str(value) for name, value in (tags or {}).items()}

    @property
    def target(self) -> str:
        """The experiment that the MLflow runs belong to."""
        return f"mlflow {self._experiment}"

    def check(self, directory: Path | None) -> None:
        """Raises ValueError if MLflow cannot use the tracking URI; whether a server answers shows only later."""
        try:
            self._client = self._mlflow.MlflowClient(self._uri)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"MLflow cannot use tracking_uri={self._uri!r}; give one such as sqlite:///mlflow.db: {error}"
            ) from error

    def open(self, run: Run) -> None:
        """Begins the MLflow runs, or resumes those of the directory, see `Recorder`."""
        self._ids: dict[str, str] = {}
        super().open(run)

    def begin(self, part: Part, known: str | None, name: str | None, config: dict[str, Any]) -> tuple[str, int]:
        """Begins or resumes an MLflow run."""
        client, last = self._client, FIRST
        begun = None if known is None else self._known(known)
        wanted = {name: str(value) for name, value in _flat(config)}
        tags = {**self._tags, **({"group": self.group} if self.group else {})}
        if begun is None:
            begun = client.create_run(self._experiment_id(), run_name=name, tags=tags)
        else:
            client.update_run(begun.info.run_id, status="RUNNING")
            last = max((point.step for point in client.get_metric_history(known, "period")), default=FIRST)
            changed = {name: value for name, value in wanted.items() if begun.data.params.get(name, value) != value}
            tags |= {f"resumed/{name}": value for name, value in changed.items()}
            wanted = {name: value for name, value in wanted.items() if name not in begun.data.params}
        id = self._ids[part.label] = begun.info.run_id
        entities = self._mlflow.entities
        params = [entities.Param(name, value) for name, value in wanted.items()]
        for at in range(0, len(params), _PARAMS):
            client.log_batch(id, params=params[at : at + _PARAMS])
        client.log_batch(id, tags=[entities.RunTag(name, value) for name, value in tags.items()])
        return id, last

    def write(self, label: str, rows: Rows) -> None:
        """Logs further rows: whole ones in one call, unless a row has more numbers than a call takes."""
        make, now = self._mlflow.entities.Metric, int(1000 * time.time())
        waiting: list[Any] = []
        for step, row in rows:
            points = [make(name, value, now, step) for name, value in row.items()]
            if len(waiting) + len(points) > _METRICS:
                self._send(label, waiting)
                waiting = []
            waiting += points
        self._send(label, waiting)

    def end(self, error: BaseException | None) -> None:
        """Ends the MLflow runs: FINISHED, KILLED if a signal ended the run, or FAILED."""
        status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        for id in self._ids.values():
            self._client.set_terminated(id, status)

    def _send(self, label: str, points: list[Any]) -> None:
        for at in range(0, len(points), _METRICS):
            self._client.log_batch(self._ids[label], metrics=points[at : at + _METRICS])

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        return self._client.create_experiment(self._experiment) if found is None else found.experiment_id

    def _known(self, id: str) -> Any:
        """Returns the MLflow run with this id; None if the store does not have it, or has deleted it."""
        try:
            found = self._client.get_run(id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if found.info.lifecycle_stage == "deleted" else found


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings as (NAME/NAME, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{plain(str(name))}/")
        else:
            yield f"{before}{plain(str(name))}", value
