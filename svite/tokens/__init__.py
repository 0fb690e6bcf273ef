"""Token selection: from a block on only the best patch tokens go on, so that every later layer has less to do."""

from svite.tokens.kept import kept
from svite.tokens.places import quarters
from svite.tokens.scorer import Attentive, Learned, anneal
from svite.tokens.selector import Selector, select

__all__ = ["Attentive", "Learned", "Selector", "anneal", "kept", "quarters", "select"]
