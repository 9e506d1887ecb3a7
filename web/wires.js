// Colours of the pack's own wires, in both renderers. ComfyUI gives types that it does not know one grey.
import { app } from "../../scripts/app.js";

const COLOURS = { BARET_TRAJECTORY: "#4fc3a1", BARET_EMBEDDINGS: "#e0a458" };

function paint() {
  Object.assign(app.canvas.default_connection_color_byType, COLOURS);
  Object.assign(app.canvas.constructor.link_type_colors, COLOURS);
}

app.registerExtension({
  name: "BARET.wires",
  setup() {
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    const sheet = document.createElement("style");
    sheet.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(sheet);
    paint();
  },
  afterConfigureGraph: paint, // a palette that was loaded meanwhile has taken them off again
});
