"""What every probe returns: a number with its unit, evidence, 95 % interval and verdict; and its JSON.

A number without support is not a number: no support is NaN with the verdict "cannot judge" and a reason,
never a good score. NaN is written as null, so that `measurements.json` is valid JSON everywhere.
"""

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

Better = Literal["higher", "lower", "target"]
Verdict = Literal["consistent", "inconsistent", "cannot judge"]
Interval = tuple[float, float]
Curve = dict[str, list[float]]

UNKNOWN_INTERVAL: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Measurement:
    """One judged number.

    `chance` is what blind guessing gets, where that is known. `curve` holds named columns of equal length for
    a figure; the first is the x axis, the others are drawn over it. `interval` is the 95 % interval of
    `value`, NaN where it cannot be known. `target` is the value wished for where `better` is "target"."""

    name: str
    value: float
    unit: str
    support: int
    better: Better
    interval: Interval = UNKNOWN_INTERVAL
    verdict: Verdict = "consistent"
    reason: str = ""
    curve: Curve = field(default_factory=dict)
    support_unit: str = "frames"
    target: float | None = None
    chance: float | None = None

    def __post_init__(self) -> None:
        if math.isinf(self.value) or any(math.isinf(bound) for bound in self.interval):
            raise ValueError(
                f"{self.name}: a measurement must be finite or NaN, got {self.value} {self.interval}"
            )
        if self.support < 0:
            raise ValueError(f"{self.name}: support must be at least 0, got {self.support}")
        if (self.support == 0 or math.isnan(self.value)) and self.verdict != "cannot judge":
            raise ValueError(
                f"{self.name}: value {self.value} on support {self.support} must be 'cannot judge', "
                f"got '{self.verdict}'; use cannot_judge(...)"
            )
        if self.support == 0 and not math.isnan(self.value):
            raise ValueError(f"{self.name}: no support must give NaN, got {self.value}")
        if self.verdict == "cannot judge" and not self.reason:
            raise ValueError(f"{self.name}: 'cannot judge' must say why; give a reason")
        if len({len(column) for column in self.curve.values()}) > 1:
            lengths = {name: len(column) for name, column in self.curve.items()}
            raise ValueError(f"{self.name}: the columns of a curve must be equally long, got {lengths}")

    @property
    def judged(self) -> bool:
        """True where the evidence allowed a verdict."""
        return self.verdict != "cannot judge"

    def __str__(self) -> str:
        """One line for a terminal."""
        if not self.judged and math.isnan(self.value):
            return f"{self.name}: cannot judge ({self.reason})"
        spread = "" if math.isnan(self.interval[0]) else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        note = f": {self.reason}" if self.reason else ""
        unit = f" {self.unit}" if self.unit else ""
        unit += "" if self.chance is None else f" (chance {self.chance:.2g})"
        evidence = f"on {self.support} {self.support_unit}, {self.verdict}"
        return f"{self.name}: {self.value:.4g}{unit}{spread} {evidence}{note}"


def cannot_judge(
    name: str,
    unit: str,
    better: Better,
    reason: str,
    *,
    support: int = 0,
    curve: Curve | None = None,
    support_unit: str = "frames",
    target: float | None = None,
) -> Measurement:
    """A measurement that abstains: NaN, with the reason; `support` counts what little evidence there was."""
    return Measurement(
        name,
        math.nan,
        unit,
        support,
        better,
        verdict="cannot judge",
        reason=reason,
        curve=curve or {},
        support_unit=support_unit,
        target=target,
    )


