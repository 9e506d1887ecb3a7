"""Make the README's picture of the page without a canvas anew: the first template in a real browser, after a run.

python dev/screenshots.py     # writes docs/app.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comfyui

OUT = Path(__file__).resolve().parent.parent / "docs" / "app.png"
WAIT = 300_000  # ms for a run to end


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's picture anew.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_page  # both need the host's interpreter
    import comfy_server

    with (
        comfy_server.running(host, threads=1) as client,
        comfy_page.running(client.url, 1280, 640, sharpness=1.5) as page,
    ):
        page.open_template("baret_edit")
        page.toggle_app()
        page.page.get_by_test_id("linear-run-button-icon").first.click()
        small = page.page.get_by_test_id("linear-outputs").locator("img")
        small.nth(1).wait_for(timeout=WAIT)
        small.nth(1).click()
        page.page.get_by_test_id("queue-notification-banner").wait_for(state="hidden")
        page.page.mouse.move(640, 20)
        page.page.wait_for_timeout(1000)  # until the large picture is there
        page.page.screenshot(path=OUT)
    print(OUT)


if __name__ == "__main__":
    main()
