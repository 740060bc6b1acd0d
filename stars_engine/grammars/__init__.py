"""Grammar-constrained decoding: one state per prefix, forked per candidate.

A grammar masks the proposal: tokens that it does not allow have probability 0, and the others keep
their ratios. The mask is applied before temperature and truncation, so at least one token always
remains. The text may end exactly where the grammar is complete. llguidance computes the masks (Geng
et al. 2025, arXiv 2501.10868).
"""

from stars_engine.grammars.compiled import Grammars
from stars_engine.grammars.states import GrammarState

__all__ = ["GrammarState", "Grammars"]
