"""What a person reads: one self-contained report.html, measurements.json beside it, and one MLflow run.

The page needs no network and no other file: pictures, charts and small videos are inside it. A number is
always shown with its unit, its evidence, its interval and its verdict; where the same protocol was run on a
reference world, that value and the ratio of the two stand beside it.
"""

import base64
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from probes.measurement import Measurement, orrery_version, write_measurements

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

MIME = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
}
LARGEST_EMBEDDED_BYTES = 12_000_000
SUBJECT, REFERENCE = "#7c6cf0", "#2a9d8f"
THEMES = {"light": ("#1d1d24", "#d9d9e3"), "dark": ("#e8e8ef", "#3a3a46")}


@dataclass(frozen=True)
class Media:
    """One video, picture or other file of a report.

    Attributes:
        path: the file; inside the report's folder if it is to be linked.
        caption: what it shows, and whether it is the subject's or the reference's.
        section: the heading under which it stands.
    """

    path: Path
    caption: str
    section: str = "What it looks like"


def write_report(
    out_dir: Path | str,
    target: str,
    seed: int,
    measurements: Sequence[Measurement],
    media: Sequence[Media] = (),
    *,
    reference: Sequence[Measurement] = (),
    subject_name: str = "subject",
    title: str = "Orrery report",
    notes: Sequence[str] = (),
    params: Mapping[str, object] | None = None,
    track: bool = True,
    experiment: str = "probes",
) -> Path:
    """Write measurements.json and report.html, and log both with the media as one MLflow run.

    Args:
        out_dir: the folder of the report; made if missing.
        target: what was measured, as the user named it.
        seed: seed of the protocol.
        measurements: the subject's numbers.
        media: what to show, in order.
        reference: numbers of the same protocol on a reference world, paired by name; stored with the prefix
            `reference/`.
        subject_name: what the subject is called in tables and charts.
        title: heading of the page.
        notes: one paragraph each, under the heading.
        params: settings for the table at the foot and for MLflow.
        track: log the run to MLflow (`MLFLOW_TRACKING_URI`, else a local SQLite store).
        experiment: MLflow's experiment.

    Returns:
        The path of report.html.

    Raises:
        ValueError: a file to show is missing, or two measurements share a name.
    """
    out_dir = Path(out_dir)
    for name in {m.name for m in measurements}:
        if sum(m.name == name for m in measurements) > 1:
            raise ValueError(f"measurement names must differ in a report, got {name!r} twice; rename one")
    for item in media:
        if not item.path.is_file():
            raise ValueError(f"{item.path} is to be shown in the report but is no file; write it first")
    out_dir.mkdir(parents=True, exist_ok=True)
    stored = [*measurements, *(replace(m, name=f"reference/{m.name}") for m in reference)]
    numbers = write_measurements(out_dir / "measurements.json", stored, target=target, seed=seed)
    settings = {"target": target, "seed": seed, "version": orrery_version(), **(params or {})}
    page = _page(title, notes, settings)
    page += _gallery(media, out_dir)
    page += f"<h2>Measurements</h2>{_table(measurements, reference, subject_name)}"
    page += _charts(measurements, reference, subject_name)
    report = _write_whole(out_dir / "report.html", page + _foot(settings))
    if track:
        log_to_mlflow(experiment, target, settings, stored, [report, numbers, *(item.path for item in media)])
    return report


def log_to_mlflow(
    experiment: str,
    name: str,
    params: Mapping[str, object],
    measurements: Sequence[Measurement],
    files: Sequence[Path],
) -> None:
    """One finished MLflow run with parameters, the numbers that are not NaN, and files.

    `MLFLOW_TRACKING_URI` is honoured; without it runs go to ./mlruns.db and files to ./mlartifacts.
    """
    import mlflow  # takes seconds, so only where a run is logged

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{Path('mlruns.db').resolve()}")
        if mlflow.get_experiment_by_name(experiment) is None:
            mlflow.create_experiment(experiment, artifact_location=Path("mlartifacts").resolve().as_uri())
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=name):
        mlflow.log_params({key: str(value)[:500] for key, value in params.items()})
        mlflow.log_metrics({_metric(m.name): m.value for m in measurements if math.isfinite(m.value)})
        for path in files:
            mlflow.log_artifact(str(path))


