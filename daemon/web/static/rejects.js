// Marks and promotions: the same commands that MQTT and the shell have.
"use strict";

for (const part of document.querySelectorAll(".part")) {
  const result_id = part.dataset.result;
  const note = part.querySelector(".note");
  let held = false;
  const showMark = (mark) => {
    part.dataset.mark = mark;
    part.querySelector(".mark").textContent = texts[`marked_${mark}`];
  };
  const act = async (work) => {
    const buttons = part.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    note.textContent = "";
    try { await work(); } catch (error) { note.textContent = error.message; }
    for (const button of buttons) button.disabled = false;
  };
  for (const button of part.querySelectorAll("button[data-mark]")) {
    button.addEventListener("click", () => act(async () => {
      await command("mark", { result_id, verdict: button.dataset.mark });
      showMark(button.dataset.mark);
    }));
  }
  part.querySelector("[data-promote]")?.addEventListener("click", () => act(async () => {
    const { shots: [shot] } = await command("promote", { result_id, force: held });
    held = shot.held !== null;
    note.textContent = [held ? texts.held : shot.new ? texts.promoted : texts.known, ...shot.warnings].join(". ");
    if (!held) showMark("good");
  }));
}
