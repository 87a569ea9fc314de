"""Chess: learned from games and labelled positions, played over UCI. The rules need the extra `chess`; this package
imports it, and torch, only on use.
"""

from __future__ import annotations

RECIPES = ("chess", "chess-searchless")
TASKS = {"chess": "config", "searchless": "config"}
VERBS = {"move": "is_chess", "player": "is_chess"}
