// The recipes, as they were when the page was opened.
"use strict";
listen();
