// Pages work without this. With it they change as things happen, and ask security keys.
"use strict";

const byId = (id) => document.getElementById(id);
const say = (text, bad) => {
  const note = document.createElement("p");
  note.textContent = text;
  if (bad) note.className = "bad";
  byId("toast")?.append(note);
  setTimeout(() => note.remove(), bad ? 12000 : 5000);
};

// How long is left.
const countdown = () => {
  for (const time of document.querySelectorAll("time.left")) {
    const left = Math.max(0, Math.round((new Date(time.dateTime) - Date.now()) / 1000));
    const [h, m, s] = [Math.floor(left / 3600), Math.floor(left / 60) % 60, left % 60];
    const two = (n) => String(n).padStart(2, "0");
    time.textContent = (h ? h + ":" + two(m) : m) + ":" + two(s) + " left";
    time.classList.toggle("soon", left < 60);
  }
};

// What waits, counted in the navigation and in the tab.
const title = document.title;
const count = () => {
  const list = byId("pending");
  if (!list) return;
  const waiting = list.querySelectorAll("[data-pending=true]").length;
  byId("none").hidden = waiting > 0;
  badge(waiting);
};
const badge = (waiting) => {
  const mark = byId("waiting");
  if (!mark) return;
  mark.hidden = waiting === 0;
  mark.textContent = waiting;
  document.title = waiting ? "(" + waiting + ") " + title : title;
};

// Cards come rendered and escaped from the server.
const card = (html) => {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
};

const waiting = new Set();
const changed = ({ id, what, agent, html }) => {
  what === "ended" ? waiting.delete(id) : waiting.add(id);
  const list = byId("pending");
  const open = document.querySelector("[data-one]");
  // Who is answering it goes on from there.
  if (open && !answering && open.dataset.id === id && open.dataset.pending === "true" && what === "ended") location.reload();
  if (!list) {
    badge(waiting.size);
    return;
  }
  const old = byId("a-" + id);
  const fresh = card(html);
  if (what === "ended") {
    const had = old?.contains(document.activeElement);
    const next = old?.nextElementSibling || old?.previousElementSibling;
    old?.remove();
    byId("no-ended")?.remove();
    byId("ended").prepend(fresh);
    if (had) (next?.querySelector("button, a") || byId("main")).focus?.();
  } else if (old) {
    // Who is about to answer keeps their place.
    const name = old.contains(document.activeElement) ? document.activeElement.value : null;
    old.replaceWith(fresh);
    if (name) [...fresh.querySelectorAll("button")].find((button) => button.value === name)?.focus();
  } else {
    fresh.classList.add("new");
    list.append(fresh);
    if (document.hidden && window.Notification?.permission === "granted") new Notification("interceptor: " + agent + " waits for you");
  }
  count();
  countdown();
};

const listen = () => {
  const live = byId("live");
  const state = (on, text) => {
    if (!live) return;
    live.className = "live " + (on ? "on" : "off");
    live.querySelector(".text").textContent = text;
  };
  const events = new EventSource("/events");
  events.onopen = () => state(true, "live");
  events.onerror = () => state(false, "not connected; trying again");
  events.addEventListener("approval", (event) => changed(JSON.parse(event.data)));
  events.addEventListener("grants", () => byId("grants") && refresh("grants"));
  events.addEventListener("missed", () => location.reload());
  events.addEventListener("over", () => location.reload());
};

const refresh = async (id) => {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  const fresh = page.getElementById(id);
  if (fresh) byId(id).replaceWith(fresh);
};

