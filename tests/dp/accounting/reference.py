"""Makes rdp_reference.json: epsilons of the subsampled Gaussian by quadrature in 40 digits.

    python tests/dp/accounting/reference.py

Independent of the package: the divergence is integrated by mpmath, the order is continuous and
minimised over by golden section.
"""

import json
import math
import pathlib

import mpmath as mp
import numpy as np

PATH = pathlib.Path(__file__).with_name("rdp_reference.json")

# (sampling rate, noise multiplier, steps, delta)
CASES = [
    (0.01, 4.0, 10_000, 1e-5), (256 / 60_000, 1.1, 14_062, 1e-5), (250 / 60_000, 1.3, 3_600, 1e-5),
    (0.01, 4.0, 1_000, 1e-5), (0.01, 1.0, 1_000, 1e-5), (0.02, 0.8, 500, 1e-5),
    (4096 / 50_000, 3.0, 2_440, 1e-5), (0.001, 0.6, 10_000, 1e-6), (0.01, 2.0, 2_000, 1e-5),
    (1e-5, 50.0, 100_000, 1e-5), (1e-5, 50.0, 100_000, 1e-9), (1e-5, 1.0, 100_000, 1e-5),
    (1e-5, 0.5, 100_000, 1e-6), (1e-5, 0.3, 100_000, 1e-6), (1e-5, 1.0, 1, 1e-5),
    (1e-4, 50.0, 100_000, 1e-5), (1e-4, 1.0, 10_000, 1e-7), (1e-4, 0.7, 100_000, 1e-5),
    (1e-3, 50.0, 100_000, 1e-5), (1e-3, 1.0, 100_000, 1e-5), (1e-3, 5.0, 1_000, 1e-8),
    (0.01, 50.0, 100_000, 1e-5), (0.01, 10.0, 10_000, 1e-6), (0.01, 0.5, 100, 1e-5),
    (0.01, 0.3, 10, 1e-5), (0.01, 1.0, 100_000, 1e-5), (0.05, 1.2, 1_000, 1e-5),
    (0.05, 20.0, 100_000, 1e-5), (0.1, 1.0, 100, 1e-3), (0.1, 2.0, 1_000, 1e-10),
    (0.1, 50.0, 100_000, 1e-5), (0.2, 0.6, 50, 1e-5), (0.2, 8.0, 5_000, 1e-5),
    (0.5, 1.0, 10, 1e-5), (0.5, 10.0, 1_000, 1e-6), (0.5, 50.0, 100_000, 1e-5),
    (0.5, 0.3, 1, 1e-5), (0.9, 2.0, 100, 1e-5), (0.9, 50.0, 1_000, 1e-5), (0.99, 5.0, 10, 1e-5),
    (1.0, 10.0, 100, 1e-5), (1.0, 50.0, 100_000, 1e-5), (1.0, 0.3, 100_000, 1e-5),
    (1.0, 1.0, 1, 1e-6),
]  # fmt: skip


def divergence(a, q, s):
    """The Renyi divergence of order a of one release."""
    if q == 1:
        return mp.mpf(a) / (2 * mp.mpf(s) ** 2)
    a, q, s = mp.mpf(a), mp.mpf(q), mp.mpf(s)

    def integrand(z):
        d = mp.expm1((2 * z - 1) / (2 * s * s))
        return mp.npdf(z, 0, s) * ((1 + q * d) ** a - 1 - a * q * d)

    return mp.log1p(mp.quad(integrand, breakpoints(float(a), float(q), float(s)))) / (a - 1)


def breakpoints(a, q, s):
    """Where the integrand peaks, and the widths around it."""
    z = np.linspace(-14 * s, a + 14 * s, 400_001)
    u = (2 * z - 1) / (2 * s * s)
    log_f = a * np.logaddexp(math.log1p(-q), math.log(q) + u) - z * z / (2 * s * s)
    inside = (log_f[1:-1] >= log_f[:-2]) & (log_f[1:-1] >= log_f[2:])
    peaks = [0.0, a, *z[1:-1][inside]]
    places = {peak + k * s for peak in peaks for k in (-14, -8, -4, -2, 0, 2, 4, 8, 14)}
    return sorted(p for p in places if -14 * s <= p <= a + 14 * s)


def epsilon(q, s, steps, delta):
    """The least epsilon over all orders above 1."""
    log_delta = mp.log(mp.mpf(delta))

    def bound(log_t):
        t = mp.e**log_t
        a = 1 + t
        return steps * divergence(a, q, s) + mp.log1p(-1 / a) - (log_delta + mp.log(a)) / t

    grid = [mp.mpf(v) for v in np.linspace(math.log(1e-3), math.log(2e5), 28)]
    values = []
    for point in grid:
        values.append(bound(point))
        if len(values) > 3 and values[-1] > 4 * abs(min(values)) + 1 and values[-1] > values[-2]:
            break  # far past the minimum: larger orders only cost time
    i = values.index(min(values))
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    ratio = (mp.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = bound(left), bound(right)
    for _ in range(22):
        if f_left < f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = bound(left)
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = bound(right)
    return max(mp.mpf(0), min(f_left, f_right))


def main():
    mp.mp.dps = 40
    rows = []
    for q, s, steps, delta in CASES:
        value = epsilon(q, s, steps, delta)
        rows.append(
            {
                "sampling_rate": q,
                "noise_multiplier": s,
                "steps": steps,
                "delta": delta,
                "epsilon": mp.nstr(value, 15),
            }
        )
        print(rows[-1], flush=True)
        PATH.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
