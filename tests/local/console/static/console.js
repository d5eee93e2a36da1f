"use strict";
// The console without this file is complete: pages are made by the server, forms are forms. This
// follows what happens (server-sent events), searches and checks while one types, and keeps the
// list where it is when another item is opened.

const byId = (id) => document.getElementById(id);

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // rendered and escaped by the server
  return template.content.firstElementChild;
}

function after(milliseconds, run) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds, ...values);
  };
}

// --- what is new ---

let source;

function follow() {
  source?.close();
  const rows = document.querySelector("[data-live]");
  if (!rows) return;
  source = new EventSource(rows.dataset.live);
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  source.onopen = () => tell("live", "Live");
  source.onerror = () => tell("lost", "Not live: the stack does not answer");
  on("row", (row) => put(rows, row));
  on("gone", ({ ref }) => byId(ref)?.remove());
  on("detail", show);
  on("counts", count);
  on("reload", () => location.reload());
}

function tell(state, text) {
  const place = document.querySelector(".top .live");
  place.dataset.state = state;
  place.textContent = text;
}

function put(rows, { ref, html }) {
  const row = element(html);
  const old = byId(ref);
  if (!old) {
    row.classList.add("is-new");
    rows.prepend(row);
    return;
  }
  const hadFocus = old.contains(document.activeElement);
  old.replaceWith(row);
  if (hadFocus) row.querySelector("a").focus();
}

function show({ ref, html }) {
  const old = byId("detail");
  if (old && old.dataset.ref !== ref) return;
  const detail = element(html);
  if (!old) {
    byId("pane").append(detail);
    return;
  }
  for (const part of detail.querySelectorAll("[data-keep]")) {
    const before = old.querySelector(`[data-keep="${part.dataset.keep}"]`);
    if (before) part.open = before.open;
  }
  // What is being read or selected stays, unless it has changed.
  if (detail.innerHTML !== old.innerHTML) old.replaceWith(detail);
}

function count(counts) {
  for (const [tab, number] of Object.entries(counts)) {
    document.querySelector(`[data-count="${tab}"]`).textContent = number;
  }
}

// --- going somewhere without losing the place ---

async function visit(url, { keepsScroll = false, isBack = false } = {}) {
  const answer = await fetch(url);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const scroll = document.querySelector(".list")?.scrollTop;
  if (!isBack) history.pushState(null, "", url);
  document.title = page.title;
  document.body.className = page.body.className;
  document.querySelector("nav").replaceWith(page.querySelector("nav"));
  document.querySelector("main").replaceWith(page.querySelector("main"));
  if (keepsScroll) document.querySelector(".list").scrollTop = scroll;
  begin();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest(".rows a");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const ref = link.closest("li").id;
  visit(link.href, { keepsScroll: true }).then(() => byId(ref)?.querySelector("a").focus());
});

window.addEventListener("popstate", () => visit(location.href, { isBack: true }));

const search = document.querySelector(".search");
search.addEventListener(
  "input",
  after(200, () => {
    if (!byId("rows")) return;
    const words = new URLSearchParams(new FormData(search));
    visit(`${search.getAttribute("action")}?${words}`);
  }),
);

// --- the form ---

async function check(form) {
  const text = form.elements.request.value;
  const answer = await fetch(form.dataset.check, {
    method: "POST",
    body: new URLSearchParams({ request: text }),
  });
  if (answer.ok && form.elements.request.value === text) {
    byId("verdict").innerHTML = await answer.text();
  }
}

const checkSoon = after(250, check);

document.addEventListener("input", (event) => {
  const form = event.target.closest("[data-check]");
  if (form) checkSoon(form);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
});

function begin() {
  document.documentElement.classList.add("has-script");
  follow();
}

begin();
