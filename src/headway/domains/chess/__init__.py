"""Chess: learnt from games and labels, played over UCI. The rules need the extra `chess`; nothing here imports it
before it is used.
"""

from headway.domains.chess.recipes import RECIPES

__all__ = ["RECIPES"]
