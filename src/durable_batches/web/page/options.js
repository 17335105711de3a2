// A form that shows the options of a batch, and changes them while it runs.
import { h, say } from "./elements.js";
import { getJSON, headers } from "./server.js";
import { Refused } from "./stream.js";

const POLICIES = { "continue-on-failure": "the others go on", "abort-all": "the batch fails", "retry-failed": "it runs again" };

/** The form in a closed part of the page, which reads the options when it is opened; `tell` shows what went wrong. */
export function optionsForm(base, tell) {
  const seconds = (id) => h("input", { id, type: "number", min: 1, max: 315_360_000, step: "any" });
  const fields = {
    concurrency: h("input", { id: "concurrency", type: "number", min: 1, max: 100_000, step: 1, required: true }),
    failure_policy: h("select", { id: "failure_policy" }, Object.entries(POLICIES).map(([tag, title]) => h("option", { value: tag }, title))),
    document_timeout: seconds("document_timeout"),
    deadline: seconds("deadline"),
  };
  const said = h("span", { role: "status", class: "dim" });
  const read = (name) => {
    const value = fields[name].value;
    if (name === "failure_policy") return value;
    return value === "" ? null : Number(value);
  };
  const inForce = (name) => (name === "failure_policy" ? shown.failure_policy.tag : shown[name]);
  let shown = null;

  function show(config) {
    shown = config;
    for (const name of Object.keys(fields)) fields[name].value = inForce(name) ?? "";
  }

  async function change(event) {
    event.preventDefault();
    if (shown === null) return;
    // What stays is not sent: a policy has more to it than its name.
    const changed = Object.keys(fields).filter((name) => read(name) !== inForce(name));
    if (changed.length === 0) { say(said, "Nothing was changed."); return; }
    const changes = Object.fromEntries(changed.map((name) => [name, name === "failure_policy" ? { tag: read(name) } : read(name)]));
    try {
      show(await getJSON(`${base}/update`, {
        method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(changes),
      }));
      tell("");
      say(said, "Changed.");
    } catch (error) {
      say(said, "");
      const refused = error instanceof Refused ? error.status : 0;
      tell({ 400: "These options cannot be used.", 403: "You may not change it.", 409: "It has ended." }[refused] ?? "It could not be changed: try again.");
    }
  }

  const row = (name, title) => h("p", {}, h("label", { for: name }, `${title} `), fields[name]);
  const form = h("form", { class: "options", onsubmit: change },
    row("concurrency", "Documents at once"), row("failure_policy", "When a document fails"),
    row("document_timeout", "Timeout of a document, in seconds"), row("deadline", "Deadline after submission, in seconds"),
    h("p", { class: "commands" }, h("button", {}, "Change options"), said));
  return h("details", { ontoggle: async (event) => {
    if (!event.target.open) return;
    say(said, "");
    try { show(await getJSON(`${base}/config`)); }
    catch { tell("Its options could not be read: try again."); event.target.open = false; }
  } }, h("summary", {}, "Options"), form);
}
