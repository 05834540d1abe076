"""Makes the pictures of the live page in the README: a service under load, and Chromium looking at it.

    python -m jobs.generate jobs/recipes/digits.yaml --store runs --name digits
    python -m tests.serve_app.screenshot runs/digits docs/images

Serves a portfolio of scikit-learn's digits, without Ray, under a load that rises beyond what the
largest variant carries and falls again, from a process of its own; takes about two minutes.
"""

from __future__ import annotations

import argparse
import io
import threading
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, ViewportSize
from sklearn.datasets import load_digits

from jobs.schedule import Segment
from jobs.trial import Driver, capacity
from serve_app.service import EdgeService
from serve_app.settings import Settings
from tests.serve_app.browser import Look, chromium
from tests.serve_app.in_thread import serving

Scheme = Literal["light", "dark"]

PER_REQUEST = 64
OBJECTIVE_MS = 150.0
SHAPE = ((20, 0.3), (10, 0.6), (15, 1.8), (15, 0.5), (10, 2.2), (25, 0.35))  # seconds, of what 1x carries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("portfolio", help="a run's folder, or a .zip")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--phone", action="store_true", help="of a phone's width, too")
    arguments = parser.parse_args()
    digits = load_digits().images.astype("float32")
    sized = [Image.fromarray(d).resize((16, 16), Image.Resampling.BILINEAR) for d in digits]
    driver = Driver(np.stack([np.asarray(each) for each in sized])[:, None].astype("uint8"), PER_REQUEST)

    with serving(_service(arguments.portfolio, policy="fixed", variant="1x")) as url:
        carried = capacity(driver, url.rstrip("/"), seconds=4)
    schedule = [Segment(seconds, share * carried) for seconds, share in SHAPE]
    settings = {"objective_ms": OBJECTIVE_MS, "memory_bytes": 64 << 20}
    with serving(_service(arguments.portfolio, **settings)) as url, chromium() as browser:
        load = threading.Thread(target=driver.drive, args=(url.rstrip("/"), schedule, 0))
        load.start()
        load.join(sum(segment.seconds for segment in schedule) - 4)
        arguments.out.mkdir(parents=True, exist_ok=True)
        _picture(browser, url, "light", 1280, arguments.out / "live-light.png", _png(digits[4]))
        _picture(browser, url, "dark", 1280, arguments.out / "live-dark.png", _png(digits[4]))
        if arguments.phone:
            _picture(browser, url, "light", 360, arguments.out / "live-phone.png", _png(digits[4]))
        load.join()


def _picture(browser: Browser, url: str, scheme: Scheme, width: int, path: Path, image: bytes) -> None:
    viewport: ViewportSize = {"width": width, "height": 900}
    context = browser.new_context(color_scheme=scheme, viewport=viewport, device_scale_factor=1.5)
    page = Look(context, url).page
    page.get_by_label("2 min", exact=True).check()
    page.set_input_files("#file", {"name": "digit.png", "mimeType": "image/png", "buffer": image})
    page.wait_for_selector("#class")
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    # A third of the bytes, and the same to the eye; the default method forgets colours that are rare.
    taken.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    context.close()


def _service(portfolio: str, **settings: object) -> EdgeService:
    return EdgeService.open(Settings.model_validate({"portfolio": portfolio, **settings}))


def _png(digit: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((digit * (255 / 16)).astype("uint8")).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    main()