def mean_interval(values: Float[np.ndarray, " n"]) -> Interval:
    """95 % interval of the mean by Student's t (independent values); NaN for fewer than two values."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return UNKNOWN_INTERVAL
    half = special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(
    values: Float[np.ndarray, "n ..."],
    statistic: Callable[[np.ndarray], float],
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Interval:
    """95 % percentile bootstrap over the first axis (Efron 1979); NaN for fewer than two values."""
    if len(values) < 2:
        return UNKNOWN_INTERVAL
    picks = generator.integers(0, len(values), (resamples, len(values)))
    draws = np.array([statistic(values[pick]) for pick in picks], dtype=np.float64)
    draws = draws[np.isfinite(draws)]
    if len(draws) < resamples // 2:
        return UNKNOWN_INTERVAL
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % score interval of a proportion (Wilson 1927), honest near 0 and 1; NaN without trials."""
    if trials == 0:
        return UNKNOWN_INTERVAL
    z = float(special.ndtri(0.975))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(
    name: str,
    successes: Bool[np.ndarray, " n"],
    unit: str,
    *,
    needed: float | None = None,
    chance: float | None = None,
    note: str = "",
) -> Measurement:
    """The share of successes with its Wilson interval.

    Consistent where it is at least `needed`, or, without that, where its interval lies above chance; always,
    where neither is given.

    Args:
        name: of the measurement.
        successes: one per trial; none gives "cannot judge".
        unit: what a trial is, in the plural.
        needed: the least share that is good enough.
        chance: the share that blind guessing gets.
        note: what a success is.
    """
    if len(successes) == 0:
        return cannot_judge(name, "share", "higher", f"no {unit} to judge", support_unit=unit)
    hits = int(successes.sum())
    value, interval = float(successes.mean()), wilson_interval(hits, len(successes))
    fair = value >= needed if needed is not None else interval[0] > chance if chance is not None else True
    asked = "" if needed is None else f"{hits} of {len(successes)}; asked for {needed:.0%}"
    return Measurement(
        name,
        value,
        "share",
        len(successes),
        "higher",
        interval,
        "consistent" if fair else "inconsistent",
        note or asked,
        support_unit=unit,
        chance=chance,
    )


def orrery_version() -> str:
    """Version of the installed distribution; "not installed" when run from a bare checkout."""
    try:
        return importlib.metadata.version("orrery")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_for_nan(item) for item in value]
    return value


def to_json(measurement: Measurement) -> dict[str, Any]:
    """The measurement as plain JSON values, NaN as null."""
    return {key: _null_for_nan(value) for key, value in vars(measurement).items()}


def from_json(entry: dict[str, Any]) -> Measurement:
    """Inverse of `to_json`: null is NaN again. Raises ValueError for unknown or missing keys."""
    unknown = set(entry) - set(Measurement.__dataclass_fields__)
    if unknown or "name" not in entry:
        raise ValueError(
            f"measurement has unknown or missing keys {sorted(unknown) or ['name']}; write it with to_json"
        )
    fields = dict(entry)
    fields["value"] = _number(entry["value"])
    fields["interval"] = (_number(entry["interval"][0]), _number(entry["interval"][1]))
    fields["curve"] = {
        name: [_number(item) for item in column] for name, column in entry.get("curve", {}).items()
    }
    return Measurement(**fields)


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def write_measurements(
    path: Path | str,
    measurements: Sequence[Measurement],
    *,
    target: str,
    seed: int,
    version: str | None = None,
) -> Path:
    """Write `measurements.json` whole: beside its name first, renamed when complete."""
    path = Path(path)
    body = {
        "target": target,
        "seed": seed,
        "version": version or orrery_version(),
        "measurements": [to_json(measurement) for measurement in measurements],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)
    return path


def read_measurements(path: Path | str) -> tuple[list[Measurement], dict[str, Any]]:
    """The measurements of a file and its header (target, seed, version).

    Raises ValueError for any other format.
    """
    try:
        body = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got {error}; write it with write_measurements") from error
    if not isinstance(body, dict) or "measurements" not in body:
        raise ValueError(f"{path} must hold a list 'measurements'; write it with orrery probe or orrery demo")
    entries = cast(list[dict[str, Any]], body["measurements"])
    header = {key: body.get(key) for key in ("target", "seed", "version")}
    return [from_json(entry) for entry in entries], header
