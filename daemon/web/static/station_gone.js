// A station that is not there, or not yet.
"use strict";
listen({ state: ({ station }) => { if (station === document.body.dataset.station) location.reload(); } });
