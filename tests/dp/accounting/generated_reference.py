"""Makes generated_reference.json: exact epsilons of over 200 generated settings, by quadrature.

    python tests/dp/accounting/generated_reference.py

Independent of the package, and with no grid of losses: the characteristic function of the loss is
integrated over z, raised to the number of steps, and delta is its inverse Mellin transform, taken
along a line through the saddle point:
``delta(eps) = 1/(2 pi i) int e^(K(s) - s eps) / (s (s + 1)) ds``, ``K(s) = T log E_P[e^(s L)]``.
The integrand is analytic, so that the trapezoid rule converges geometrically. Both directions; the
larger is kept. Beside it the least epsilon by RDP over all orders, from the same quadrature.
"""

import json
import math
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).with_name("generated_reference.json")
CORNERS = [
    (1e-5, 0.2, 100_000, 1e-10), (1e-5, 50.0, 100_000, 1e-10), (1.0, 0.2, 1, 1e-10),
    (1.0, 50.0, 100_000, 1e-10), (1.0, 1.0, 1, 1e-5), (0.5, 0.5, 1, 1e-6),
    (1e-5, 1.0, 100_000, 1e-6), (1e-5, 0.5, 1, 1e-7), (0.01, 4.0, 10_000, 1e-5),
    (256 / 60_000, 1.1, 14_062, 1e-5),
    (250 / 60_000, 1.3, 3_600, 1e-5), (0.01, 4.0, 1_000, 1e-5), (0.01, 1.0, 1_000, 1e-5),
    (0.02, 0.8, 500, 1e-5), (4096 / 50_000, 3.0, 2_440, 1e-5), (0.001, 0.6, 10_000, 1e-6),
    (1.0, 10.0, 100, 1e-5), (0.01, 2.0, 2_000, 1e-5),
]  # fmt: skip


def cases(n=240):
    rng = np.random.default_rng(7)
    rows = list(CORNERS)
    while len(rows) < n:
        q = 1.0 if rng.random() < 0.12 else float(f"{10 ** rng.uniform(-5, 0):.3g}")
        sigma = float(f"{math.exp(rng.uniform(math.log(0.2), math.log(50))):.3g}")
        steps = int(10 ** rng.uniform(0, 5))
        delta = float(f"{10 ** rng.uniform(-10, -3):.3g}")
        rows.append((q, sigma, steps, delta))
    return rows


def log_ratio(z, q, s):
    """log P / Q of the direction in which P has the unit."""
    u = (2 * z - 1) / (2 * s * s)
    if q == 1:
        return u
    return np.where(
        u < 1, np.log1p(q * np.expm1(np.minimum(u, 1))), np.logaddexp(np.log1p(-q), np.log(q) + u)
    )


def nodes(q, s, low, high, most=60_000):
    count = int(np.clip((high - low) / min(s / 12, 1.0), 2_000, most))
    step = (high - low) / count
    z = low + (np.arange(count) + 0.5) * step
    return log_ratio(z, q, s), -(z * z) / (2 * s * s) + math.log(step / s / math.sqrt(2 * math.pi))


def inverted(q, s, steps, delta, add):
    """Epsilon in one direction, or None where the transform decays too slowly."""
    loss, log_w = nodes(q, s, -14 * s, 1 + 14 * s)
    loss, log_w = (-loss, log_w) if add else (loss, log_w + loss)

    def tilted(theta):
        terms = log_w + theta * loss
        top = terms.max()
        w = np.exp(terms - top)
        return top + math.log(w.sum()), w / w.sum()

    thetas = np.geomspace(1e-3, 1e7, 300)
    theta = min(thetas, key=lambda t: (steps * tilted(t)[0] - math.log(delta)) / t)
    k, w = tilted(theta)
    mean = w @ loss
    deviation = math.sqrt(steps * (w @ (loss - mean) ** 2))
    period = max(90 / theta, 60 * deviation)
    step = 2 * math.pi / period
    centred = loss - mean
    values, t = [], []
    while len(values) < 60:  # blocks of 250
        ts = (len(values) * 250 + np.arange(250)) * step
        phi = np.exp(1j * ts[:, None] * centred[None]) @ w
        values.append(phi**steps)
        t.append(ts)
        if np.abs(values[-1]).max() / ((ts[-1] + theta) / theta) < 1e-7:
            break
    else:
        return None
    t, phi = np.concatenate(t), np.concatenate(values)
    line = theta + 1j * t
    kernel = phi / (line * (line + 1)) * np.where(t == 0, 0.5, 1.0) * step / math.pi

    def value(epsilon):
        total = (kernel * np.exp(1j * t * (steps * mean - epsilon))).sum().real
        return steps * k - theta * epsilon + math.log(max(total, 1e-300))

    chernoff = (steps * k - math.log(delta)) / theta
    # Within this of it the inversion is accurate; what is left out of Chernoff's bound is less.
    low, high = max(chernoff - (15 + 2 * math.log1p(theta)) / theta, 0.0), chernoff
    if value(low) <= math.log(delta):
        # Accurate where the tilt belongs; at 0 it is far off, and 0 is all that it may say.
        return low if low == 0 else None
    for _ in range(60):
        middle = (low + high) / 2
        if value(middle) > math.log(delta):
            low = middle
        else:
            high = middle
    return high


def by_rdp(q, s, steps, delta):
    def bound(log_t):
        t = math.exp(log_t)
        a = 1 + t
        if q == 1:
            divergence = a / (2 * s * s)
        else:
            loss, log_w = nodes(q, s, -14 * s, a + 14 * s, most=400_000)
            d = np.expm1(np.minimum(loss, 30.0))
            power = a * loss
            f = np.where(power < 30, np.expm1(np.minimum(power, 30)) - a * d, 1.0)
            f = np.where(a * np.abs(d) < 1e-3, a * t / 2 * d * d * (1 + (a - 2) / 3 * d), f)
            far = power + np.log1p(-np.minimum(np.exp(np.log(a) + loss - power), 1 - 1e-12))
            log_f = np.where(power < 30, np.log(np.maximum(f, 1e-320)), far)
            divergence = np.logaddexp(np.logaddexp.reduce(log_f + log_w), 0.0) / t
        return steps * divergence + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / t

    most = math.log(min(2e5, 3e4 * s))
    grid = np.linspace(math.log(1e-3), most, 36)
    values = []
    for point in grid:
        values.append(bound(point))
        if len(values) > 3 and values[-1] > 4 * abs(min(values)) + 1 and values[-1] > values[-2]:
            break
    i = int(np.argmin(values))
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(24):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if bound(left) < bound(right):
            high = right
        else:
            low = left
    return max(0.0, min(bound((low + high) / 2), min(values)))


def main():
    rows = []
    for q, s, steps, delta in cases():
        ways = [inverted(q, s, steps, delta, add) for add in (False, True)]
        rows.append(
            [q, s, steps, delta, None if None in ways else max(ways), by_rdp(q, s, steps, delta)]
        )
        if len(rows) % 10 == 0:
            print(len(rows), rows[-1], flush=True)
    PATH.write_text("[\n " + ",\n ".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
