"""Token selection and merging: from a block on fewer patch tokens go on, so that every later layer has less to do."""

from svite.tokens.kept import kept
from svite.tokens.merger import Merger, merge
from svite.tokens.places import later, quarters
from svite.tokens.scorer import Attentive, Learned, anneal
from svite.tokens.selector import Selector, select

__all__ = ["Attentive", "Learned", "Merger", "Selector", "anneal", "kept", "later", "merge", "quarters", "select"]
