// Pictures of a batch: its state machine, and how it went over time.
import { duration, h, moment, s, say, words } from "./elements.js";

export const wide = matchMedia("(min-width: 46rem)");

export function machine(snapshot) {
  const current = snapshot.state.tag;
  const happy = ["pending", ...snapshot.stages.map((stage) => stage.stage), "resolving", "completed"];
  const off = ["failed", "cancelled"];
  const across = wide.matches ? Math.min(happy.length, 6) : 2;
  const [width, height, gapX, gapY] = [150, 34, 24, 22];
  const place = (index) => [(index % across) * (width + gapX), Math.floor(index / across) * (height + gapY)];
  const rows = Math.ceil(happy.length / across);
  const reached = happy.indexOf(current);
  const node = (x, y, name, kind) => s("g", { class: `state ${kind}` },
    s("rect", { x, y, width, height, rx: 6 }),
    s("text", { x: x + width / 2, y: y + height / 2 + 4, "text-anchor": "middle" }, words(name).length > 20 ? `${words(name).slice(0, 19)}…` : words(name)));
  const picture = s("svg", {
    viewBox: `-4 -4 ${across * (width + gapX) - gapX + 8} ${(rows + 1) * (height + gapY) - gapY + 8}`, role: "img",
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

/** A plot of one figure of a timeline's points, by time; its value now is the last one, unless another or null is given. */
export function plot(title, digits, figureOf) {
  const [width, height] = [320, 96];
  const line = s("polyline", { class: "line" });
  const area = s("polygon", { class: "area" });
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", preserveAspectRatio: "none", class: "plot" }, area, line);
  const caption = h("figcaption");
  const from = h("span");
  const to = h("span");
  const draw = (timeline, now) => {
    const points = timeline.points;
    const values = points.map(figureOf);
    const most = Math.max(0, ...values);
    const start = Date.parse(points[0]?.at);
    const end = Date.parse(timeline.until);
    const x = (at) => (((at - start) / Math.max(1, end - start)) * width).toFixed(1);
    const y = (value) => (height - (value / Math.max(most, 1e-9)) * (height - 8)).toFixed(1);
    // Each value holds for its whole span.
    const steps = points.flatMap((point, index) => {
      const next = index + 1 < points.length ? Date.parse(points[index + 1].at) : end;
      return [`${x(Date.parse(point.at))},${y(values[index])}`, `${x(next)},${y(values[index])}`];
    });
    line.setAttribute("points", steps.join(" "));
    area.setAttribute("points", steps.length ? [`0,${height}`, ...steps, `${width},${height}`].join(" ") : "");
    const shown = (value) => value.toFixed(value > 0 && value < 10 ? digits : 0);
    const text = points.length ? `${title}: ${now === null ? "" : `${shown(now ?? values.at(-1))} now, `}${shown(most)} at most` : `${title}: nothing yet`;
    say(caption, text);
    say(from, points.length ? moment(new Date(start)) : "");
    say(to, points.length ? moment(new Date(end)) : "");
    picture.setAttribute("aria-label", points.length ? `${text}, in ${duration((end - start) / 1000)}` : text);
  };
  return { figure: h("figure", {}, caption, picture, h("div", { class: "axis" }, from, to)), draw };
}
