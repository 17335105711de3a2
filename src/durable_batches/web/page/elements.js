// Elements of the page, made without markup: everything from outside is put in as text.

const SVG = "http://www.w3.org/2000/svg";

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
export const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => make(document.createElementNS(SVG, tag), attributes, children);

/** Set the text of an element, unless it has it: so a selection in it stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Have a list show these items, each with the element that was made for its key; what stays in order is not moved. */
export function arrange(parent, items, keyOf, create, update) {
  const wanted = new Set(items.map((item) => String(keyOf(item))));
  const before = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) before.set(child.dataset.key, child);
    else child.remove();
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    const element = before.get(key) ?? create(item);
    element.dataset.key = key;
    update(element, item);
    if (place === element) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
}

/** A table whose rows become cards on a phone; its name is that of the region that scrolls. */
export function table(label, columns, height = "") {
  const body = h("tbody");
  const head = h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name))));
  const whole = h("div", { class: `scroll ${height}`, tabindex: "0", role: "region", "aria-label": `Table: ${label}` }, h("table", {}, head, body));
  const cells = (row, values) => values.forEach((value, index) => say(row.children[index], value));
  const row = () => h("tr", {}, columns.map((name) => h("td", { "data-label": name })));
  return { whole, body, row, cells };
}

/** The state of a batch as a label. */
export function label(element, batch) {
  say(element, words(batch.state.tag) + (batch.paused ? ", paused" : ""));
  element.className = `tag ${batch.state.tag} ${batch.paused ? "paused" : ""}`;
}

export const number = new Intl.NumberFormat("en").format;
export const words = (tag) => tag.replaceAll("_", " ");

/** Text as it is shown: what drives a terminal or turns the direction of writing is spelt out. */
export function safe(text) {
  const shown = String(text).replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return shown.length > 300 ? `${shown.slice(0, 300)}…` : shown;
}

/** An error with the name of its class, unless the message says it. */
export function errorText(type, message) {
  const said = message === type || message.startsWith(`${type}: `) || message.includes(`: ${type}: `) || message.endsWith(`: ${type}`);
  return safe(said ? message : `${type}: ${message}`);
}

/** A percentage, rounded down: what is not done is not 100. */
export const percentage = (value) => `${(Math.floor(value * 10 + 1e-6) / 10).toFixed(1)}\u00a0%`;

export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** A moment, with its day unless that is today. */
export function moment(at) {
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString("en-GB") : at.toLocaleString("en-GB");
}
