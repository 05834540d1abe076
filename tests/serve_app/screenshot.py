"""Makes the pictures of the live page in the README: a service under load, and Chromium looking at it.

    make demo
    python -m tests.serve_app.screenshot runs/digits docs/images

Serves a portfolio of scikit-learn's digits, without Ray, under a load that rises beyond what the
largest variant carries and falls again, from a process of its own; takes about two minutes.
"""

from __future__ import annotations

import argparse
import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from jobs.load import Segment
from jobs.trial import Driver, capacity
from serve_app.service import EdgeService
from serve_app.settings import Settings
from tests.serve_app.browser import Look, chromium
from tests.serve_app.server import serving

PER_REQUEST = 64
OBJECTIVE_MS = 150.0
SHAPE = ((20, 0.3), (10, 0.6), (15, 1.8), (15, 0.5), (10, 2.2), (25, 0.35))  # seconds, of what 1x carries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("portfolio", help="a run's folder, or a .zip")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--all", action="store_true", help="of a phone's width and in the dark, too")
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
        for scheme, width in [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)]:
            if (scheme, width) == ("light", 1280) or arguments.all:
                name = f"live-{scheme}.png" if width > 360 else f"live-{scheme}-{width}.png"
                context = browser.new_context(
                    color_scheme=scheme, viewport={"width": width, "height": 900}, device_scale_factor=1.5
                )
                page = Look(context, url).page
                page.get_by_label("2 min", exact=True).check()
                page.set_input_files(
                    "#file", {"name": "digit.png", "mimeType": "image/png", "buffer": _png(digits[4])}
                )
                page.wait_for_selector("#class")
                page.screenshot(path=arguments.out / name, full_page=True)
                context.close()
        load.join()


def _service(portfolio: str, **settings: object) -> EdgeService:
    return EdgeService.open(Settings.model_validate({"portfolio": portfolio, **settings}))


def _png(digit: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((digit * (255 / 16)).astype("uint8")).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    main()
