"use strict";
const episode = JSON.parse(document.getElementById("episode").textContent);
const last = episode.length - 1;
const byId = (id) => document.getElementById(id);
let frame = 0, playing = false, turn = { yaw: -0.7, pitch: 0.5 };

// ---- small helpers ------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "rect", "clipPath", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function number(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3).replace(/^-(0(\.0+)?)$/, "$1");
}

function line(values, curve, first = 0) {
  const height = (value) => 100 * (curve.high - Math.min(curve.high, Math.max(curve.low, value))) / (curve.high - curve.low);
  return "M" + values.map((value, i) => `${first + i} ${height(value).toFixed(2)}`).join("L");
}

const top_ = (value, curve) => 100 * (curve.high - Math.min(curve.high, Math.max(curve.low, value))) / (curve.high - curve.low);

// ---- the head -----------------------------------------------------------------------------------------------

byId("crumbs").textContent = `${episode.dataset}  ·  episode ${episode.number} (of 0 to ${episode.episodes - 1})`;
for (const [text, kind] of episode.chips) byId("chips").append(make("span", { class: `chip ${kind}` }, text));

// ---- cameras ------------------------------------------------------------------------------------------------

const cameras = episode.cameras.map((camera) => {
  const canvas = make("canvas", { width: camera.width, height: camera.height, role: "img", "aria-label": camera.name });
  byId("cameras").append(make("figure", { class: "camera" }, canvas, make("figcaption", {}, camera.name)));
  return { ...camera, canvas, context: canvas.getContext("2d"), decoded: new Map(), shown: -1 };
});

function picture(camera, number) {
  // The pictures near the present stay decoded; what was used longest ago is dropped.
  let image = camera.decoded.get(number);
  if (!image) {
    image = new Image();
    image.src = `data:image/webp;base64,${camera.frames[number]}`;
    camera.decoded.set(number, image);
    if (camera.decoded.size > 240) camera.decoded.delete(camera.decoded.keys().next().value);
  }
  return image;
}

function showPictures() {
  for (const camera of cameras) {
    const wanted = frame, image = picture(camera, wanted);
    const draw = () => {
      if (frame !== wanted) return;
      camera.context.drawImage(image, 0, 0, camera.width, camera.height);
      camera.shown = wanted;
      document.documentElement.dataset.shown = Math.min(...cameras.map((each) => each.shown));
    };
    if (image.complete && image.naturalWidth) draw(); else image.onload = draw;
    for (let ahead = 1; ahead <= 6 && wanted + ahead <= last; ahead++) picture(camera, wanted + ahead);
  }
}

// ---- curves -------------------------------------------------------------------------------------------------

const rows = [];
for (const group of episode.groups) {
  const box = make("div", { class: "group" }, make("header", {}, make("h2", {}, group.title), make("span", {}, group.note)));
  for (const curve of group.curves) {
    const svg = make("svg", { viewBox: `0 0 ${Math.max(last, 1)} 100`, preserveAspectRatio: "none" });
    const stroke = `stroke: var(--${curve.colour})`, id = `played-${rows.length}`;
    const played = make("rect", { x: -1, y: -20, height: 140, width: 1 });
    if (curve.low < 0 && curve.high > 0) svg.append(make("path", { class: "zero", d: line([0, ...Array(last).fill(0)], curve) }));
    svg.append(make("clipPath", { id }, played), make("path", { class: "all", style: stroke, d: line(curve.values, curve) }));
    svg.append(make("path", { style: stroke, "clip-path": `url(#${id})`, d: line(curve.values, curve) }));
    const chunk = make("path", { class: "chunk" });
    if (curve.predicted) svg.append(make("path", { class: "guess", d: line(curve.predicted, curve) }), chunk);
    const cursor = make("div", { class: "cursor" }), dot = make("div", { class: "dot", style: `background: var(--${curve.colour})` });
    const plot = make("div", { class: "plot" }, svg, cursor, dot);
    plot.append(make("span", { class: "limit", style: "top: -1px" }, number(curve.most)));
    plot.append(make("span", { class: "limit", style: "bottom: -1px" }, number(curve.least)));
    const scrub = (event) => {
      const box = plot.getBoundingClientRect();
      go(Math.round((event.clientX - box.left) / box.width * last));
    };
    plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); pause(); scrub(event); });
    plot.addEventListener("pointermove", (event) => { if (event.buttons) scrub(event); });
    const value = make("div", { class: "value" });
    box.append(make("div", { class: "row" }, make("div", { class: "name" }, curve.name, make("small", {}, curve.unit)), plot, value));
    rows.push({ curve, played, cursor, dot, chunk, value });
  }
  byId("curves").append(box);
}

