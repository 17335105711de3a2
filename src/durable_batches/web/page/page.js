// The page: the list of batches, or one batch; and what to do where the server refuses.
import { showBatch } from "./batch.js";
import { h, safe, say } from "./elements.js";
import { showList } from "./list.js";
import { handedOver, hasToken, onSignOut, signedIn, signIn, signOut } from "./server.js";
import { Refused } from "./stream.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const forget = document.getElementById("forget");
const chosen = new URLSearchParams(location.search).get("batch");

let stop = new AbortController();
let hasLeft = false;
const leave = () => { hasLeft = true; stop.abort(new Refused(401)); };
forget.addEventListener("click", () => { signOut(); leave(); });
onSignOut(leave);

function askForToken() {
  say(link, "stopped");
  const field = h("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); signIn(field.value.trim()); } },
    h("label", { for: "token" }, "Token "), field, " ", h("button", { type: "submit" }, "Sign in"));
  main.replaceChildren(h("p", { role: "alert" },
    "Not signed in: open the address that was printed when the server started, or give its token."), form);
}

function fail(error) {
  say(link, "stopped");
  const refused = error instanceof Refused ? error.status : 0;
  const text = { 403: "You may not see this.", 404: "There is no such batch." }[refused];
  main.replaceChildren(h("p", { role: "alert" }, text ?? safe(error.message)));
}

/** Show what is to be shown, for as long as that goes; throw why it does not go on. */
async function show() {
  stop = new AbortController();
  hasLeft = false;
  forget.hidden = !hasToken();
  try {
    await (chosen ? showBatch(chosen, main, link, stop.signal) : showList(main, link, stop.signal));
    stop.signal.throwIfAborted();
  } finally {
    stop.abort();
  }
}

for (;;) {
  try {
    await show();
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 401) { fail(error); break; }
    if (hasLeft || !(await handedOver())) {
      forget.hidden = true;
      askForToken();
      await signedIn();
    }
  }
}
