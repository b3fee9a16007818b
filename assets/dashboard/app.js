// The runs of one experiment, as MLflow has them now. Everything that comes from MLflow is somebody's text and
// goes into the page by textContent alone.

const EVERY = 5000; // ms: how often a page in sight asks again

const $ = (id) => document.getElementById(id);
const pick = $("experiment");

const state = {
  experiment: new URLSearchParams(location.search).get("experiment"),
  runs: [], // the newest page, asked for again and again
  older: [], // further pages, asked for once
  next: null, // the token of the page after those
  asked: 0, // counts questions: an answer to an older one is dropped
  seen: null, // when MLflow last answered
  failed: false,
};

/** The answer to a call, or an error with what went wrong and what may help. */
async function call(path) {
  let answer;
  try {
    answer = await fetch(path, { signal: AbortSignal.timeout(20000), headers: { Accept: "application/json" } });
  } catch {
    throw { error: "The dashboard is not answering", hint: "the network or the machine may be down: this page asks again" };
  }
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  throw body?.error ? body : { error: `The dashboard failed with status ${answer.status}`, hint: "this page asks again" };
}

function element(name, text, ...classes) {
  const it = document.createElement(name);
  it.textContent = text;
  it.classList.add(...classes);
  return it;
}

/** Four digits that count; what is not finite in words. */
function number(value) {
  if (typeof value === "string") return value.replace("-", "−").replace("Infinity", "∞");
  const size = Math.abs(value);
  const text =
    Number.isInteger(value) && size < 1e9 ? String(value)
    : size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3)
    : value.toPrecision(4);
  return text.replace("-", "−");
}

function duration(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  if (h) return `${h} h ${m} m`;
  return m ? `${m} m ${s % 60} s` : `${s} s`;
}

const when = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });

/** The names that occur in these runs, by how many have them, then by the alphabet. */
function names(runs, group) {
  const count = new Map();
  for (const run of runs) for (const { key } of run[group]) count.set(key, (count.get(key) ?? 0) + 1);
  return [...count].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 30).map(([key]) => key);
}

function table(runs) {
  const [metrics, params] = [names(runs, "metrics"), names(runs, "params")];
  const head = document.createElement("tr");
  const column = (text, ...classes) => {
    const th = element("th", text, ...classes);
    th.scope = "col";
    th.title = text;
    head.append(th);
  };
  ["run", "status", "start"].forEach((text) => column(text));
  column("duration", "number");
  metrics.forEach((key, n) => column(key, "number", ...(n ? [] : ["group-start"])));
  params.forEach((key, n) => column(key, ...(n ? [] : ["group-start"])));

  const rows = runs.map((run) => {
    const row = document.createElement("tr");
    const name = element("th", run.run_name || run.run_id.slice(0, 8));
    name.scope = "row";
    name.title = `${run.run_name} ${run.run_id}`;
    row.append(name, element("td", run.status.toLowerCase(), "status", run.status));
    row.append(element("td", run.start_time ? when.format(run.start_time) : ""));
    const end = run.end_time ?? (run.status === "RUNNING" ? Date.now() : null);
    row.append(element("td", run.start_time && end ? duration(end - run.start_time) : "", "number"));
    const has = (group) => new Map(run[group].map((one) => [one.key, one]));
    const [metric, param] = [has("metrics"), has("params")];
    metrics.forEach((key, n) => {
      const one = metric.get(key);
      const cell = element("td", one ? number(one.value) : "", "number", ...(n ? [] : ["group-start"]));
      if (one) cell.title = `${one.value}` + (one.step === null ? "" : `, step ${one.step}`);
      row.append(cell);
    });
    params.forEach((key, n) => {
      const text = param.get(key)?.value ?? "";
      const cell = element("td", text, "param", ...(n ? [] : ["group-start"]));
      cell.title = text;
      row.append(cell);
    });
    return row;
  });
  const frame = $("frame");
  frame.querySelector("thead").replaceChildren(head);
  frame.querySelector("tbody").replaceChildren(...rows);
}

