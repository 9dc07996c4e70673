// Marks and promotions; what is shown stays, also where the daemon goes and comes.
"use strict";

for (const part of document.querySelectorAll(".part")) actOn(part);
listen({ back: () => lost(false) });
