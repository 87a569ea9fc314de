"""Takes the pictures of docs/tutorials/without-a-shell.md: `python docs/screenshots.py [MODEL...]`.

It opens the page in headless Chromium, trains on the example of images, stops it, continues and uses it. With
a model that transcribes, it also transcribes FILE of `--sound FILE`. It takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

OUT = Path(__file__).parent / "images" / "page"
WAIT = 600_000  # milliseconds for a plan or a training


@contextmanager
def served(runs: Path, models: list[str]) -> Iterator[str]:
    """The address of `headway open` with these runs and models."""
    command = [sys.executable, "-m", "headway", "open", "--no-browser", "--runs", str(runs), *models]
    environment = {**os.environ, "HEADWAY_CACHE": str(runs.parent / "cache")}  # without the models made so far
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "#key=" in line:
                yield line.strip()
                break
        else:
            raise RuntimeError("headway open printed no address")
    finally:
        process.terminate()
        process.wait()


def picture(page: Page, name: str) -> None:
    """The page as it is now, without what is below the fold of a large screen."""
    page.wait_for_timeout(500)
    height = min(page.evaluate("document.documentElement.scrollHeight"), 2250)
    page.evaluate("document.getElementById('note').textContent = ''")  # it would cover the picture
    page.screenshot(path=OUT / f"{name}.png", full_page=True, clip={"x": 0, "y": 0, "width": 1100, "height": height})


def train(page: Page, folder: Path) -> None:
    """Train on the example, stop, continue, and use the model on one of the example's images."""
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_role("radio", name="Images in folders").check()
    picture(page, "new-run")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the example").click()
    shutil.unpack_archive(download.value.path(), folder, "zip")
    page.get_by_role("button", name="Try it with an example").click()
    page.get_by_text("4. How long may it train?").wait_for(timeout=WAIT)
    page.get_by_label("Name of the model").fill("shapes")
    picture(page, "what-was-read")
    page.get_by_role("button", name="Start the training").click()
    expect(page.get_by_text("Training: ")).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(4000)
    picture(page, "training")
    page.get_by_role("button", name="Stop the training").click()
    page.get_by_role("button", name="Continue").wait_for(timeout=WAIT)
    picture(page, "stopped")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("button", name="Use it", exact=True).wait_for(timeout=WAIT)
    picture(page, "finished")
    page.get_by_role("button", name="Use it", exact=True).click()
    page.get_by_label("Image files").set_input_files(sorted(folder.glob("shapes/*/1.png")))
    page.locator("#panel-images button.main").click()
    page.locator("#panel-images .bars").first.wait_for(timeout=WAIT)
    picture(page, "use-images")


def transcribe(page: Page, sound: Path) -> None:
    page.get_by_role("tab", name="Sounds").click()
    page.get_by_label("Sound or video file").set_input_files(sound)
    page.locator("#panel-sounds button.main").click()
    page.get_by_text(".srt").first.wait_for(timeout=WAIT)
    picture(page, "transcribe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="models to serve in addition")
    parser.add_argument("--sound", type=Path, help="sound to transcribe")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    browser_path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder, "runs"), args.models) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.goto(address)
        page.get_by_role("tab", name="Models").click()
        picture(page, "models")
        if args.sound is not None:
            transcribe(page, args.sound)
        train(page, Path(folder))
        browser.close()
    print(json.dumps(sorted(path.name for path in OUT.glob("*.png"))))


if __name__ == "__main__":
    main()