function show() {
  const known = new Set(state.runs.map((run) => run.run_id));
  const runs = [...state.runs, ...state.older.filter((run) => !known.has(run.run_id))];
  $("frame").hidden = !runs.length;
  $("more").hidden = !state.next;
  const empty = $("empty");
  empty.hidden = runs.length > 0 || !state.seen;
  empty.textContent = state.experiment
    ? "No runs yet. The first one appears here as soon as it starts."
    : "No experiments yet. The first one appears here as soon as something is logged to MLflow.";
  if (runs.length) table(runs);
}

function pulse() {
  const ago = state.seen && Math.round((Date.now() - state.seen) / 1000);
  const stale = state.failed && state.seen;
  $("frame").classList.toggle("stale", Boolean(stale));
  $("pulse").textContent =
    stale ? `as it was ${duration(ago * 1000)} ago`
    : state.failed ? "no answer"
    : state.seen ? `live · ${state.runs.length + state.older.length} runs`
    : "loading…";
}

function trouble(what) {
  const box = $("trouble");
  box.hidden = !what;
  box.querySelector("strong").textContent = what?.error ?? "";
  box.querySelector("span").textContent = what?.hint ?? "";
}

function options(experiments) {
  const wanted = experiments.map((one) => `${one.experiment_id} ${one.name}`).join("\n");
  if (pick.dataset.shown !== wanted) {
    pick.dataset.shown = wanted;
    pick.replaceChildren(
      ...experiments.map((one) => {
        const option = element("option", one.name);
        option.value = one.experiment_id;
        return option;
      }),
    );
  }
  if (!experiments.some((one) => one.experiment_id === state.experiment)) {
    // The one that was worked on last is most likely the one to look at.
    const latest = experiments.reduce(
      (best, one) => ((one.last_update_time ?? 0) > (best?.last_update_time ?? -1) ? one : best), null);
    state.experiment = latest?.experiment_id ?? null;
    Object.assign(state, { runs: [], older: [], next: null });
  }
  if (state.experiment) pick.value = state.experiment;
  pick.disabled = experiments.length === 0;
}

/** Every experiment, some hundred at a time. */
async function experiments() {
  const all = [];
  let token = "";
  for (let page = 0; page < 10; page += 1) {
    const answer = await call(`api/experiments${token && `?page_token=${encodeURIComponent(token)}`}`);
    all.push(...answer.experiments);
    token = answer.next_page_token ?? "";
    if (!token) break;
  }
  return all;
}

function page(token) {
  const query = new URLSearchParams({ experiment_id: state.experiment });
  if (token) query.set("page_token", token);
  return call(`api/runs?${query}`);
}

async function refresh() {
  const mine = ++state.asked;
  try {
    const all = await experiments();
    if (mine !== state.asked) return;
    options(all);
    const answer = state.experiment ? await page() : { runs: [] };
    if (mine !== state.asked) return;
    state.runs = answer.runs;
    if (!state.older.length) state.next = answer.next_page_token ?? null;
    Object.assign(state, { seen: Date.now(), failed: false });
    trouble(null);
    show();
  } catch (what) {
    if (mine !== state.asked) return;
    state.failed = true;
    trouble(what.error ? what : { error: "This page failed", hint: String(what) });
  }
  pulse();
}

pick.addEventListener("change", () => {
  Object.assign(state, { experiment: pick.value, runs: [], older: [], next: null, seen: null, failed: false });
  history.replaceState(null, "", `?experiment=${encodeURIComponent(pick.value)}`);
  show();
  pulse();
  beat();
});

$("more").addEventListener("click", async () => {
  const mine = ++state.asked;
  try {
    const answer = await page(state.next);
    if (mine !== state.asked) return;
    state.older.push(...answer.runs);
    state.next = answer.next_page_token ?? null;
    show();
  } catch (what) {
    trouble(what);
  }
  pulse();
});

// One question at a time, the next five seconds after the answer; none while nobody looks.
let timer = 0;
async function beat() {
  clearTimeout(timer);
  await refresh();
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(beat, EVERY);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else beat();
});

beat();
