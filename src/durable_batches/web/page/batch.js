// One batch, live: its stream, and what is asked for beside it.
import { bell, left, seen } from "./attention.js";
import { arrange, duration, errorText, h, label, moment, number, percentage, safe, say, table, words } from "./elements.js";
import { optionsForm } from "./options.js";
import { machine, plot, wide } from "./pictures.js";
import { getJSON, headers } from "./server.js";
import { follow, Refused } from "./stream.js";

const COUNTS = ["pending", "running", "waiting", "succeeded", "failed", "cancelled"];
const ENDED = ["completed", "failed", "cancelled"];
const ON_A_PAGE = 50;
/** Between two looks at what is beside the stream, in milliseconds: they cost the store more than a snapshot does. */
const PAUSE = 2_000;
/** A batch that stands still is looked at as well: why it does may change. */
const IDLE = 15_000;
/** A tab that nobody looks at gives its connection back: a browser has six to a server. */
const AWAY = 10_000;

function batchView(base) {
  const tag = h("span", { class: "tag" });
  const name = h("bdi");
  const alert_ = h("p", { role: "status", class: "bad" });
  const percent = h("strong");
  const facts = h("span");
  const workflow = h("bdi");
  const picture = h("div");
  const bars = h("ul", { class: "bars" });
  const counts = h("dl", { class: "counts" });
  const rate = plot("Documents finished in a second", 1, (point) => point.documents_per_second);
  const inside = plot("Documents running", 0, (point) => point.running);
  const stages = table("Stages", ["Stage", "In it now", "Median time", "95 % within", "Longest", "Documents"]);
  const since = h("p", { class: "dim", hidden: true });
  const why = h("ul", { class: "why" });
  const errors = table("Error groups", ["Documents", "Error", "Activity", "Examples"], "tall");
  const noErrors = h("p", {}, "None.");
  const otherErrors = h("p", { hidden: true });
  const documents = table("Documents", ["Document", "Status", "Stage", "Attempts", "Error"], "tall");
  const noDocuments = h("p", { hidden: true }, "None.");

  const news = bell();
  const choice = bell();
  const choose = (after) => { behind = after; choice.ring(); news.ring(); };
  const chosen = h("select", { id: "status", onchange: () => choose(-1) }, ["failed", "running", "waiting", "pending", "succeeded", "cancelled"].map((status) => h("option", {}, status)));
  const first = h("button", { type: "button", hidden: true, onclick: () => { chosen.focus(); choose(-1); } }, "First documents");
  const next = h("button", { type: "button", hidden: true, onclick: () => choose(following) }, "Next documents");

  const command = (path, title, kind, refused, failed, question) => h("button", { type: "button", class: kind, onclick: async () => {
    if (question && !confirm(question)) return;
    try { await getJSON(`${base}/${path}`, { method: "POST" }); say(alert_, ""); }
    catch (error) { say(alert_, error instanceof Refused && error.status === 403 ? refused : failed); }
  } }, title);
  const pause = command("pause", "Pause batch", "", "You may not pause it.", "It could not be paused: try again.");
  const resume = command("resume", "Resume batch", "", "You may not resume it.", "It could not be resumed: try again.");
  const cancel = command("cancel", "Cancel batch", "danger", "You may not cancel it.", "It could not be cancelled: try again.",
    "Cancel this batch? What runs is stopped; what is recorded stays.");

  const options = optionsForm(base, (text) => say(alert_, text));

  const section = (id, title, ...content) => h("section", { "aria-labelledby": id }, h("h3", { id }, title), ...content);
  // Shown with its first figures, so that nothing moves under a pointer.
  const view = h("div", { hidden: true },
    h("section", { "aria-labelledby": "title" }, h("h2", { id: "title" }, name, " ", tag), alert_,
      h("p", { class: "big" }, percent, " · ", facts, " · ", workflow), h("p", { class: "commands" }, pause, resume, cancel), options, picture),
    section("stages", "Stages", bars),
    section("counts", "Documents", counts),
    section("why", "Why it is where it is", why),
    section("throughput", "Over time", h("div", { class: "plots" }, rate.figure, inside.figure), stages.whole, since),
    section("errors", "Errors", noErrors, errors.whole, otherErrors),
    section("documents", "Documents by status", h("p", {}, h("label", { for: "status" }, "Status "), chosen), noDocuments, documents.whole,
      h("p", { class: "commands" }, first, next)));

  let latest = null;
  let behind = -1;
  let following = null;
  const key = () => `${latest.seq} ${chosen.value} ${behind}`;
  const ended = () => ENDED.includes(latest.state.tag);

  async function look() {
    const [digest, explanation, timeline, page] = await Promise.all([
      getJSON(`${base}/errors`), getJSON(`${base}/explain`), getJSON(`${base}/timeline`),
      getJSON(`${base}/documents?limit=${ON_A_PAGE}&status=${chosen.value}&after=${behind}`),
    ]);
    noErrors.hidden = digest.groups.length > 0;
    errors.whole.hidden = digest.groups.length === 0;
    arrange(errors.body, digest.groups, (group) => group.fingerprint, errors.row, (row, group) => {
      errors.cells(row, [number(group.count), errorText(group.error_type, group.message), safe(group.activity ?? "")]);
      arrange(row.children[3], group.examples, (example) => example.document_id, () => h("bdi", { class: "id" }), (item, example) => say(item, safe(example.document_id)));
    });
    otherErrors.hidden = digest.others === 0;
    say(otherErrors, `${number(digest.others)} more documents failed, in smaller groups.`);
    arrange(why, explanation.sentences, (sentence) => sentence, () => h("li"), (item, sentence) => say(item, safe(sentence)));
    rate.draw(timeline, ended() ? null : undefined);
    inside.draw(timeline, ended() ? null : latest.counts.running);
    const times = new Map(timeline.stages.map((stage) => [stage.stage, stage]));
    arrange(stages.body, latest.stages, (stage) => stage.stage, stages.row, (row, stage) => {
      const time = times.get(stage.stage);
      const shown = (seconds) => (seconds === null || seconds === undefined ? "–" : duration(seconds));
      stages.cells(row, [words(stage.stage), number(stage.current - stage.done), shown(time?.median_seconds), shown(time?.p95_seconds),
        shown(time?.longest_seconds), number(time?.documents ?? 0)]);
    });
    since.hidden = timeline.after === 0;
    say(since, `Of the latest ${number(timeline.seq - timeline.after)} events of ${number(timeline.seq)}.`);
    following = page.next;
    first.hidden = behind === -1;
    const focused = document.activeElement;
    next.hidden = following === null;
    if (focused === next && next.hidden) chosen.focus();
    noDocuments.hidden = page.documents.length > 0;
    documents.whole.hidden = page.documents.length === 0;
    arrange(documents.body, page.documents, (document_) => document_.document_id, documents.row, (row, document_) => documents.cells(row, [
      safe(document_.document_id), document_.status, words(document_.stage ?? ""), number(document_.attempts), document_.failure ? errorText(document_.failure.error_type, document_.failure.error) : "",
    ]));
  }

  /** Keep what is beside the stream as it is, until the signal. */
  async function keep(signal) {
    for (let pause = PAUSE; !signal.aborted;) {
      await news.heard(latest === null || ended() ? 2 ** 30 : IDLE, signal);
      if (latest === null) continue;
      await seen(signal);
      let looked = null;
      while (!signal.aborted && looked !== key()) {
        const asked = key();
        choice.still();
        try {
          await look();
          [looked, pause] = [asked, PAUSE];
        } catch (error) {
          if (error instanceof Refused && [401, 403, 404].includes(error.status)) throw error;
          pause = Math.min(pause * 2, 30_000);
        }
        view.hidden = false;
        // What was chosen meanwhile waits for nothing.
        await choice.heard(pause, signal);
      }
      news.still();
    }
  }

  function draw() {
    if (latest === null) return;
    const shape = `${latest.state.tag} ${latest.stages.length} ${wide.matches ? "desktop" : "phone"}`;
    if (picture.dataset.shape !== shape) {
      picture.replaceChildren(machine(latest));
      picture.dataset.shape = shape;
    }
  }

  function show(snapshot) {
    latest = snapshot;
    document.title = `${safe(snapshot.batch_id)} · Batches`;
    say(name, safe(snapshot.batch_id));
    label(tag, snapshot);
    say(alert_, safe(snapshot.state.error ?? snapshot.state.reason ?? ""));
    const done = snapshot.counts.succeeded + snapshot.counts.failed + snapshot.counts.cancelled;
    say(percent, percentage(snapshot.percentage));
    say(facts, [
      `${number(done)} of ${number(snapshot.counts.total)} documents`,
      snapshot.documents_per_second && `${snapshot.documents_per_second.toFixed(1)}/s`,
      snapshot.eta && !ended() && Date.parse(snapshot.eta) > Date.now() && `ready at ${moment(new Date(snapshot.eta))}`,
      snapshot.ended_at && `ended at ${moment(new Date(snapshot.ended_at))}`,
      snapshot.spent.cost !== "0" && `spent ${snapshot.spent.cost}`,
      snapshot.spent.tokens && `${number(snapshot.spent.tokens)} tokens`,
    ].filter(Boolean).join(" · "));
    say(workflow, `${safe(snapshot.workflow)}, version ${safe(snapshot.version)}`);
    draw();
    arrange(bars, snapshot.stages, (stage) => stage.stage, (stage) => h("li", {}, h("label", {},
      h("span", {}, words(stage.stage)), h("span", { class: "n" }), h("progress", { max: 1, value: 0 }))), (item, stage) => {
      const bar = item.querySelector("progress");
      bar.max = Math.max(stage.total, 1);
      bar.value = stage.done;
      say(item.querySelector(".n"), `${number(stage.done)} of ${number(stage.total)}`);
    });
    arrange(counts, COUNTS, (count) => count, (count) => h("div", {}, h("dt", {}, count), h("dd")), (item, count) => {
      item.className = `${count} ${snapshot.counts[count] ? "some" : ""}`;
      say(item.lastChild, number(snapshot.counts[count]));
    });
    cancel.hidden = options.hidden = ended();
    // Focus stays with the button in its place, so that a keyboard can take the command back.
    const held = snapshot.pauses.some((each) => each.reason === "operator");
    const focused = document.activeElement;
    pause.hidden = ended() || held;
    resume.hidden = ended() || snapshot.pauses.length === 0;
    // Without an operator's pause there is none that a command could lift: the provider is asked at once.
    say(resume, held ? "Resume batch" : "Ask provider now");
    if ((focused === pause || focused === resume) && focused.hidden) (held ? resume : pause).focus();
    news.ring();
  }

  wide.addEventListener("change", draw);
  return { view, show, keep, moved: news.ring };
}

/** Show a batch until the signal, or until the server refuses it. */
export async function showBatch(segment, main, link, signal) {
  const base = `batches/${encodeURIComponent(segment)}`;
  const { view, show, keep, moved } = batchView(base);
  main.replaceChildren(view);

  async function stream() {
    for (let after = ""; !signal.aborted;) {
      await seen(signal);
      const away = new AbortController();
      const stop = () => away.abort();
      signal.addEventListener("abort", stop, { once: true });
      left(AWAY, away.signal).then(stop);
      try {
        for await (const message of follow(`${base}/snapshots`, { headers: headers(), signal: away.signal, after })) {
          if (message.link) {
            say(link, { open: "live", lost: "connection lost, trying again", ended: "ended" }[message.link]);
            if (message.link !== "lost") moved();
          } else {
            after = message.id;
            show(JSON.parse(message.data));
          }
        }
      } finally {
        signal.removeEventListener("abort", stop);
        stop();
      }
    }
  }

  await Promise.all([stream(), keep(signal)]);
}
