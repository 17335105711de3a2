// The page: the list of batches, and one batch live. Everything from outside is put in as text, never as markup.
import { follow, Refused } from "./stream.js";

// ---- elements ----

const SVG = "http://www.w3.org/2000/svg";

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

/** Set the text of an element, unless it has it: so a selection in it stays. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have a list show these items, each with the element that was made for its key. */
function arrange(parent, items, keyOf, create, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const now = items.map((item) => {
    const key = keyOf(item);
    const element = before.get(key) ?? create(item);
    element.dataset.key = key;
    update(element, item);
    return element;
  });
  if (now.length !== parent.children.length || now.some((element, index) => parent.children[index] !== element)) {
    parent.replaceChildren(...now);
  }
}

const main = document.getElementById("main");
const link = document.getElementById("link");
const number = new Intl.NumberFormat("en").format;
const words = (tag) => tag.replaceAll("_", " ");
const ENDED = ["completed", "failed", "cancelled"];

/** Text as it is shown: what drives a terminal or turns the direction of writing is spelt out. */
function safe(text) {
  const shown = String(text).replace(
    /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return shown.length > 300 ? `${shown.slice(0, 300)}…` : shown;
}

/** An error with the name of its class, unless the message says it. */
function errorText(type, message) {
  const said = message === type || message.startsWith(`${type}: `) || message.includes(`: ${type}: `) || message.endsWith(`: ${type}`);
  return safe(said ? message : `${type}: ${message}`);
}

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A moment, with its day unless that is today. */
function moment(at) {
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString("en-GB") : at.toLocaleString("en-GB");
}

// ---- the server ----

// The token of `serve` comes in the fragment, which is never sent, and stays in this tab.
if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem("token", decodeURIComponent(location.hash.slice(7)));
  history.replaceState(null, "", location.pathname + location.search);
}
const token = sessionStorage.getItem("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};

async function getJSON(url, options) {
  const response = await fetch(url, { headers, ...options });
  if (!response.ok) throw new Refused(response.status);
  return response.json();
}

// ---- pictures ----

const wide = matchMedia("(min-width: 46rem)");

function machine(snapshot) {
  const current = snapshot.state.tag;
  const happy = ["pending", ...snapshot.stages.map((stage) => stage.stage), "resolving", "completed"];
  const off = ["failed", "cancelled"];
  const across = wide.matches ? Math.min(happy.length, 5) : 2;
  const [width, height, gapX, gapY] = [150, 34, 24, 22];
  const place = (index) => [(index % across) * (width + gapX), Math.floor(index / across) * (height + gapY)];
  const rows = Math.ceil(happy.length / across);
  const reached = happy.indexOf(current);
  const node = (x, y, name, kind) => s("g", { class: `state ${kind}` },
    s("rect", { x, y, width, height, rx: 6 }),
    s("text", { x: x + width / 2, y: y + height / 2 + 4, "text-anchor": "middle" }, words(name)));
  const picture = s("svg", {
    viewBox: `-4 -4 ${across * (width + gapX) - gapX + 8} ${(rows + 1) * (height + gapY)}`, role: "img",
    class: "machine", "aria-label": `State machine; the batch is ${words(current)}`,
  });
  happy.forEach((name, index) => {
    const [x, y] = place(index);
    if (index) {
      const [beforeX, beforeY] = place(index - 1);
      picture.append(s("path", { class: "edge", d: beforeY === y
        ? `M${beforeX + width} ${beforeY + height / 2}H${x}`
        : `M${beforeX + width / 2} ${beforeY + height}V${beforeY + height + gapY / 2}H${x + width / 2}V${y}` }));
    }
    picture.append(node(x, y, name, index === reached ? "now" : index < reached ? "past" : ""));
  });
  off.forEach((name, index) => {
    picture.append(node(index * (width + gapX), rows * (height + gapY), name, `${name} ${name === current ? "now" : ""}`));
  });
  return picture;
}

function plot(title, unit) {
  const [width, height] = [320, 96];
  const line = s("polyline", { class: "line" });
  const caption = h("figcaption");
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", preserveAspectRatio: "none", class: "plot" }, line);
  const draw = (points) => {
    const most = Math.max(1e-9, ...points.map((point) => point[1]));
    const from = points[0]?.[0] ?? 0;
    const span = Math.max(1, (points.at(-1)?.[0] ?? 1) - from);
    const now = points.at(-1)?.[1] ?? 0;
    line.setAttribute("points", points.map(([at, value]) =>
      `${(((at - from) / span) * width).toFixed(1)},${(height - (value / most) * (height - 6)).toFixed(1)}`).join(" "));
    say(caption, `${title}: ${now.toFixed(1)} ${unit} (most ${most < 1e-6 ? 0 : most.toFixed(1)})`);
    picture.setAttribute("aria-label", `${title}, now ${now.toFixed(1)} ${unit}`);
  };
  return { figure: h("figure", {}, caption, picture), draw };
}

// ---- one batch ----

const COUNTS = ["pending", "running", "waiting", "succeeded", "failed", "cancelled"];
const POINTS = 600;

function table(label, columns) {
  const body = h("tbody");
  const head = h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name))));
  const whole = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${label}` }, h("table", {}, head, body));
  const cells = (row, values) => values.forEach((value, index) => say(row.children[index], value));
  const row = () => h("tr", {}, columns.map((name) => h("td", { "data-label": name })));
  return { whole, body, row, cells };
}

function batchView(base) {
  const tag = h("span", { class: "tag" });
  const name = h("span");
  const alert_ = h("p", { role: "status", class: "bad" });
  const percent = h("strong");
  const facts = h("span");
  const picture = h("div");
  const bars = h("ul", { class: "bars" });
  const counts = h("dl", { class: "counts" });
  const documentsRate = plot("Documents finished", "/s");
  const inside = plot("Documents in work", "");
  const stages = table("Stages", ["Stage", "In it", "Time in it, about"]);
  const why = h("ul");
  const errors = table("Error groups", ["Documents", "Error", "Activity", "Examples"]);
  const noErrors = h("p", {}, "None.");
  const documents = table("Documents", ["Document", "Status", "Stage", "Attempts", "Error"]);
  const chosen = h("select", { id: "status", onchange: () => look() }, ["failed", "running", "waiting", "pending", "succeeded", "cancelled"].map((status) => h("option", {}, status)));
  const cancel = h("button", { type: "button", onclick: async () => {
    if (!confirm("Cancel this batch? What runs is stopped; what is recorded stays.")) return;
    try { await getJSON(`${base}/cancel`, { method: "POST" }); say(alert_, ""); }
    catch (error) { say(alert_, error instanceof Refused && error.status === 403 ? "You may not cancel it." : "It could not be cancelled: try again."); }
  } }, "Cancel batch");
  const command = (path, title, refused, failed) => h("button", { type: "button", class: "plain", onclick: async () => {
    try { await getJSON(`${base}/${path}`, { method: "POST" }); say(alert_, ""); }
    catch (error) { say(alert_, error instanceof Refused && error.status === 403 ? refused : failed); }
  } }, title);
  const pause = command("pause", "Pause batch", "You may not pause it.", "It could not be paused: try again.");
  const resume = command("resume", "Resume batch", "You may not resume it.", "It could not be resumed: try again.");
  const section = (id, title, ...content) => h("section", { "aria-labelledby": id }, h("h3", { id }, title), ...content);
  const view = h("div", {},
    h("section", { "aria-labelledby": "title" }, h("h2", { id: "title" }, name, " ", tag), alert_,
      h("p", { class: "big" }, percent, " · ", facts), picture),
    section("stages", "Stages", bars),
    section("counts", "Documents", counts),
    section("why", "Why it is where it is", why),
    section("throughput", "Throughput", h("div", { class: "plots" }, documentsRate.figure, inside.figure), stages.whole),
    section("errors", "Errors", noErrors, errors.whole),
    section("documents", "Documents by status", h("p", {}, h("label", { for: "status" }, "Status "), chosen), documents.whole),
    h("p", { class: "commands" }, pause, resume, cancel));

  const history_ = [];
  let latest = null;
  let looked = "";
  let looking = false;

  async function look() {
    // Beside the stream, and at most one look at a time: what fails is asked again with the next snapshot or connection.
    if (looking || latest === null) return;
    const key = `${latest.seq} ${chosen.value}`;
    if (key === looked) return;
    looking = true;
    try {
      const [digest, explanation, page] = await Promise.all([
        getJSON(`${base}/errors`), getJSON(`${base}/explain`), getJSON(`${base}/documents?limit=50&status=${chosen.value}`),
      ]);
      noErrors.hidden = digest.groups.length > 0;
      errors.whole.hidden = digest.groups.length === 0;
      arrange(errors.body, digest.groups, (group) => group.fingerprint, errors.row, (row, group) => errors.cells(row, [
        number(group.count), errorText(group.error_type, group.message), safe(group.activity ?? ""),
        group.examples.map((example) => safe(example.document_id)).join(", "),
      ]));
      arrange(why, explanation.sentences, (sentence) => sentence, () => h("li"), (item, sentence) => say(item, safe(sentence)));
      arrange(documents.body, page.documents, (document_) => document_.document_id, documents.row, (row, document_) => documents.cells(row, [
        safe(document_.document_id), document_.status, words(document_.stage ?? ""), number(document_.attempts), document_.failure ? errorText(document_.failure.error_type, document_.failure.error) : "",
      ]));
      looked = key;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) throw error;
    } finally {
      looking = false;
    }
    // What was chosen meanwhile, or has come.
    if (key !== `${latest.seq} ${chosen.value}`) await look();
  }

  function draw() {
    if (latest === null) return;
    const shape = `${latest.state.tag} ${latest.stages.length} ${wide.matches ? "desktop" : "phone"}`;
    if (picture.dataset.shape !== shape) {
      picture.replaceChildren(machine(latest));
      picture.dataset.shape = shape;
    }
  }
  wide.addEventListener("change", draw);

  function show(snapshot) {
    latest = snapshot;
    const ended = ENDED.includes(snapshot.state.tag);
    document.title = `${safe(snapshot.batch_id)} · Batches`;
    say(name, safe(snapshot.batch_id));
    say(tag, words(snapshot.state.tag) + (snapshot.paused ? ", paused" : ""));
    tag.className = `tag ${snapshot.state.tag} ${snapshot.paused ? "paused" : ""}`;
    say(alert_, safe(snapshot.state.error ?? snapshot.state.reason ?? ""));
    const done = snapshot.counts.succeeded + snapshot.counts.failed + snapshot.counts.cancelled;
    say(percent, `${snapshot.percentage.toFixed(1)} %`);
    say(facts, [
      `${number(done)} of ${number(snapshot.counts.total)} documents`,
      snapshot.documents_per_second && `${snapshot.documents_per_second.toFixed(1)}/s`,
      snapshot.eta && !ended && `ready at ${moment(new Date(snapshot.eta))}`,
      `${safe(snapshot.workflow)}, version ${safe(snapshot.version)}`,
    ].filter(Boolean).join(" · "));
    draw();
    arrange(bars, snapshot.stages, (stage) => stage.stage, (stage) => h("li", {}, h("label", {},
      h("span", {}, words(stage.stage)), h("span", { class: "n" }), h("progress", { max: 1, value: 0 }))), (item, stage) => {
      const bar = item.querySelector("progress");
      bar.max = Math.max(stage.total, 1);
      bar.value = stage.done;
      say(item.querySelector(".n"), `${number(stage.done)} of ${number(stage.total)}`);
    });
    arrange(counts, COUNTS, (count) => count, (count) => h("div", { class: count }, h("dt", {}, count), h("dd")), (item, count) => {
      say(item.lastChild, number(snapshot.counts[count]));
    });
    const at = Date.now();
    const before = history_.find((point) => at - point.at < 30_000) ?? history_.at(-1);
    const rate = before && at > before.at ? ((done - before.done) * 1000) / (at - before.at) : (snapshot.documents_per_second ?? 0);
    history_.push({ at, done, rate: ended ? 0 : rate, inside: snapshot.counts.running });
    if (history_.length > POINTS) history_.splice(0, history_.length - POINTS);
    documentsRate.draw(history_.map((point) => [point.at, point.rate]));
    inside.draw(history_.map((point) => [point.at, point.inside]));
    arrange(stages.body, snapshot.stages, (stage) => stage.stage, stages.row, (row, stage) => {
      // Little's law: in a steady batch, the time in a stage is what is in it by what leaves in a second.
      const within = stage.current - stage.done;
      const overall = snapshot.documents_per_second;
      stages.cells(row, [words(stage.stage), number(within), ended || !overall ? "–" : duration(within / overall)]);
    });
    cancel.hidden = ended;
    // Focus stays with the button in its place, so that a keyboard can take the command back.
    const held = snapshot.pauses.some((each) => each.reason === "operator");
    const focused = document.activeElement;
    pause.hidden = ended || held;
    resume.hidden = ended || snapshot.pauses.length === 0;
    if ((focused === pause || focused === resume) && focused.hidden) (held ? resume : pause).focus();
    look().catch(fail);
  }

  return { view, show, look };
}

async function showBatch(segment) {
  const base = `batches/${encodeURIComponent(segment)}`;
  const { view, show, look } = batchView(base);
  main.replaceChildren(view);
  for await (const message of follow(`${base}/snapshots`, { headers })) {
    if (message.link) {
      say(link, { open: "live", lost: "connection lost, trying again", ended: "ended" }[message.link]);
      if (message.link !== "lost") look().catch(fail);
    } else show(JSON.parse(message.data));
  }
}

// ---- the list ----

async function showList() {
  const rows = table("Batches", ["Batch", "Workflow", "State", "Done", "Documents", "Failed", "Created"]);
  const more = h("button", { type: "button", class: "plain", hidden: true, onclick: () => turn().catch(fail) }, "Older batches");
  const none = h("p", { hidden: true }, "There are no batches.");
  main.replaceChildren(h("h2", {}, "All batches"), none, rows.whole, h("p", {}, more));
  const shown = [];
  let next = null;

  async function turn() {
    const page = await getJSON(`batches${next === null ? "" : `?after=${encodeURIComponent(next)}`}`);
    next = page.next;
    shown.push(...page.batches);
    more.hidden = next === null;
    none.hidden = shown.length > 0;
    rows.whole.hidden = shown.length === 0;
    arrange(rows.body, shown, (batch) => batch.batch_id, (batch) => {
      const row = rows.row();
      row.firstChild.append(h("a", { href: `?batch=${encodeURIComponent(batch.url.slice("batches/".length))}` }, safe(batch.batch_id)));
      row.children[2].append(h("span", { class: `tag ${batch.state.tag} ${batch.paused ? "paused" : ""}` },
        words(batch.state.tag) + (batch.paused ? ", paused" : "")));
      return row;
    }, (row, batch) => {
      say(row.children[1], safe(batch.workflow));
      say(row.children[3], `${batch.percentage.toFixed(1)} %`);
      say(row.children[4], number(batch.counts.total));
      say(row.children[5], number(batch.counts.failed));
      say(row.children[6], new Date(batch.created_at).toLocaleString("en-GB"));
    });
  }

  await turn();
  say(link, "");
}

function fail(error) {
  say(link, "stopped");
  const refused = error instanceof Refused ? error.status : 0;
  const text = { 401: "Not signed in: open the address that was printed when the server started.", 403: "You may not see this.", 404: "There is no such batch." }[refused];
  main.replaceChildren(h("p", { role: "alert" }, text ?? safe(error.message)));
}

const chosen = new URLSearchParams(location.search).get("batch");
(chosen ? showBatch(chosen) : showList()).catch(fail);