function showCurves() {
  for (const { curve, played, cursor, dot, chunk, value } of rows) {
    const now = curve.values[frame], left = last ? 100 * frame / last : 0;
    played.setAttribute("width", frame + 1);
    cursor.style.left = dot.style.left = `${left}%`;
    dot.style.top = `${top_(now, curve)}%`;
    value.textContent = number(now);
    if (curve.predicted) {
      const ahead = episode.chunks[frame].map((action) => action[curve.dimension]).slice(0, last - frame + 1);
      chunk.setAttribute("d", line(ahead, curve, frame));
      value.append(make("span", { class: "p" }, number(curve.predicted[frame])));
    }
  }
}

// ---- what is done now ---------------------------------------------------------------------------------------

const actions = episode.groups[0].curves;
byId("now").append(make("figcaption", {}, episode.groups[0].title + " now"));
const bars = actions.map((curve) => {
  const fill = make("i", { style: `background: var(--${curve.colour})` }), mark = make("b"), value = make("span", { class: "value" });
  const gauge = make("span", { class: "gauge" }, fill);
  if (curve.predicted) gauge.append(mark);
  byId("now").append(make("div", { class: "bar" }, make("span", { class: "name" }, curve.name), gauge, value));
  return { curve, fill, mark, value };
});

function showBars() {
  for (const { curve, fill, mark, value } of bars) {
    const signed = curve.least < 0, to = signed ? Math.max(-curve.least, curve.most) : curve.most, from = signed ? -to : Math.min(0, curve.least);
    const place = (v) => 100 * (Math.min(to, Math.max(from, v)) - from) / (to - from || 1);
    const now = place(curve.values[frame]), zero = place(Math.max(0, from));
    fill.style.left = `${Math.min(now, zero)}%`;
    fill.style.width = `${Math.max(Math.abs(now - zero), 0.8)}%`;
    if (curve.predicted) mark.style.left = `${place(curve.predicted[frame])}%`;
    value.replaceChildren(number(curve.values[frame]) + " ", make("small", {}, curve.unit.replace(" per step", "")));
  }
}

// ---- the path of the hand -----------------------------------------------------------------------------------

const arms = episode.path.arms, points = arms.flatMap((arm) => arm.points);
byId("path-title").textContent = episode.path.title;
byId("path").parentElement.hidden = !arms.length;
const low = [0, 1, 2].map((axis) => Math.min(...points.map((p) => p[axis])));
const high = [0, 1, 2].map((axis) => Math.max(...points.map((p) => p[axis])));
const middle = low.map((value, axis) => (value + high[axis]) / 2);
const reach = Math.max(0.02, Math.hypot(...low.map((value, axis) => high[axis] - value)) / 2);

function showPath() {
  const canvas = byId("path"), ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (!points.length || !width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const scale = 0.44 * Math.min(width, height) / reach, [s, c] = [Math.sin(turn.yaw), Math.cos(turn.yaw)];
  const flat = ([x, y, z]) => {
    const [a, b, up] = [x - middle[0], y - middle[1], z - middle[2]];
    const side = a * s + b * c, depth = a * c - b * s;
    return [width / 2 + scale * side, height / 2 - scale * (up * Math.cos(turn.pitch) - depth * Math.sin(turn.pitch))];
  };
  const stroke = (list, style, thick) => {
    pen.beginPath();
    list.map(flat).forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.strokeStyle = style;
    pen.lineWidth = thick;
    pen.stroke();
  };
  const floor = low[2] - 0.08 * reach, size = reach * 1.05;
  for (let i = -2; i <= 2; i++) {
    const at = i * size / 2;
    stroke([[middle[0] + at, middle[1] - size, floor], [middle[0] + at, middle[1] + size, floor]], colour("edge"), 1);
    stroke([[middle[0] - size, middle[1] + at, floor], [middle[0] + size, middle[1] + at, floor]], colour("edge"), 1);
  }
  pen.lineJoin = pen.lineCap = "round";
  for (const { points, closed } of arms) {
    stroke(points.map(([x, y]) => [x, y, floor]), colour("track"), 3);
    for (let t = 0; t < points.length - 1; t++) {
      pen.globalAlpha = t < frame ? 1 : 0.3;
      stroke([points[t], points[t + 1]], colour(closed && closed[t] ? "gripper" : "position"), 2.4);
    }
    pen.globalAlpha = 1;
    const here = points[Math.min(frame, points.length - 1)], [x, y] = flat(here), [, ground] = flat([here[0], here[1], floor]);
    stroke([here, [here[0], here[1], floor]], colour("quiet"), 1);
    pen.fillStyle = colour("quiet");
    pen.fillRect(x - 2, ground - 1, 4, 2);
    pen.fillStyle = colour("text");
    pen.beginPath();
    pen.arc(x, y, 5, 0, 7);
    pen.fill();
  }
  pen.font = "11px system-ui";
  pen.fillStyle = colour("quiet");
  const places = arms.map(({ points }) => points[Math.min(frame, points.length - 1)].map((v) => (v * 100).toFixed(1)).join("  "));
  pen.fillText(`${places.join("   ·   ")} cm`, 0, height - 4);
  const origin = [24, 26], axes = [["x", [1, 0, 0]], ["y", [0, 1, 0]], ["z", [0, 0, 1]]];
  for (const [name, [a, b, up]] of axes) {
    const end = [origin[0] + 16 * (a * s + b * c), origin[1] - 16 * (up * Math.cos(turn.pitch) - (a * c - b * s) * Math.sin(turn.pitch))];
    pen.strokeStyle = colour("quiet");
    pen.lineWidth = 1.2;
    pen.beginPath();
    pen.moveTo(...origin);
    pen.lineTo(...end);
    pen.stroke();
    pen.fillText(name, origin[0] + (end[0] - origin[0]) * 1.4 - 3, origin[1] + (end[1] - origin[1]) * 1.4 + 3);
  }
}

byId("path").addEventListener("pointerdown", (event) => event.target.setPointerCapture(event.pointerId));
byId("path").addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  turn = { yaw: turn.yaw - event.movementX * 0.01, pitch: Math.min(1.55, Math.max(0, turn.pitch + event.movementY * 0.01)) };
  showPath();
});
window.addEventListener("resize", showPath);

