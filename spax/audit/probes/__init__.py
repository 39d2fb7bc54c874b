"""What an audit measures: one probe a file, ``(models, data, budget, key) -> Section``."""

from spax.audit.probes.clean import clean
from spax.audit.probes.distance import distance
from spax.audit.probes.masking import masking
from spax.audit.probes.membership import membership
from spax.audit.probes.privacy import privacy
from spax.audit.probes.robustness import robustness
from spax.audit.probes.strongest import strongest

__all__ = [
    "STANDARD",
    "clean",
    "distance",
    "masking",
    "membership",
    "privacy",
    "robustness",
    "strongest",
]

STANDARD = (clean, robustness, strongest, distance, masking, membership, privacy)
