"""The share of computed tokens that is padding, in translation and in text.

python benchmarks/padding.py                # a minute
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

from measure import data_folder, write


def share(recipe_name: str, batches: int, data: list[Path] | None = None) -> dict[str, float]:
    """Over the first `batches` training batches of a recipe."""
    from headway.app.recipes import configure_recipe
    from headway.learn.examples import Batch
    from headway.learn.recipe import open_task

    recipe = configure_recipe(recipe_name, data, None, None)
    with tempfile.TemporaryDirectory() as folder:
        task = open_task(recipe, Path(folder))
        kept = computed = 0
        for batch in islice(task.batches("train"), batches):
            read = batch.inputs if isinstance(batch, Batch) else vars(batch).values()
            layouts = [value for value in read if hasattr(value, "mask")]
            kept += sum(int(layout.mask.sum()) for layout in layouts)
            computed += sum(layout.mask.numel() for layout in layouts)
    return {"batches": batches, "tokens_computed": computed, "padding": round(1 - kept / computed, 4)}


def main() -> None:
    import tarfile

    result = {name: share(name, 500) for name in ("multi30k-en-de", "tatoeba", "pronounce", "shakespeare")}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(data_folder() / "lm" / "wikitext-2-raw-valid-test.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        # one document for each article, so that packing has many short ones to keep apart
        raw = next(Path(folder).rglob("*valid*")).read_text(encoding="utf-8")
        articles = Path(folder) / "articles"
        articles.mkdir()
        for number, article in enumerate(raw.split("\n = ")):
            if article.strip():
                (articles / f"{number:04}.txt").write_text(article, encoding="utf-8")
        result["text, WikiText-2 by section"] = share("text", 100, [articles])
    write("padding", {"padding": result})


if __name__ == "__main__":
    main()
