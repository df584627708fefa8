"use strict";
// What is under the cursor: the step, and each line's value there.
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll(".chart svg")) {
  const lines = JSON.parse(svg.dataset.lines), unit = svg.dataset.unit, cursor = svg.querySelector(".cursor");
  const hide = () => { tip.style.visibility = "hidden"; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const nearest = (xs) => xs.reduce((best, value, i) => Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best, 0);
    const [, xs, steps] = lines.reduce((a, b) => Math.abs(b[1][nearest(b[1])] - x) < Math.abs(a[1][nearest(a[1])] - x) ? b : a);
    const place = xs[nearest(xs)];
    const said = [`step ${steps[nearest(xs)].toLocaleString("en")}`];
    for (const [label, places, , values] of lines) said.push(`${label}: ${values[nearest(places)]}${unit ? " " + unit : ""}`);
    tip.textContent = said.join("\n");
    tip.style.visibility = cursor.style.visibility = "visible";
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  });
}
// A click on a picture plays it, as one on its button does; only one film plays at a time.
const films = [...document.querySelectorAll("video")];
for (const film of films) {
  film.addEventListener("play", () => films.forEach((other) => { if (other !== film) other.pause(); }));
}
// Print shows what is folded.
let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; opened.forEach((each) => { each.open = true; }); });
addEventListener("afterprint", () => { opened.forEach((each) => { each.open = false; }); });
