// A picture that is looked at closely: wheel, pinch, keys and buttons zoom it, drag and arrow keys move it.
"use strict";
const mostZoom = 16, zoomStep = 1.5, moveStep = 60;

function zoomable(stage, layers, { zoomIn, zoomOut, fit }) {
  let scale = 1, x = 0, y = 0; // the layers' upper left corner, in pixels of the stage
  const held = new Map(); // pointers that are down
  const show = () => {
    const within = (offset, size) => Math.min(0, Math.max(size * (1 - scale), offset));
    x = within(x, stage.clientWidth);
    y = within(y, stage.clientHeight);
    layers.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    stage.dataset.zoom = scale.toFixed(2);
    // On a phone the page scrolls over a picture that is shown whole.
    stage.style.touchAction = scale > 1 ? "none" : "pan-y";
  };
  const zoom = (factor, atX = stage.clientWidth / 2, atY = stage.clientHeight / 2) => {
    const next = Math.min(mostZoom, Math.max(1, scale * factor));
    x = atX - (atX - x) * next / scale;
    y = atY - (atY - y) * next / scale;
    scale = next;
    show();
  };
  const whole = () => { scale = 1; show(); };
  const keys = {
    "+": () => zoom(zoomStep), "=": () => zoom(zoomStep), "-": () => zoom(1 / zoomStep), 0: whole,
    ArrowLeft: () => { x += moveStep; show(); }, ArrowRight: () => { x -= moveStep; show(); },
    ArrowUp: () => { y += moveStep; show(); }, ArrowDown: () => { y -= moveStep; show(); },
  };
  const place = (event) => {
    const at = stage.getBoundingClientRect();
    return [event.clientX - at.x, event.clientY - at.y];
  };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    // A picture that is shown whole does not move: the arrow keys scroll the page.
    if (scale === 1 && event.key.startsWith("Arrow")) return;
    event.preventDefault();
    keys[event.key]();
  });
  stage.addEventListener("wheel", (event) => {
    // Whoever scrolls down the page is not held up by a picture that is shown whole.
    if (scale === 1 && event.deltaY > 0) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...place(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, place(event));
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (before === undefined) return;
    const now = place(event);
    if (held.size === 1) { x += now[0] - before[0]; y += now[1] - before[1]; show(); }
    if (held.size === 2) {
      const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const apart = (at) => Math.max(1, Math.hypot(at[0] - other[0], at[1] - other[1]));
      zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    held.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => held.delete(event.pointerId));
  zoomIn.addEventListener("click", () => zoom(zoomStep));
  zoomOut.addEventListener("click", () => zoom(1 / zoomStep));
  fit.addEventListener("click", whole);
  new ResizeObserver(show).observe(stage);
}
