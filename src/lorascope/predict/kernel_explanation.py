"""What each site, kernel and singular direction adds to the value of a kernel machine.

linear    ⟨φ − φ̄, slope⟩ at each site, exactly; its directions where φ is a sum over them
radial    with z = 0 at the training mean, f(z) − f(0) = Σ_d z_d ∫₀¹ ∂_d f(t z) dt, summed over the columns of a site:
          integrated gradients, by Gauss–Legendre quadrature

All parts and the value at the training mean sum to the whole; for radial kernels to the error of the quadrature.

Source: Sundararajan, Taly & Yan (arXiv 1703.01365), integrated gradients.
"""

from __future__ import annotations

import numpy as np

from lorascope.predict.explanation import Contributions
from lorascope.predict.kernel_machine import Machine, Matrix, squared_distances
from lorascope.predict.model import Inputs

NODES = 96
"""Of the quadrature: narrow kernels along a long path are smooth at that distance."""


def contributions_of(machine: Machine, inputs: Inputs, width: int) -> Contributions:
    """Of one adapter, the only row of ``inputs``, to the first ``width`` values."""
    sites = machine.comparison.sites
    zero: Matrix = np.zeros(width)
    features: dict[str, dict[str, Matrix]] = {}
    directions = {
        name: np.zeros((inputs[f"S{stack}"].shape[-1], width))
        for name, (stack, _) in zip(sites.names, sites.places, strict=True)
    }
    baseline = machine.intercept[:width].copy()
    for (name, site), slope in machine.slopes.items():
        kernel, tokens = machine.comparison.kernels[name], sites.tokens(inputs, site)
        mean = machine.means[name, site][:width]
        own = features.setdefault(name, dict.fromkeys(sites.names, zero))
        own[sites.names[site]] = (kernel(tokens) @ slope)[0, :width] - mean
        baseline += mean
        if hasattr(kernel, "directions"):
            directions[sites.names[site]] += (kernel.directions(tokens)[0] @ slope)[:, :width]  # type: ignore[attr-defined]  # optional
    for name in machine.radial:
        z = machine.comparison.features(name, -1, inputs)[0]
        parts, start = _integrated(machine, name, z, width)
        by_site = parts.reshape(len(sites.names), -1, width).sum(axis=1)
        features[name] = dict(zip(sites.names, by_site, strict=True))
        baseline += start
    whole = {site: np.add.reduce([zero, *(own[site] for own in features.values())]) for site in sites.names}
    return Contributions("exact", whole, features, directions, baseline)


def _integrated(machine: Machine, name: str, z: Matrix, width: int) -> tuple[Matrix, Matrix]:
    """z_d ∫₀¹ ∂_d f(t z) dt, [D, width], and f(0) [width], of a radial kernel."""
    X, coefficients = machine.radial[name]
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    t = (nodes + 1.0) / 2.0
    along = np.concatenate([t[:, None] * z, np.zeros((1, len(z)))])
    varying = machine.comparison.centres[name, -1].varying
    distances = squared_distances(along, X) / varying
    total, start = np.zeros((len(z), width)), np.zeros(width)
    for length, coefficient in coefficients.items():
        c = coefficient[:, :width]
        K = np.exp(-distances / (2 * length * length))
        start += K[-1] @ c
        pull = (weights / 2.0)[:, None] * K[:-1] / (length * length * varying)  # [nodes, n]
        # ∂f(y) = Σ_i (x_i − y) K_i c_i / (ℓ² D)
        total += z[:, None] * (X.T @ (pull.sum(axis=0)[:, None] * c) - z[:, None] * ((t @ pull) @ c))
    return total, start
