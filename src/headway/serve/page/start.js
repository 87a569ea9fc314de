"use strict";
// The last script: the page starts when all tabs are there.

function load() {
  server.loadModels().catch((error) => { if (error.status !== 401) page.fail(error, load); });
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  server.key = document.getElementById("key").value.trim();
  sessionStorage.setItem("key", server.key);
  page.fail(null);
  document.getElementById("access").hidden = true;
  load();
});
document.getElementById("dismiss").addEventListener("click", () => page.fail(null));
document.getElementById("tabs").addEventListener("keydown", (event) => {
  const shown = page.tabs.filter((tab) => !tab.button.hidden), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const index = step ? shown.indexOf(page.current) + step : { Home: 0, End: shown.length - 1 }[event.key];
  if (index === undefined) return;
  event.preventDefault();
  const tab = shown[(index + shown.length) % shown.length];
  page.open(tab.id);
  tab.button.focus();
});
window.addEventListener("popstate", () => page.open(location.hash.slice(1), false));
window.addEventListener("dragover", (event) => event.preventDefault()); // a file dropped next to a form must not replace the page
window.addEventListener("drop", (event) => event.preventDefault());
load();