// ---- time ---------------------------------------------------------------------------------------------------

const slider = byId("slider"), speed = byId("speed"), bands = byId("bands");
slider.max = last;
bands.setAttribute("viewBox", `0 0 ${Math.max(last, 1)} 10`);
const share = 10 / episode.closed.length;
episode.closed.forEach((told, gripper) => told.forEach((closed, t) => {
  if (closed) bands.append(make("rect", { x: t - 0.5, y: gripper * share, width: 1.02, height: share, style: "fill: var(--gripper); opacity: .55" }));
}));
const legend = episode.closed.length ? [["gripper", episode.closed.length > 1 ? "left and right gripper told to close" : "gripper told to close"]] : [];
if (episode.error) {
  const most = Math.max(...episode.error, 1e-9);
  episode.error.forEach((error, t) =>
    bands.append(make("rect", { x: t - 0.5, y: 6, width: 1.02, height: 4, style: `fill: var(--predicted); opacity: ${(error / most).toFixed(3)}` })));
  legend.push(["predicted", "predicted, and where it is off the most"]);
  const worst = episode.error.indexOf(most), jump = make("a", { href: `#${worst}` }, `frame ${worst}`);
  byId("worst").append("farthest from the recorded action: ", jump, `, ${number(most)} ${episode.error_unit}`);
}
for (const [name, text] of legend) byId("legend").append(make("span", {}, make("i", { style: `background: var(--${name})` }), text));
for (const factor of [0.1, 0.25, 0.5, 1, 2, 4]) speed.append(make("option", { value: factor }, `${factor}×`));
speed.value = 1;

const signs = { play: "M4 2.5v13l11-6.5z", pause: "M4 3h3.6v12H4zM10.4 3H14v12h-3.6z" };
function sign(name) {
  byId("play").replaceChildren(make("svg", { viewBox: "0 0 18 18" }, make("path", { d: signs[name] })));
}

function go(to) {
  frame = Math.min(last, Math.max(0, to));
  slider.value = frame;
  byId("clock").replaceChildren(make("b", {}, String(frame)), ` / ${last}  ·  `, make("b", {}, (frame / episode.hz).toFixed(2)), " s");
  byId("instruction").textContent = episode.changes.findLast(([from]) => from <= frame)[1];
  showPictures();
  showCurves();
  showBars();
  showPath();
  document.documentElement.dataset.frame = frame;
}

function pause() {
  if (playing) history.replaceState(null, "", `#${frame}`);
  playing = false;
  sign("play");
}

function play() {
  if (frame === last) go(0);
  playing = true;
  sign("pause");
  let then = performance.now(), owed = 0;
  const step = (now) => {
    if (!playing) return;
    owed += (now - then) / 1000 * episode.hz * speed.value;
    then = now;
    const steps = Math.floor(owed);
    owed -= steps;
    if (steps) go(frame + steps);
    if (frame === last) pause(); else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

byId("play").addEventListener("click", () => (playing ? pause() : play()));
slider.addEventListener("input", () => { pause(); go(Number(slider.value)); });
document.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (event.target === speed || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " ") playing ? pause() : play();
  else if (steps) { pause(); go(frame + steps * (event.shiftKey && Number.isFinite(steps) ? 10 : 1)); }
  else return;
  event.preventDefault();
});
const asked = () => Number.parseInt(location.hash.slice(1), 10) || 0;
window.addEventListener("hashchange", () => { pause(); go(asked()); });
sign("play");
go(asked());
