import dataclasses

import pytest

from spax import audit


@pytest.mark.parametrize(
    "value",
    [
        audit.Measurement("m", "clean_accuracy", 0.5, "What it is."),
        audit.Verdict("m", "robustness", "ok", "No sign."),
        audit.Series("m", (0.0,), (1.0,)),
        audit.Plot("P", "x", "y", ()),
        audit.Section("s", "S"),
        audit.AuditReport("A", ("m",), {}, {}, {}, ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_reported_cannot_be_changed(value):
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)
    assert dataclasses.replace(value) == value
