// Scores as bars, the reference shots' below them, and the threshold as a line that may be dragged. Nothing is set by it.
"use strict";
const bins = 40, heightPx = 190, barsTop = 16, floorPx = 136, gripPx = 44, padPx = 22;

// moved(value): the line was moved there by hand.
function histogram(svg, moved) {
  const line = svg.querySelector("#threshold-line");
  let told = { scores: [], shots: [], threshold: null, calibrated: null }, draft = null, top = 1, dragging = false;
  const make = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const set = (element, attributes) => { for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value); };
  const x = (value) => padPx + (svg.clientWidth - 2 * padPx) * Math.min(value / top, 1);

  // The right edge: near enough to the threshold that it can be moved finely; what scores more is in the last bar.
  function scale() {
    const { scores, shots, threshold, calibrated } = told;
    const near = Math.max(...shots, threshold ?? 0, calibrated ?? 0, draft ?? 0);
    const highest = Math.max(near, ...scores);
    return 1.15 * (near > 0 ? Math.min(highest, 3 * near) : highest) || 1;
  }

  function draw() {
    const { scores, shots, threshold, calibrated } = told;
    const now = draft ?? threshold;
    // What is dragged keeps its scale.
    if (!dragging) top = scale();
    set(svg, { viewBox: `0 0 ${svg.clientWidth} ${heightPx}` });
    const counts = Array(bins).fill(0);
    for (const score of scores) counts[Math.min(bins - 1, Math.max(0, Math.floor(bins * score / top)))] += 1;
    const most = Math.max(...counts, 1);
    svg.querySelector("#bars").replaceChildren(...counts.flatMap((count, bin) => {
      if (count === 0) return [];
      const [from, to] = [x(top * bin / bins), x(top * (bin + 1) / bins)];
      // The square root: a lone part beside hundreds is to be seen.
      const height = (floorPx - barsTop) * Math.sqrt(count / most);
      const over = now !== null && top * (bin + 0.5) / bins > now;
      return [make("rect", { class: over ? "over" : "under", x: from + 1, width: Math.max(1, to - from - 2), y: floorPx - height, height })];
    }));
    svg.querySelector("#shots").replaceChildren(...shots.map((score) => {
      const at = x(score);
      return make("path", { d: `M${at} ${floorPx + 3}l5 10h-10z` });
    }));
    const digits = top < 0.05 ? 4 : top < 0.5 ? 3 : 2;
    svg.querySelector("#axis").replaceChildren(
      make("line", { x1: x(0), x2: x(top), y1: floorPx, y2: floorPx }),
      ...[0, 0.25, 0.5, 0.75, 1].map((share) => make("text", { x: x(share * top), y: heightPx - 14, "text-anchor": "middle" },
        `${share === 1 && Math.max(...scores) > top ? "≥ " : ""}${(share * top).toFixed(digits)}`)),
    );
    const calibratedLine = svg.querySelector("#calibrated");
    calibratedLine.toggleAttribute("hidden", calibrated === null);
    if (calibrated !== null) set(calibratedLine, { x1: x(calibrated), x2: x(calibrated), y1: barsTop, y2: floorPx + 14 });
    line.toggleAttribute("hidden", now === null);
    if (now === null) return;
    const at = x(now);
    set(line.querySelector("line"), { x1: at, x2: at, y1: 8, y2: floorPx + 14 });
    set(line.querySelector("path"), { d: `M${at - 9} 2h18l-9 14z` });
    set(line.querySelector("rect"), { x: at - gripPx / 2, y: 0, width: gripPx, height: floorPx + 14 });
    if (moved !== undefined) set(line, { "aria-valuemin": 0, "aria-valuemax": top.toFixed(4), "aria-valuenow": now.toFixed(4), "aria-valuetext": now.toFixed(4) });
  }

  function move(value) {
    moved(Math.max(top / 1000, Math.min(top, value)));
  }

  if (moved !== undefined) {
    line.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      line.focus();
      line.setPointerCapture(event.pointerId);
      dragging = true;
    });
    line.addEventListener("pointermove", (event) => {
      if (!dragging) return;
      move(top * (event.clientX - svg.getBoundingClientRect().x - padPx) / (svg.clientWidth - 2 * padPx));
    });
    for (const end of ["pointerup", "pointercancel"]) line.addEventListener(end, () => { dragging = false; draw(); });
    line.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
      if (steps === undefined) return;
      event.preventDefault();
      move((draft ?? told.threshold) + steps * top / 200);
    });
  }
  new ResizeObserver(draw).observe(svg);
  return {
    show(next) { told = next; draw(); },
    // The line where it would be; null: where it is.
    draft(value) { draft = value; draw(); },
  };
}
