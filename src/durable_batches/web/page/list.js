// The list of batches, newest first, and how each of them is by now.
import { bell, seen } from "./attention.js";
import { arrange, h, label, moment, number, percentage, safe, say, table } from "./elements.js";
import { getJSON } from "./server.js";
import { Refused } from "./stream.js";

const ON_A_PAGE = 50;
const PAUSE = 3_000;
const ENDED = ["completed", "failed", "cancelled"];

/**
 * Batches as they are shown, with a page of them read again.
 *
 * `from` is where the page begins. What is not on it, and lies within it, is gone; behind it nothing has changed,
 * unless its last batch is new: then what lies between is not known, and nothing is shown behind it.
 */
export function merged(shown, from, page, isLast) {
  if (page.length === 0) return isLast && from === 0 ? [] : shown;
  const end = shown.findIndex((batch) => batch.batch_id === page.at(-1).batch_id);
  const behind = isLast || end < 0 ? [] : shown.slice(end + 1);
  return [...shown.slice(0, from), ...page, ...behind];
}

/** Show the list until the signal, or until the server refuses it. */
export async function showList(main, link, signal) {
  const rows = table("Batches", ["Batch", "Workflow", "State", "Done", "Documents", "Failed", "Created"]);
  const more = h("button", { type: "button", hidden: true, onclick: () => { wanted += ON_A_PAGE; asked.ring(); } }, "Older batches");
  const none = h("p", { hidden: true }, "There are no batches.");
  const asked = bell();
  main.replaceChildren(h("h2", {}, "All batches"), none, rows.whole, h("p", {}, more));
  document.title = "Batches";

  let shown = [];
  let wanted = ON_A_PAGE;
  let hasMore = false;

  async function read(from) {
    const after = from === 0 ? "" : `?after=${encodeURIComponent(shown[from - 1].batch_id)}`;
    const page = await getJSON(`batches${after}`);
    const before = shown.length;
    shown = merged(shown, from, page.batches, page.next === null);
    if (from + page.batches.length >= shown.length) hasMore = page.next !== null;
    if (shown.length > wanted) {
      shown = shown.slice(0, wanted);
      hasMore = true;
    }
    return before !== shown.length;
  }

  function draw() {
    more.hidden = !hasMore;
    none.hidden = shown.length > 0;
    rows.whole.hidden = shown.length === 0;
    arrange(rows.body, shown, (batch) => batch.batch_id, (batch) => {
      const row = rows.row();
      row.firstChild.append(h("a", { href: `?batch=${encodeURIComponent(batch.url.slice("batches/".length))}` }, h("bdi", {}, safe(batch.batch_id))));
      row.children[2].append(h("span"));
      return row;
    }, (row, batch) => {
      label(row.children[2].firstChild, batch);
      say(row.children[1], safe(batch.workflow));
      say(row.children[3], percentage(batch.percentage));
      say(row.children[4], number(batch.counts.total));
      say(row.children[5], number(batch.counts.failed));
      say(row.children[6], moment(new Date(batch.created_at)));
    });
  }

  let pause = PAUSE;
  for (let turn = 0; !signal.aborted; turn += 1) {
    await seen(signal);
    try {
      await read(0);
      while (shown.length < wanted && hasMore && await read(shown.length));
      // Of the older ones, one page in each turn, if a batch on it has not ended.
      const pages = Math.ceil(shown.length / ON_A_PAGE) - 1;
      const from = pages > 0 ? (1 + (turn % pages)) * ON_A_PAGE : 0;
      if (from && shown.slice(from, from + ON_A_PAGE).some((batch) => !ENDED.includes(batch.state.tag))) await read(from);
      pause = PAUSE;
      draw();
      say(link, "live");
    } catch (error) {
      if (error instanceof Refused && [401, 403].includes(error.status)) throw error;
      pause = Math.min(pause * 2, 30_000);
      say(link, "connection lost, trying again");
    }
    await asked.heard(pause * (0.75 + Math.random() / 2), signal);
  }
}