def ratio(subject: Measurement, reference: Measurement | None) -> float:
    """The subject's value over the reference's; NaN where either is missing or the reference is 0."""
    if reference is None or not reference.value:
        return math.nan
    return subject.value / reference.value


def _metric(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)


def _write_whole(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def _number(measurement: Measurement | None) -> str:
    """Value, unit and interval as HTML; a dash where there is none."""
    if measurement is None:
        return '<span class="quiet">not measured</span>'
    if math.isnan(measurement.value):
        return '<span class="badge cannot-judge">cannot judge</span>'
    text = f'<b>{measurement.value:.3g}</b> <span class="unit">{html.escape(measurement.unit)}</span>'
    low, high = measurement.interval
    if math.isfinite(low) and math.isfinite(high):
        text += f'<br><span class="quiet">95 %: {low:.3g} to {high:.3g}</span>'
    return (
        f'{text}<br><span class="badge {measurement.verdict.replace(" ", "-")}">{measurement.verdict}</span>'
    )


def _evidence(measurement: Measurement, who: str) -> str:
    """What the number rests on, whose it is where there are two, and what the probe says about it."""
    text = f"{measurement.support:,} {html.escape(measurement.support_unit)}"
    why = f": {html.escape(measurement.reason)}" if measurement.reason else ""
    return f'{html.escape(who)} <span class="quiet">{text}{why}</span>'


def _wish(measurement: Measurement) -> str:
    """Which way is better, in words."""
    if measurement.better == "target":
        return f"target {measurement.target:.3g}" if measurement.target is not None else "target"
    return f"{measurement.better} is better"


def _table(measurements: Sequence[Measurement], reference: Sequence[Measurement], subject_name: str) -> str:
    partner = {m.name: m for m in reference}
    names = [m.name for m in measurements]
    alone = [m for m in reference if m.name not in names]
    head = ["measurement", subject_name, *(["reference", "ratio"] if reference else []), "evidence"]
    rows = []
    for m in [*measurements, *alone]:
        subject, other = (m, partner.get(m.name)) if m.name in names else (None, m)
        cells = [f'{html.escape(m.name)}<br><span class="quiet">{_wish(m)}</span>', _number(subject)]
        if reference:
            share = ratio(subject, other) if subject else math.nan
            cells += [_number(other), "–" if math.isnan(share) else f"{share:.2f}"]
        both = [(who, part) for who, part in ((subject_name, subject), ("reference", other)) if part]
        cells.append("<br>".join(_evidence(part, who if reference else "") for who, part in both))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(rows) or f'<tr><td colspan="{len(head)}">no measurement was asked for</td></tr>'
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _gallery(media: Sequence[Media], out_dir: Path) -> str:
    sections: dict[str, list[Media]] = {}
    for item in media:
        sections.setdefault(item.section, []).append(item)
    parts = []
    for section, items in sections.items():
        figures: list[tuple[str, str]] = []
        for item in items:
            shown, caption = _shown(item.path, out_dir, item.caption), item.caption
            if figures and item.path.suffix.lower() not in MIME:  # a file stands below the picture of it
                before, said = figures.pop()
                shown, caption = before + shown, f"{said}; {caption}"
            figures.append((shown, caption))
        cards = "".join(_figure(*figure) for figure in figures)
        parts.append(f'<h2>{html.escape(section)}</h2><div class="grid">{cards}</div>')
    return "".join(parts)


def _figure(inside: str, caption: str) -> str:
    return f"<figure>{inside}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _shown(path: Path, out_dir: Path, caption: str) -> str:
    """A file as an HTML element: inside the page where small, else by its relative path."""
    mime = MIME.get(path.suffix.lower())
    name = html.escape(os.path.relpath(path, out_dir), quote=True)
    if mime is None:
        return f'<a class="file" href="{name}">{html.escape(path.name)}</a>'
    source = name
    if path.stat().st_size <= LARGEST_EMBEDDED_BYTES:
        source = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
    label = html.escape(caption, quote=True)
    if mime.startswith("video"):
        return f'<video src="{source}" aria-label="{label}" autoplay loop muted playsinline controls></video>'
    return f'<img src="{source}" alt="{label}">'


def _charts(measurements: Sequence[Measurement], reference: Sequence[Measurement], subject_name: str) -> str:
    """One chart per measurement with a curve, the reference's over the same axes."""
    partner = {m.name: m for m in reference}
    figures = [
        _figure(_chart(m, partner.get(m.name), subject_name), m.name)
        for m in measurements
        if len(m.curve) > 1 or (m.name in partner and len(partner[m.name].curve) > 1)
    ]
    return f'<h2>Over time</h2><div class="grid charts">{"".join(figures)}</div>' if figures else ""


def _chart(subject: Measurement, reference: Measurement | None, subject_name: str) -> str:
    """The curves as an HTML picture in a light and a dark version."""
    pictures = {}
    for theme, (ink, grid) in THEMES.items():
        figure, axes = plt.subplots(figsize=(5.4, 3.4), dpi=130, layout="constrained")
        drawn = [(subject_name, subject, SUBJECT), ("reference", reference, REFERENCE)]
        for who, measurement, colour in drawn:
            if measurement is None or len(measurement.curve) < 2:
                continue
            (across, x), *columns = measurement.curve.items()
            for k, (label, y) in enumerate(columns):
                style = ("-", "--", ":", "-.")[k % 4]
                axes.plot(x, y, style, color=colour, lw=1.8, label=f"{who}: {label.replace('_', ' ')}")
            axes.set_xlabel(across.replace("_", " "), color=ink)
        axes.grid(color=grid, lw=0.6)
        axes.tick_params(colors=ink)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=ink, fontsize=8)
        for spine in axes.spines.values():
            spine.set_color(grid)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", transparent=True)
        plt.close(figure)
        pictures[theme] = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    label = html.escape(subject.name, quote=True)
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{pictures["dark"]}">'
    return f'<picture>{dark}<img class="chart" src="{pictures["light"]}" alt="{label} over time"></picture>'


