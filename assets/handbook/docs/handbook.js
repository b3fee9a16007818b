// What the theme's pages say inside themselves, where they may not.
var base_url = new URL(".", document.currentScript.src).pathname.replace(/\/$/, "") || "/";
var shortcuts = { help: 191, next: 78, previous: 80, search: 83 };
