"""Chess: learnt from games and labels, played over UCI. The rules need the extra `chess`; nothing here imports it, or
torch, before it is used.
"""

from __future__ import annotations

RECIPES = ("chess", "chess-searchless")
TASKS = {"chess": "config", "searchless": "config"}
VERBS = {"player": "is_chess"}