def _page(title: str, notes: Sequence[str], settings: Mapping[str, object]) -> str:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    line = f"{settings['target']} · seed {settings['seed']} · orrery {settings['version']} · {when}"
    text = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f'<main><h1>{html.escape(title)}</h1><p class="quiet">{html.escape(line)}</p>{text}'
    )


def _foot(settings: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in settings.items()
    )
    return (
        '<p class="quiet">Ratio: the value of the subject over that of the reference, same protocol. '
        "“Cannot judge” means that the evidence was too thin for a number; it is never a good score.</p>"
        f'<details><summary>Settings</summary><div class="wide"><table>{rows}</table></div></details>'
        "</main></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1d1d24; --paper: #fbfbfd; --card: #fff; --line: #e3e3ec;
  --quiet: #6b6b78; --good: #1a7f5a; --bad: #b3372f; --open: #8a6d1a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ef; --paper: #131318; --card: #1c1c23;
  --line: #33333e; --quiet: #9a9aa8; --good: #5fd3a5; --bad: #ff8f85; --open: #e2c15f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 12px; }
p { max-width: 75ch; margin: 8px 0; }
.quiet, .unit, figcaption { color: var(--quiet); }
.quiet { font-size: 13px; }
.grid { display: grid; gap: 16px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
figure, .wide { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
figure { margin: 0; overflow: hidden; }
figure img, figure video { display: block; width: 100%; image-rendering: pixelated; }
figure img.chart { image-rendering: auto; }
figcaption { padding: 8px 12px; font-size: 13px; }
a { color: inherit; }
a.file { display: block; padding: 12px 12px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 9px 12px; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { font-size: 12px; text-transform: uppercase; letter-spacing: .04em; color: var(--quiet); }
.badge { display: inline-block; padding: 1px 8px; border-radius: 99px; border: 1px solid; font-size: 12px;
  white-space: nowrap; }
.consistent { color: var(--good); }
.inconsistent { color: var(--bad); }
.cannot-judge { color: var(--open); }
summary { cursor: pointer; color: var(--quiet); margin: 24px 0 8px; }
"""