// Security keys: bytes as base64url.
const toText = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const toBytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const hash = async (text) => new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
const sign = async (host, keys, text) => {
  const allowed = JSON.parse(keys).map((id) => ({ type: "public-key", id: toBytes(id) }));
  if (!allowed.length) throw new Error("you have no security key; register one under your name");
  const answer = await navigator.credentials.get({ publicKey: { challenge: await hash(text), rpId: host, allowCredentials: allowed, userVerification: "preferred", timeout: 60000 } });
  return {
    credential: toText(answer.rawId),
    clientDataJSON: toText(answer.response.clientDataJSON),
    authenticatorData: toText(answer.response.authenticatorData),
    signature: toText(answer.response.signature),
  };
};
const agreed = (text, window) => {
  if (!window) return text;
  const [scope, seconds, most] = window.split(":");
  return text.replace("this operation alone", "and the same " + scope + " for " + seconds + " s, at most " + most + " times");
};
const register = async (form) => {
  const { host, handle, name, keys } = form.dataset;
  const made = await navigator.credentials.create({ publicKey: {
    challenge: crypto.getRandomValues(new Uint8Array(32)),
    rp: { id: host, name: "interceptor" },
    user: { id: toBytes(handle), name, displayName: name },
    pubKeyCredParams: [{ type: "public-key", alg: -7 }, { type: "public-key", alg: -8 }, { type: "public-key", alg: -257 }],
    excludeCredentials: JSON.parse(keys).map((id) => ({ type: "public-key", id: toBytes(id) })),
    attestation: "none",
    timeout: 60000,
  } });
  const key = { credential: toText(made.rawId), public_key: toText(made.response.getPublicKey()), label: form.elements.label.value };
  const hex = [...toBytes(key.public_key)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const text = "interceptor: this security key is mine as well\n" + hex + "\n";
  return { key, vouched: JSON.parse(keys).length ? await sign(host, keys, text) : null };
};

// Forms that are answered in place.
let answering = false;
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-script], [data-register]")) return;
  event.preventDefault();
  const pressed = event.submitter;
  const fields = new URLSearchParams(new FormData(form));
  if (pressed?.name) fields.set(pressed.name, pressed.value);
  for (const button of form.querySelectorAll("button")) button.disabled = true;
  answering = true;
  try {
    if (form.matches("[data-register]")) fields.set("key", JSON.stringify(await register(form)));
    if (form.matches("[data-key]") && pressed?.value === "approve") {
      const { host, keys, challenge } = form.dataset;
      fields.set("signed", JSON.stringify(await sign(host, keys, agreed(challenge, fields.get("window")))));
    }
    const answer = await fetch(form.action, { method: "POST", body: fields, headers: { "x-requested-by": "script" } });
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw new Error(await answer.text());
    if (form.dataset.next) location.assign(form.dataset.next);
    else if (form.matches("[data-reload]")) location.reload();
    else {
      answering = false;
      say("Recorded.");
    }
  } catch (error) {
    answering = false;
    say(error.message, true);
  } finally {
    for (const button of form.querySelectorAll("button")) button.disabled = false;
  }
});

// A session, played.
const player = () => {
  const entries = [...document.querySelectorAll("#timeline > li")];
  if (!byId("player") || entries.length < 2) return;
  // Pauses of more than two seconds say nothing.
  const at = [0];
  for (let i = 1; i < entries.length; i++) {
    const gap = new Date(entries[i].dataset.at) - new Date(entries[i - 1].dataset.at);
    at.push(at[i - 1] + Math.min(Math.max(gap, 30), 2000));
  }
  const seek = byId("seek"), play = byId("play"), end = at[at.length - 1];
  seek.max = end;
  seek.value = end;
  byId("player").hidden = false;
  let running = false, last = 0;
  const show = () => {
    const now = Number(seek.value);
    entries.forEach((entry, i) => entry.classList.toggle("later", at[i] > now));
    byId("clock").textContent = (now / 1000).toFixed(1) + " s of " + (end / 1000).toFixed(1) + " s";
  };
  const step = (time) => {
    if (!running) return;
    seek.value = Number(seek.value) + (time - last) * Number(byId("speed").value);
    last = time;
    show();
    Number(seek.value) >= end ? stop() : requestAnimationFrame(step);
  };
  const stop = () => {
    running = false;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  play.onclick = () => {
    if (running) return stop();
    if (Number(seek.value) >= end) seek.value = 0;
    running = true;
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    requestAnimationFrame((time) => { last = time; step(time); });
  };
  seek.oninput = () => { stop(); show(); };
  show();
};

// Keys: j and k go through the cards, a and d answer the one that has the focus.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const cards = [...document.querySelectorAll("#pending > .card")];
  const here = cards.findIndex((card) => card.contains(document.activeElement));
  if (event.key === "j" || event.key === "k") {
    const next = cards[Math.min(Math.max(here + (event.key === "j" ? 1 : -1), 0), cards.length - 1)];
    next?.querySelector("h2 a")?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }
  const choice = { a: "approve", d: "deny" }[event.key];
  if (choice && here >= 0) cards[here].querySelector("button[value=" + choice + "]")?.click();
});

const code = byId("link")?.elements.code;
if (code && location.hash.length > 1) {
  code.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
}
if (byId("toast")) listen();
count();
countdown();
setInterval(countdown, 1000);
player();
