"use strict";
// The last script: the page starts when all tabs are there.

function load() {
  server.loadModels().catch((error) => page.fail(error, load));
}

function useKey(key) {
  server.key = key;
  sessionStorage.setItem("key", key);
}

// `headway open` opens this page with a one-time key, #key=KEY&tab=TAB, which is removed from the address and exchanged
// for the key of this browser tab.
async function start() {
  const address = new URLSearchParams(location.hash.slice(1)), oneTimeKey = address.get("key"), tab = address.get("tab");
  if (oneTimeKey === null) return load();
  history.replaceState(null, "", tab ? `#${tab}` : location.pathname);
  // A tab that is let in already keeps its key: using a one-time key twice would end its session.
  if (server.key && await server.json("/v1/models").then(() => true, () => false)) return load();
  const exchange = async () => {
    try {
      useKey((await server.json("/v1/session", { body: { one_time_key: oneTimeKey } })).key);
    } catch (error) {
      page.fail(error, exchange);
      if (error.status !== 401 || !server.key) return;
    }
    load();
  };
  await exchange();
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(document.getElementById("key").value.trim());
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
window.addEventListener("popstate", () => location.hash.startsWith("#key=") ? start() : page.open(location.hash.slice(1), false));
window.addEventListener("resize", () => page.revealTab());
window.addEventListener("dragover", (event) => event.preventDefault()); // a file dropped next to a form must not replace the page
window.addEventListener("drop", (event) => event.preventDefault());
start();
server.watchModels();
