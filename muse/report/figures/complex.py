"""Pictures of complex values: magnitudes, phases and the plane itself."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from muse.catalog import REFERENCE

from ..numbers import number, rounded
from ..texts import say, texts
from .style import CLEAR, GRID, MODELS, axis, make_figure


def _complex_array(z: object) -> np.ndarray:
    """Return complex values of any shape, or planar real ones, torch or numpy, as a flat complex128 array."""
    if hasattr(z, "detach"):
        z = z.detach().cpu().resolve_conj()
        z = (z if z.is_complex() else z.double()).numpy()
    z = np.asarray(z)
    if not np.iscomplexobj(z):
        if z.ndim == 0 or z.shape[-1] % 2:
            raise ValueError(
                f"z: got real values of shape {z.shape}, expected complex ones or an even last axis (planar)"
            )
        real, imag = np.split(z, 2, axis=-1)
        z = real + 1j * imag
    if z.size == 0 or not np.isfinite(z).all():
        raise ValueError(f"z: got {z.size} values, not all finite, expected at least one and finite ones only")
    return z.astype(np.complex128).ravel()


def phase_magnitude(z: object, language: str = "en") -> go.Figure:
    """Histogram of magnitudes beside a circular histogram of phases; `z` is complex, of any shape, or planar."""
    words, z = texts(language), _complex_array(z)
    magnitudes, phases = np.abs(z), np.angle(z[z != 0])
    counts, edges = np.histogram(magnitudes, bins=40)
    of_phases, angles = np.histogram(phases, bins=36, range=(-np.pi, np.pi))
    marker = {"color": MODELS[REFERENCE][0], "line": {"width": 0}}
    x, theta = (edges[1:] + edges[:-1]) / 2, np.rad2deg(angles[1:] + angles[:-1]) / 2
    traces = [
        go.Bar(x=rounded(x), y=rounded(counts / z.size), marker=marker, name=words["figure.magnitude"]),
        go.Barpolar(theta=rounded(theta), r=rounded(of_phases / max(1, phases.size)), marker=marker,
                    name=words["figure.phase"]),
    ]  # fmt: skip
    ring = {"gridcolor": GRID, "linecolor": GRID}
    names = {"tickmode": "array", "tickvals": [0, 90, 180, 270], "ticktext": ["0", "π/2", "±π", "−π/2"]}
    polar = {
        "domain": {"x": [0.64, 0.96]},
        "bgcolor": CLEAR,
        "radialaxis": ring | {"showticklabels": False, "ticks": ""},
        "angularaxis": ring | names,
    }
    return make_figure(
        "phase_magnitude", language, traces, fields={"caption": _phases_in_words(magnitudes, phases, language)},
        xaxis=axis(words["figure.magnitude"], domain=[0, 0.53], rangemode="tozero"),
        yaxis=axis(words["figure.share_of_values"], tickformat="~%"), polar=polar, bargap=0.04, showlegend=False,
    )  # fmt: skip


def _phases_in_words(magnitudes: np.ndarray, phases: np.ndarray, language: str) -> str:
    n, mean, largest = map(number, (magnitudes.size, magnitudes.mean(), magnitudes.max()))
    resultant = f"{abs(np.exp(1j * phases).mean()) if phases.size else 0:.3f}"
    caption = say(language, "phase_magnitude.caption", n=n, mean=mean, largest=largest, resultant=resultant)
    if zeros := magnitudes.size - phases.size:
        caption += " " + say(language, "phase_magnitude.zeros", zeros=number(zeros))
    return caption


def complex_plane(z: object, language: str = "en", max_points: int = 1500) -> go.Figure:
    """Scatter plot in the complex plane, evenly thinned to `max_points`; `z` is as above."""
    words, z = texts(language), _complex_array(z)
    shown = z[:: max(1, math.ceil(z.size / max_points))]
    fields = {"shown": shown.size, "n": z.size, "real": z.real.std(), "imag": z.imag.std()}
    fields = {name: number(value) for name, value in fields.items()}
    marker = {"color": MODELS[REFERENCE][0], "size": 5, "opacity": 0.5}
    dots = go.Scatter(x=rounded(shown.real), y=rounded(shown.imag), mode="markers", marker=marker)
    return make_figure(
        "complex_plane", language, [dots], height_px=440, fields=fields,
        xaxis=axis(words["figure.real"]), yaxis=axis(words["figure.imag"], scaleanchor="x"),
    )  # fmt: skip
