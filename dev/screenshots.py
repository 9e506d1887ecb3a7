"""Make the README's picture of the canvas anew: the first template in a real browser, after a run.

python dev/screenshots.py     # writes docs/canvas.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import comfyui

OUT = Path(__file__).resolve().parent.parent / "docs" / "canvas.png"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the README's picture of the canvas anew.")
    comfyui.add_arguments(parser)
    host = comfyui.enter(parser.parse_args())
    import comfy_page  # both need the host's interpreter
    import comfy_server

    with (
        comfy_server.running(host, threads=1) as client,
        comfy_page.running(client.url, 1800, 1000, sharpness=1.2) as page,
    ):
        page.set("Comfy.Minimap.Visible", False)
        page.set("Comfy.Graph.CanvasInfo", False)
        page.reload()
        page.open_template("baret_edit")
        page.queue()
        page.pictures("Before and after")
        page.wait("!app.extensionManager.queue?.isRunning && node('BAM Edit').progress === undefined")
        # As large as the window allows, and as tidy: nothing selected, the pointer away, no message in the corner.
        page.ask("""
            const boxes = app.graph.groups.map(g => g.boundingRect), ends = boxes.map(b => [b[0] + b[2], b[1] + b[3]]);
            const [width, height] = [0, 1].map(i => Math.max(...ends.map(e => e[i])));
            const ds = app.canvas.ds, view = app.canvas.canvas.getBoundingClientRect();
            ds.scale = Math.min((view.width - 90) / width, (view.height - 130) / height);
            ds.offset = [75 / ds.scale, 100 / ds.scale];
            app.canvas.deselectAll();
            app.canvas.setDirty(true, true);
        """)
        page.page.get_by_test_id("queue-notification-banner").wait_for(state="hidden")
        page.page.screenshot(path=OUT)
    print(OUT)


if __name__ == "__main__":
    main()
