// Keeps an open page current: asks for it every few seconds with the ETag of what it shows, and
// swaps the regions marked data-live that differ. Without JavaScript the page is reloaded by hand.
"use strict";

const PAUSE = 3000;
const LONGEST_PAUSE = 30000;
const UNITS = [["day", 86400, 2], ["hour", 3600, 1], ["minute", 60, 1], ["second", 1, 1]];

let etag = null;
let failures = 0;
let timer = null;

function words(seconds) {
  const passed = Math.abs(seconds);
  if (passed < 5) return "just now";
  const [unit, length] = UNITS.find(([, length, from]) => passed >= length * from);
  const number = Math.floor(passed / length);
  const said = `${number} ${unit}${number === 1 ? "" : "s"}`;
  return seconds > 0 ? `${said} ago` : `in ${said}`;
}

function tellTime() {
  for (const time of document.querySelectorAll("time")) {
    const passed = (Date.now() - Date.parse(time.dateTime)) / 1000;
    const said = "due" in time.dataset && passed > -5 ? "any moment" : words(passed);
    if (time.textContent !== said) time.textContent = said;
  }
}

function content(region) {
  const copy = region.cloneNode(true);
  for (const time of copy.querySelectorAll("time")) time.textContent = "";
  return copy.innerHTML;
}

function swap(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  const shown = [...document.querySelectorAll("[data-live]")];
  // A region that comes or goes (the first module, a history) changes the frame: load it anew.
  if (shown.length !== fresh.querySelectorAll("[data-live]").length ||
      document.forms.length !== fresh.forms.length) {
    location.reload();
    return;
  }
  for (const region of shown) {
    const next = fresh.getElementById(region.id);
    if (next && content(region) !== content(next)) region.replaceWith(document.adoptNode(next));
  }
}

async function ask() {
  const headers = etag ? { "If-None-Match": etag } : {};
  const answer = await fetch(location.href, {
    headers: { Accept: "text/html", ...headers },
    cache: "no-store",
    signal: AbortSignal.timeout(10000),
  });
  if (answer.status === 304) return;
  if (!answer.ok) throw new Error(answer.statusText);
  const html = await answer.text();
  etag = answer.headers.get("ETag");
  swap(html);
}

async function refresh() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      await ask();
      failures = 0;
    } catch {
      failures += 1;
    }
    document.getElementById("away").hidden = failures < 2;
    tellTime();
  }
  const pause = Math.min(PAUSE * 2 ** failures, LONGEST_PAUSE);
  timer = setTimeout(refresh, document.hidden ? LONGEST_PAUSE : pause);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
