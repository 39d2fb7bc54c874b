"""What wrong labels cost."""

import numpy as np

import spax
from benchmarks.figures.common import KEY, digits


def measure():
    """What a fifth of wrong labels costs a 1-NN classifier, and what relabelling mends."""
    x, y, x_test, y_test = digits()
    _, flipped = spax.poisoning.flip_labels(x, y, key=KEY, rate=0.2, num_classes=10)
    _, mended = spax.defenses.relabel_knn(x, flipped, num_classes=10)
    return {
        "labels": {
            "wrong_flipped": round(100 * float((flipped != y).mean()), 1),
            "wrong_mended": round(100 * float((mended != y).mean()), 1),
            **{
                name: nearest_neighbour(x, labels, x_test, y_test)
                for name, labels in (("clean", y), ("flipped", flipped), ("mended", mended))
            },
        },
    }


def nearest_neighbour(x, y, x_test, y_test):
    """Test accuracy, in per cent, of the nearest neighbour: it believes every label."""
    from sklearn.neighbors import KNeighborsClassifier

    flat = [np.asarray(v).reshape(len(v), -1) for v in (x, x_test)]
    model = KNeighborsClassifier(1).fit(flat[0], np.asarray(y))
    return round(100 * model.score(flat[1], np.asarray(y_test)), 1)
