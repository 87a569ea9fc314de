"""Images in one folder per class for the tutorial: the handwritten digits that scikit-learn contains.

python examples/digit_images.py photos [EACH]     # EACH images per digit (default: all, about 180)
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    folder, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    digits, count = load_digits(), [0] * 10
    for pixels, digit in zip(digits.images, digits.target):
        if count[digit] < most:
            place = folder / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((255 - pixels * 15.9).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(place / f"{count[digit]:03}.png")
            count[digit] += 1
    print(f"wrote {sum(count)} images to {folder}")


if __name__ == "__main__":
    main()
