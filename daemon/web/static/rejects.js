// Marks and promotions: the same commands that MQTT and the shell have.
"use strict";

for (const part of document.querySelectorAll(".part")) actOn(part);
