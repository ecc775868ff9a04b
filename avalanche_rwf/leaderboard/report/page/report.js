"use strict";
// All text from runs goes through textContent (or plotText); nothing is ever parsed as HTML.
const report = (() => {
  const $ = (id) => document.getElementById(id);
  const PAGE = 200;          // rows that are drawn at first
  const CURVES = 12;         // curves that are drawn when none is chosen
  // Several metrics of one method, in its colour.
  const LINES = [["solid", "circle"], ["dash", "square"], ["dot", "diamond"], ["dashdot", "triangle-up"], ["longdash", "x"]].map(([dash, symbol]) => ({ dash, symbol }));
  const NAMES = { head: "Head", mask: "Mask", readout: "Read-out", budget: "Budget" };
  const START = { p: 0, q: "", sort: "rank", dir: "asc", row: "", plot: [], head: "", mask: "", readout: "", budget: "", places: "" };

  let data = null;
  let state = { ...START };
  let shown = [];            // rows that pass the filters, in their order
  let limit = PAGE;
  const details = new Map(); // file -> { promise, resolve }
  const drawn = new Map();   // element -> draw function, of plots that have come into view

  // ---- small helpers
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  // Plotly reads a few tags in names: none may come from a method's name.
  const plotText = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (text, n = 26) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (x) => (x === null ? "–" : (100 * x).toFixed(1));
  const protocol = () => data.protocols[state.p];

  // ---- state and the address
  function readAddress() {
    const raw = location.hash.slice(1);
    const next = { ...START, plot: [] };
    if (raw && !raw.includes("=")) next.row = decodeURIComponent(raw); // "#<configuration>" is a link to a row
    else {
      const given = new URLSearchParams(raw);
      for (const name of Object.keys(START)) {
        if (!given.has(name)) continue;
        if (name === "plot") next.plot = given.get(name).split(",").filter(Boolean);
        else next[name] = given.get(name);
      }
    }
    next.p = Number(next.p) || 0;
    // A row brings its protocol with it.
    const home = data.protocols.findIndex((one) => one.rows.some((row) => row.key === next.row));
    if (home >= 0) next.p = home;
    else next.row = "";
    if (!(next.p >= 0 && next.p < data.protocols.length)) next.p = 0;
    return next;
  }
  function writeAddress(push) {
    const words = new URLSearchParams();
    for (const [name, start] of Object.entries(START)) {
      const value = name === "plot" ? state.plot.join(",") : state[name];
      if (String(value) !== String(start)) words.set(name, value);
    }
    const target = "#" + words.toString();
    if (target === (location.hash || "#")) return;
    history[push ? "pushState" : "replaceState"](null, "", target);
  }
  function change(patch, push = false) {
    const before = state;
    state = { ...state, ...patch };
    writeAddress(push);
    show(before);
  }
  function show(before) {
    const fresh = before === null || before.p !== state.p;
    if (fresh) drawProtocol();
    drawTable();
    drawPlots(fresh);
    drawDetail();
  }

  // ---- theme
  const THEMES = ["auto", "light", "dark"];
  const media = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  function applyTheme() {
    const dark = theme === "dark" || (theme === "auto" && media.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    $("theme").textContent = `Theme: ${theme}`;
    for (const draw of drawn.values()) draw();
  }
  function startTheme() {
    try { theme = localStorage.getItem("avalanche-rwf-theme") || "auto"; } catch { /* no storage */ }
    if (!THEMES.includes(theme)) theme = "auto";
    $("theme").addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try { localStorage.setItem("avalanche-rwf-theme", theme); } catch { /* no storage */ }
      applyTheme();
    });
    media.addEventListener("change", applyTheme);
    applyTheme();
  }

  // ---- table
  function drawProtocol() {
    const one = protocol();
    $("header").textContent = one.header;
    $("protocol").value = String(state.p);
    $("columns").replaceChildren(
      el("th", { class: "mark", scope: "col", title: "Which curves are drawn" }, el("span", { text: "", "aria-label": "Curve" })),
      ...one.columns.map((column) =>
        el("th", { scope: "col", class: column.field === "label" ? "name" : column.kind === "text" ? "" : "num", "data-field": column.field },
          el("button", { type: "button", text: column.title, title: column.help, onclick: () => sortBy(column) }))));
    $("notes").replaceChildren(...one.notes.map((note) => el("li", { text: note })));
    $("choices").replaceChildren(...Object.entries(NAMES).map(([name, title]) => {
      const values = [...new Set(one.rows.map((row) => row.setup[name] ?? "-"))].sort();
      if (values.length < 2) return null;
      const select = el("select", { id: `choose-${name}`, onchange: (event) => change({ [name]: event.target.value }) },
        el("option", { value: "", text: "all" }), ...values.map((value) => el("option", { value, text: value })));
      return el("label", { class: "field" }, title + " ", select);
    }).filter(Boolean));
    drawStream(one.data);
    const places = [["ends", "after each experience"]];
    if (one.rows.some((row) => row.anytime.length)) places.push(["anytime", `every ${one.every} samples`]);
    $("places").replaceChildren(...places.map(([value, text]) => el("option", { value, text })));
  }
  function sortBy(column) {
    limit = PAGE;
    const low = ["rank", "label", "head", "mask", "readout", "budget", "forgetting_class", "forward_passes_per_image", "trainable_parameters"];
    const first = low.includes(column.field) ? "asc" : "desc";
    const dir = state.sort === column.field ? (state.dir === "asc" ? "desc" : "asc") : first;
    change({ sort: column.field, dir });
  }
  const collator = new Intl.Collator("en", { numeric: true });
  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last
    return typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  }
  function select() {
    const one = protocol();
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = one.rows.filter((row) =>
      Object.keys(NAMES).every((name) => !state[name] || (row.setup[name] ?? "-") === state[name]) &&
      words.every((word) => row.cells.join(" ").toLowerCase().includes(word) || row.key.includes(word)));
    const at = Math.max(0, one.columns.findIndex((column) => column.field === state.sort));
    const sign = state.dir === "desc" ? -1 : 1;
    return rows.map((row, i) => [row, i]).sort(([a, i], [b, j]) => {
      const [x, y] = [a.values[at], b.values[at]];
      const missing = x === null || y === null;
      return (missing ? 1 : sign) * compare(x, y) || i - j;
    }).map(([row]) => row);
  }
  function drawTable() {
    const one = protocol();
    shown = select();
    for (const th of $("columns").querySelectorAll("th[data-field]")) {
      const mine = th.dataset.field === state.sort;
      if (mine) th.setAttribute("aria-sort", state.dir === "asc" ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    }
    if ($("query").value !== state.q) $("query").value = state.q;
    for (const name of Object.keys(NAMES)) { const box = $(`choose-${name}`); if (box) box.value = state[name]; }
    const target = shown.findIndex((row) => row.key === state.row);
    if (target >= limit) limit = target + 1;
    const plotted = new Set(plottedRows().map((row) => row.key));
    // The signs ± stand below each other: all deviations of a column are as wide as the widest.
    const widths = one.columns.map((_, i) => Math.max(...one.rows.map((row) => row.cells[i].split(" ± ")[1]?.length ?? 0)));
    $("rows").replaceChildren(...shown.slice(0, limit).map((row) => tableRow(one, row, plotted, widths)));
    $("more").hidden = shown.length <= limit;
    $("more").textContent = `Show all ${plural(shown.length, "row")}`;
    const all = one.rows.length;
    $("count").textContent = shown.length === all ? plural(all, "row") : `${shown.length} of ${plural(all, "row")}`;
    if (!shown.length) $("rows").append(el("tr", {}, el("td", { colspan: one.columns.length + 1, text: "No row passes the filters." })));
  }
  function tableRow(one, row, plotted, widths) {
    // A click anywhere in the row opens it, but for its box and for text that was selected.
    const open = (event) => { if (!event.target.closest("input, button, .mark") && getSelection().isCollapsed) change({ row: row.key }, true); };
    const line = el("tr", { "data-key": row.key, class: row.key === state.row ? "open" : null, onclick: open });
    line.append(el("td", { class: "mark", style: `--light: ${row.look.light}; --dark: ${row.look.dark}` }, el("input", {
      type: "checkbox", "aria-label": `Draw the curve of ${row.label}`, checked: plotted.has(row.key), onchange: (event) => choose(row, event.target.checked),
    })));
    one.columns.forEach((column, i) => {
      const best = row.best.includes(i);
      if (column.field === "label") {
        line.append(el("th", { scope: "row", class: "name" },
          el("button", { type: "button", class: "row", text: row.cells[i], title: row.label, "aria-haspopup": "dialog", onclick: () => change({ row: row.key }, true) }),
          row.failed ? el("span", { class: "failed", text: `${row.failed} failed` }) : null));
        return;
      }
      const cell = el("td", { class: [column.kind === "text" ? "" : "num", best ? "best" : ""].join(" ").trim() || null });
      const [mean, deviation] = row.cells[i].split(" ± ");
      cell.append(mean);
      if (column.kind === "share") cell.append(el("span", { class: "pm", style: `min-width: ${widths[i] + 2}ch`, text: deviation === undefined ? "" : `± ${deviation}` }));
      if (best) cell.title = "Best in this protocol";
      line.append(cell);
    });
    return line;
  }
  function plottedRows() {
    const one = protocol();
    if (state.plot.length) return one.rows.filter((row) => state.plot.includes(row.key));
    return shown.slice(0, CURVES);
  }
  function choose(row, on) {
    const now = plottedRows().map((one) => one.key).filter((key) => key !== row.key);
    change({ plot: on ? [...now, row.key] : now });
  }

  // ---- plots: the library is loaded, and each plot drawn, when it comes into view
  let library = null;
  function plotly() {
    library ??= new Promise((resolve, reject) => {
      document.head.append(el("script", { src: "assets/plotly.min.js", onload: () => resolve(window.Plotly), onerror: () => reject(new Error("assets/plotly.min.js is missing")) }));
    });
    return library;
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); drawNow(entry.target); }
  }, { rootMargin: "200px" });
  const plans = new WeakMap();
  function plan(box, make) {
    plans.set(box, make);
    if (drawn.has(box)) drawNow(box);
    else { box.classList.add("waiting"); watcher.observe(box); }
  }
  async function drawNow(box) {
    const lib = await plotly();
    const draw = () => {
      if (!box.isConnected) { drawn.delete(box); return; }
      const { traces, layout } = plans.get(box)();
      box.classList.remove("waiting");
      box.style.height = `${layout.height}px`;
      lib.react(box, traces, { ...base(), ...layout }, { displayModeBar: false, responsive: true });
    };
    drawn.set(box, draw);
    draw();
  }
  function axis(title, more = {}) {
    return { title: { text: title, font: { size: 12 }, standoff: 8 }, gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), tickfont: { size: 11 }, automargin: true, fixedrange: true, ...more };
  }
  function base() {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--sans"), color: colour("--ink"), size: 12 },
      margin: { l: 48, r: 14, t: 12, b: 40 }, hovermode: "closest",
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink"), family: colour("--sans") }, namelength: -1 },
      legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0, font: { size: 12 } },
    };
  }
  // A method's colour, marker and line: the same in every picture of the package.
  const hue = (look) => look[document.documentElement.dataset.theme];
  function fade(hex, share) {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${share})`;
  }
  // A line with markers and, if wanted, a band of one standard deviation around it.
  function line(name, points, look, { scale = 1, unit = "", flip = false, band = true, x = "samples", first = 0 } = {}) {
    const xs = points.map((point, t) => (x === "samples" ? point[0] : first + t + 1));
    const ys = points.map((point) => scale * (flip ? 1 - point[1] : point[1]));
    const spread = points.map((point) => scale * (point[2] ?? 0));
    const cut = (y) => (unit === " %" ? Math.min(100, Math.max(0, y)) : y); // no band above 100 %
    const said = points.map((point, i) => {
      const digits = scale === 100 ? 1 : 3;
      const deviation = point[2] === null ? "" : ` ± ${spread[i].toFixed(digits)}`;
      return `${plotText(name)}<br><b>${ys[i].toFixed(digits)}${deviation}${unit}</b><br>experience ${first + i + 1}, ${point[0]} samples, ${plural(point[3], "seed")}`;
    });
    const traces = [];
    if (band && points.some((point) => point[2])) {
      traces.push({
        x: [...xs, ...[...xs].reverse()],
        y: [...ys.map((y, i) => cut(y + spread[i])), ...ys.map((y, i) => cut(y - spread[i])).reverse()],
        fill: "toself", fillcolor: fade(hue(look), 0.13), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, type: "scatter",
      });
    }
    traces.push({ x: xs, y: ys, name: plotText(short(name, 34)), mode: "lines+markers", type: "scatter", line: { color: hue(look), width: 2, dash: look.dash }, marker: { size: 7, color: hue(look), symbol: look.symbol }, text: said, hovertemplate: "%{text}<extra></extra>" });
    return traces;
  }
  function curvesPlot() {
    const one = protocol();
    const places = state.places === "anytime" && one.rows.some((row) => row.anytime.length) ? "anytime" : "ends";
    const rows = plottedRows();
    const traces = rows.flatMap((row) => {
      const found = line(row.label, row[places], row.look, { scale: 100, unit: " %", first: row.first, band: rows.length <= 5 });
      if (places === "anytime") for (const trace of found) if (trace.text) trace.text = trace.text.map((text) => text.replace(/experience \d+, /, ""));
      return found;
    });
    return { traces, layout: { xaxis: axis("training samples seen", { rangemode: "tozero" }), yaxis: axis("accuracy on the classes so far, %"), height: $("curves-plot").clientWidth < 500 ? 440 : 460 } };
  }
  function heatPlot(matrix) {
    return () => {
      const n = matrix.mean.length;
      const places = matrix.mean.map((_, i) => i);
      const names = places.map((i) => String(i + 1));
      const cells = (show) => matrix.mean.map((row, t) => row.map((value, j) => (value === null ? "" : show(value, t, j))));
      const said = cells((value, t, j) => {
        const deviation = matrix.std[t][j] === null ? "" : ` ± ${percent(matrix.std[t][j])}`;
        return `after experience ${t + 1}<br>on experience ${j + 1}<br><b>${percent(value)}${deviation} %</b>`;
      });
      const traces = [{
        type: "heatmap", x: places, y: places, z: matrix.mean.map((row) => row.map((value) => (value === null ? null : 100 * value))),
        zmin: 0, zmax: 100, colorscale: [[0, colour("--heat-0")], [1, colour("--heat-1")]], showscale: false, xgap: 2, ygap: 2,
        text: cells((value) => (n > 10 ? "" : (100 * value).toFixed(0))), texttemplate: "%{text}", textfont: { size: 11 },
        customdata: said, hovertemplate: "%{customdata}<extra></extra>", hoverongaps: false,
      }];
      const step = n > 12 ? 5 : 1;
      const ticks = { showgrid: false, showline: false, tickvals: places.filter((i) => (i + 1) % step === 0), ticktext: names.filter((_, i) => (i + 1) % step === 0) };
      return { traces, layout: { height: 290, margin: { l: 40, r: 10, t: 10, b: 44 }, xaxis: axis("test experience", ticks), yaxis: axis("after experience", { ...ticks, autorange: "reversed" }) } };
    };
  }
  function detail(file) {
    if (!details.has(file)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => { entry.resolve = resolve; entry.reject = reject; });
      details.set(file, entry);
      document.head.append(el("script", { src: `data/${file}`, onerror: () => entry.reject(new Error(`data/${file} is missing`)) }));
    }
    return details.get(file).promise;
  }
  function matrixCell(row) {
    const box = el("div", { class: "plot waiting", role: "img", "aria-label": `Accuracy matrix of ${row.label}` });
    const load = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      load.disconnect();
      detail(row.file).then((found) => {
        if (found.matrix) plan(box, heatPlot(found.matrix));
        else { box.classList.remove("waiting"); box.replaceChildren(el("p", { class: "busy", text: "No matrix was recorded." })); }
      });
    }, { rootMargin: "200px" });
    load.observe(box);
    return el("div", { class: "cell" }, el("h3", { text: row.label, title: row.label }), box);
  }
  // Title of its plot, name among others, whether one minus the value is drawn.
  const ROUTING = [
    ["prompt_drift", "Prompts: cosine to their first value", "prompts: cosine to first", true],
    ["routing_drift", "Associations: cosine to their first value", "association: cosine to first", true],
    ["routing_entropy", "Entropy of the association (1: uniform)", "entropy (1: uniform)", false],
    ["prompt_similarity", "Cosine between the prompts of an image", "cosine between prompts", false],
    ["accuracy_first", "Accuracy on the same classes, %", "accuracy on the same classes", false],
  ];
  // An axis from 0, 0.5 or 0.9 up to 1: a cosine of 0.9999 must not look like a fall.
  function meaningful(traces, top) {
    const low = Math.min(top, ...traces.flatMap((trace) => trace.y));
    const begin = low >= 0.9 * top ? 0.9 * top : low >= 0.5 * top ? 0.5 * top : Math.min(0, low);
    return [begin, top + 0.04 * (top - begin)];
  }
  function routingPlot(rows, name, flip) {
    return () => {
      const percentages = name === "accuracy_first";
      const traces = rows.flatMap((row) => row.routing[name] ? line(row.label, row.routing[name], row.look, { flip, x: "experience", first: row.first, scale: percentages ? 100 : 1, unit: percentages ? " %" : "", band: rows.length <= 5 }) : []);
      return { traces, layout: { height: 300, showlegend: true, xaxis: axis("after experience", { dtick: 1 }), yaxis: axis("", { range: meaningful(traces, percentages ? 100 : 1) }) } };
    };
  }
  let gridKeys = "";
  function drawPlots(fresh) {
    const one = protocol();
    const rows = plottedRows();
    if ($("places").options.length) $("places").value = [...$("places").options].some((option) => option.value === state.places) ? state.places : "ends";
    $("curves-about").textContent = `${plural(rows.length, "row")} of ${one.rows.length}, mean over seeds` + (rows.length <= 5 ? " with a band of one standard deviation." : ".") + " The boxes in the table choose which.";
    const keys = rows.map((row) => row.key).join(",") + (fresh ? Math.random() : "");
    plan($("curves-plot"), curvesPlot);
    if (keys === gridKeys) return;
    gridKeys = keys;
    $("matrices-grid").replaceChildren(...rows.slice(0, 12).map(matrixCell));
    const routed = one.rows.filter((row) => Object.keys(row.routing).length);
    const wanted = routed.filter((row) => rows.includes(row));
    const chosen = wanted.length ? wanted : routed.slice(0, CURVES);
    $("routing").hidden = !routed.length;
    $("routing-grid").replaceChildren(...ROUTING.filter(([name]) => chosen.some((row) => row.routing[name])).map(([name, title, , flip]) => {
      const box = el("div", { class: "plot", role: "img", "aria-label": title });
      plan(box, routingPlot(chosen, name, flip));
      return el("div", { class: "cell" }, el("h3", { text: title }), box);
    }));
    drawContents();
  }
  function drawContents() {
    $("contents").replaceChildren(...[...document.querySelectorAll("main > section:not([hidden])")].map((section) => {
      const title = section.querySelector("h2");
      // A fragment would take the place of the filters in the address.
      return el("a", { href: `#${section.id}`, text: title.textContent, onclick: (event) => { event.preventDefault(); section.scrollIntoView(); title.tabIndex = -1; title.focus({ preventScroll: true }); } });
    }));
  }
  function drawStream(found) {
    $("stream").hidden = !found;
    if (!found) return;
    const groups = found.classes_per_experience || [];
    const sizes = found.samples_per_experience || [];
    const parts = [plural(groups.length, "experience"), plural(new Set(groups.flat()).size, "class").replace("classs", "classes")];
    if (found.train_size !== undefined) parts.push(`${found.train_size} training and ${found.test_size} test images`);
    if (found.skipped) parts.push(`${found.skipped} unreadable images left out`);
    const of = found.seed === undefined ? "" : ` This is the stream of seed ${found.seed}.`;
    $("stream-about").textContent = parts.join(", ") + ". Classes are numbered from 0 in the order in which the stream brings them; the seed decides which they are." + of;
    const known = new Set();
    $("stream-list").replaceChildren(...groups.map((classes, i) => {
      const most = 24;
      const fresh = classes.filter((c) => !known.has(c));
      const again = classes.filter((c) => known.has(c));
      fresh.forEach((c) => known.add(c));
      const chips = [...fresh, ...again].slice(0, most).map((c) => el("span", { class: again.includes(c) ? "again" : null, title: again.includes(c) ? "has been seen before" : null, text: `class ${c}` }));
      if (classes.length > most) chips.push(el("span", { text: `+ ${classes.length - most}` }));
      const said = [plural(fresh.length, "new class").replace("classs", "classes"), again.length ? `${again.length} again` : null, sizes[i] === undefined ? null : plural(sizes[i], "image")];
      return el("li", {}, el("h3", { text: `Experience ${i + 1}` }), el("small", { text: said.filter(Boolean).join(", ") }), el("div", { class: "chips" }, ...chips));
    }));
  }

  // ---- searches
  const worded = (options) => Object.entries(options).map(([key, value]) => `${key}=${typeof value === "number" ? Number(value.toPrecision(3)) : value}`).join(" ") || "the method's own options";
  // What was not finished has no accuracy to compare: it stands on the ground.
  function historyPlot(study) {
    return () => {
      const done = study.trials.filter((trial) => trial.state === "done");
      const ys = done.map((trial) => 100 * trial.accuracy);
      const [low, high] = [Math.min(100, ...ys), Math.max(0, ...ys)];
      const ground = low - 0.12 * Math.max(high - low, 5);
      const states = [["done", study.look.symbol, hue(study.look)], ["pruned", "circle-open", colour("--soft")], ["failed", "x-thin-open", colour("--bad")]];
      const traces = states.map(([state, symbol, color]) => {
        const mine = study.trials.filter((trial) => trial.state === state);
        const said = mine.map((trial) => `trial ${trial.number}: <b>${state === "done" ? `${percent(trial.accuracy)} %` : `${state} after ${plural(trial.evaluations, "evaluation")}`}</b><br>${plotText(worded(trial.options))}`);
        return { type: "scatter", mode: "markers", name: state, x: mine.map((trial) => trial.number), y: mine.map((trial) => (state === "done" ? 100 * trial.accuracy : ground)), marker: { symbol, color, size: 9, line: { width: 1.5, color } }, text: said, hovertemplate: "%{text}<extra></extra>" };
      }).filter((trace) => trace.x.length);
      let best = 0;
      traces.unshift({ type: "scatter", mode: "lines", name: "best so far", x: done.map((trial) => trial.number), y: ys.map((y) => (best = Math.max(best, y))), line: { color: hue(study.look), width: 2, shape: "hv" }, hoverinfo: "skip" });
      const last = Math.max(...study.trials.map((trial) => trial.number));
      return { traces, layout: { height: 300, xaxis: axis("trial", { range: [-0.5, last + 0.5] }), yaxis: axis("accuracy on held-out images, %") } };
    };
  }
  function importancePlot(study) {
    return () => {
      const shares = [...study.importance].reverse();
      const traces = [{ type: "bar", orientation: "h", x: shares.map(([, share]) => share), y: shares.map(([name]) => plotText(name)), marker: { color: hue(study.look) }, hovertemplate: "%{y}: %{x:.2f}<extra></extra>" }];
      return { traces, layout: { height: Math.max(160, 70 + 26 * shares.length), xaxis: axis("share of the variance", { range: [0, 1] }), yaxis: axis("", { type: "category" }) } };
    };
  }
  function drawStudies() {
    $("studies").hidden = !data.studies.length;
    $("studies-list").replaceChildren(...data.studies.map((study) => {
      const count = (state) => study.trials.filter((trial) => trial.state === state).length;
      const best = study.best === null ? null : study.trials[study.best];
      const said = [plural(study.trials.length, "trial"), `${count("pruned")} pruned`, count("failed") ? `${count("failed")} failed` : null].filter(Boolean).join(", ");
      const boxes = [["History", historyPlot(study)]];
      if (study.importance.length) boxes.push(["Importance", importancePlot(study)]);
      return el("article", { class: "study" }, el("h3", { text: study.method }),
        el("p", { class: "about", text: `${study.about}, seed ${study.seed}: ${said}.` + (best ? ` Best: trial ${best.number}, ${percent(best.accuracy)} %, with ${worded(best.options)}.` : "") }),
        best ? el("pre", { text: `avalanche-rwf compare --methods ${study.method} --budget study:${study.folder}`, tabindex: "0" }) : null,
        el("div", { class: "grid two" }, ...boxes.map(([title, make]) => {
          const box = el("div", { class: "plot", role: "img", "aria-label": `${title} of the search for ${study.method}` });
          plan(box, make);
          return el("div", { class: "cell" }, el("h3", { text: title }), box);
        })));
    }));
  }

  // ---- details of a row
  function drawDetail() {
    const dialog = $("detail");
    const row = protocol().rows.find((one) => one.key === state.row);
    if (!row) { if (dialog.open) dialog.close(); return; }
    if (dialog.open && dialog.dataset.key === row.key) return;
    dialog.dataset.key = row.key;
    $("detail-title").textContent = row.label;
    $("detail-over").textContent = `${row.key} · ${row.seeds.includes(",") ? "seeds" : "seed"} ${row.seeds || "none done"}`;
    const body = $("detail-body");
    body.replaceChildren(scores(row), el("p", { class: "about", text: "Loading …" }));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    detail(row.file).then((found) => { if (dialog.dataset.key === row.key) fillDetail(body, row, found); },
      (error) => body.replaceChildren(scores(row), el("p", { class: "note", text: error.message })));
  }
  function scores(row) {
    const one = protocol();
    const cards = one.columns.map((column, i) => [column, row.cells[i]]).filter(([column]) => !["text", "number"].includes(column.kind) || column.field === "n");
    return el("dl", { class: "scores" }, ...cards.map(([column, text]) => {
      const [mean, deviation] = text.split(" ± ");
      return el("div", {}, el("dt", { text: column.title, title: column.help }), el("dd", {}, mean, deviation === undefined ? null : el("small", { text: ` ± ${deviation}` })));
    }));
  }
  function fillDetail(body, row, found) {
    const parts = [scores(row)];
    if (found.command) {
      const code = el("pre", { text: found.command, tabindex: "0" });
      const copy = el("button", { type: "button", class: "quiet", text: "Copy" });
      copy.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(found.command); copy.textContent = "Copied"; }
        catch { getSelection().selectAllChildren(code); copy.textContent = "Selected"; }
      });
      parts.push(el("div", { class: "copy" }, el("h3", { text: "Reproduce" }), copy), code);
    }
    const boxes = [];
    if (row.ends.length) {
      const box = el("div", { class: "plot", role: "img", "aria-label": "Accuracy curve" });
      parts.push(el("h3", { text: "Accuracy on the classes so far" }), box);
      boxes.push([box, () => ({ traces: line(row.label, row.ends, row.look, { scale: 100, unit: " %", first: row.first }), layout: { height: 260, showlegend: false, xaxis: axis("training samples seen", { rangemode: "tozero" }), yaxis: axis("%") } })]);
    }
    if (found.matrix) {
      const box = el("div", { class: "plot", role: "img", "aria-label": "Accuracy matrix" });
      parts.push(el("h3", { text: "Accuracy matrix" }), box);
      boxes.push([box, heatPlot(found.matrix)]);
    }
    if (Object.keys(row.routing).length) {
      const box = el("div", { class: "plot", role: "img", "aria-label": "Routing" });
      parts.push(el("h3", { text: "Routing of the same images, after each experience" }), box);
      boxes.push([box, () => {
        const traces = ROUTING.flatMap(([name, , title, flip], i) => row.routing[name] ? line(title, row.routing[name], { ...row.look, ...LINES[i] }, { flip, x: "experience", first: row.first, band: false }) : []);
        return { traces, layout: { height: 330, xaxis: axis("after experience", { dtick: 1 }), yaxis: axis("", { range: [-0.05, 1.05] }) } };
      }]);
    }
    const options = Object.entries(found.options);
    if (options.length) parts.push(el("h3", { text: "Options" }), el("dl", { class: "options" }, ...options.flatMap(([key, value]) => [el("dt", { text: key }), el("dd", { text: typeof value === "string" ? value : JSON.stringify(value) })])));
    parts.push(el("h3", { text: plural(found.runs.length, "run") }));
    for (const run of found.runs) {
      const summary = run.summary;
      const said = summary.status === "done"
        ? `A_last ${percent(summary.a_last)} %, A_avg ${percent(summary.a_avg)} %, ${Math.round(summary.train_seconds)} s of training`
        : `failed: ${summary.error ?? "it does not say why"}`;
      parts.push(el("div", { class: "run" },
        el("p", { class: summary.status === "done" ? null : "bad" }, el("b", { text: `Seed ${run.seed} ` }), said, el("br"), el("code", { text: run.dir })),
        el("details", {}, el("summary", { text: "Configuration" }), el("pre", { text: JSON.stringify(run.config, null, 1), tabindex: "0" })),
        el("details", {}, el("summary", { text: "Log" }), el("pre", { text: run.log || "No log was kept.", tabindex: "0" }))));
    }
    body.replaceChildren(...parts);
    for (const [box, make] of boxes) plan(box, make);
  }

  // ---- start
  function start() {
    startTheme();
    const configurations = data.protocols.reduce((n, one) => n + one.rows.length, 0);
    $("facts").textContent = [plural(data.runs, "run"), plural(configurations, "configuration"), plural(data.protocols.length, "protocol"), data.missing.length ? `${data.missing.length} left out` : null, `${data.made} by avalanche-rwf ${data.version}`].filter(Boolean).join(" · ");
    $("missing").hidden = !data.missing.length;
    $("missing-rows").replaceChildren(...data.missing.map((one) => el("tr", {}, el("td", { text: one.path }), el("td", { text: one.reason }))));
    $("protocol-field").hidden = data.protocols.length < 2;
    $("protocol").replaceChildren(...data.protocols.map((one, i) => el("option", { value: String(i), text: `${one.header} (${plural(one.rows.length, "row")})` })));
    $("protocol").addEventListener("change", (event) => { limit = PAGE; change({ ...START, plot: [], p: Number(event.target.value) }); });
    $("query").addEventListener("input", (event) => { limit = PAGE; change({ q: event.target.value }); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("reset").addEventListener("click", () => { limit = PAGE; change({ ...START, plot: [], p: state.p }); });
    $("more").addEventListener("click", () => { limit = Infinity; drawTable(); });
    $("places").addEventListener("change", (event) => change({ places: event.target.value }));
    $("close").addEventListener("click", () => $("detail").close());
    $("detail").addEventListener("close", () => {
      const key = state.row;
      if (key) change({ row: "" });
      const line = [...$("rows").children].find((one) => one.dataset.key === key);
      line?.querySelector("button.row")?.focus();
    });
    $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
    document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); $("main").scrollIntoView(); });
    const follow = () => { const before = state; state = readAddress(); show(before); };
    addEventListener("popstate", follow);
    addEventListener("hashchange", follow);
    drawStudies();
    if (!data.protocols.length) {
      for (const section of document.querySelectorAll("main > section")) section.hidden ||= !["missing", "studies"].includes(section.id);
      drawContents();
      return;
    }
    state = readAddress();
    show(null);
  }

  return {
    board(values) { data = values; start(); },
    row(file, values) { details.get(file)?.resolve(values); },
  };
})();
