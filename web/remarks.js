// What our nodes say of a run, and texts of words unknown to the drawn world, stay under their nodes.
// Frontends after 1.47 take such text away when the run ends.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const said = new Map(); // node of the canvas -> its text
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

function hear({ detail: { nodeId, text } }) {
  const node = app.graph.getNodeById(nodeId);
  if (node?.comfyClass?.startsWith("Baret") || node?.comfyClass === "CLIPTextEncode") said.set(node, text);
}

function sayAgain() {
  for (const [node, text] of said) {
    if (app.graph.getNodeById(node.id) !== node) {
      said.delete(node); // of a workflow that is not on the canvas any more
    } else if (!node.widgets?.some((widget) => widget.name === "$$node-text-preview")) {
      api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text });
    }
  }
}

app.registerExtension({
  name: "BARET.remarks",
  setup() {
    api.addEventListener("progress_text", hear);
    for (const end of ENDS) api.addEventListener(end, () => setTimeout(sayAgain, 100)); // after the frontend's own
  },
});
