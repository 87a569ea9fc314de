"""Real configurations of published models, at full size and without weights: are their tensors those of transformers?

    python benchmarks/published_configs.py [NAME ...]   # folders of the data folder's configs/ whose name contains NAME
    python benchmarks/published_configs.py --write      # all of them, and store the result

Both programs build the model of a config.json on the meta device. A row is "equal" if the file that the class in
transformers would write fills the model that headway builds from the configuration alone: every tensor is used, none is
missing, and all shapes fit. It is "refused" if headway ends with a UserError, "unsupported" if transformers does not
know the configuration without the folder's own code, and "different" otherwise.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from headway.errors import UserError
from headway.formats.families import families, find_family
from headway.formats.published import described_config, read_settings
from headway.formats.weights import RenamedWeights, fill
from measure import data_folder, write


class MetaWeights:
    """The tensors of a model without memory (Weights)."""

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self.source, self._tensors = source, tensors

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def done(self, name: str) -> None:
        """Nothing was read."""


def their_tensors(folder: Path) -> dict[str, Tensor]:
    """What transformers' class would write: tied tensors once."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    model_class: Any = getattr(transformers, name, None)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config) if model_class is None else model_class(config)
    model.tie_weights()
    tied = {name for keys in (getattr(model, "all_tied_weights_keys", None) or {},) for name in keys}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def checked(folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        theirs = their_tensors(folder)
    except Exception as error:
        theirs, reason = None, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    try:
        config = described_config(folder)
        family = find_family(read_settings(folder))
        if theirs is None:
            return {"outcome": "unsupported", "reason": reason}
        seconds = time.perf_counter() - started
        with torch.device("meta"):
            model = config.build(None)
            fill(model, family.rules(config), RenamedWeights(MetaWeights(theirs, str(folder)), family))
        count = sum(tensor.numel() for tensor in theirs.values())
        return {"outcome": "equal", "tensors": len(theirs), "numbers": count, "seconds": round(seconds, 1)}
    except UserError as error:
        text = str(error).replace(str(folder), "FOLDER")
        built = "config.json" not in text.split(":")[0]
        return {"outcome": "different" if theirs is not None and built else "refused", "reason": text[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="store results/published-configs.json")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    rows: dict[str, dict[str, Any]] = {}
    for folder in sorted((data_folder() / "configs").iterdir()):
        if (folder / "config.json").is_file() and (not args.names or any(name in folder.name for name in args.names)):
            rows[folder.name] = row = {"family": folder.name.split("__")[0], **checked(folder)}
            print(f"{folder.name:60} {row['outcome']:12} {row.get('reason', '')[:150]}", flush=True)
    known = [row for name, row in rows.items() if row["family"] in families()]
    print(dict(Counter(row["outcome"] for row in known)), "of", len(known), "configurations of families that are read")
    if args.write:
        write("published-configs", {"rows": rows})


if __name__ == "__main__":
    main()
