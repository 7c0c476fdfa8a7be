
const $ = id => document.getElementById(id);
const escape = s => s.replace(/[&<>"]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}[c]));
const sign = {"": "", open: "●", part: "◐", declared: "=", closed: "–", self: "·"};
const word = {
  "": "policies do not decide", open: "every port", part: "in part", declared: "only declared ports", closed: "closed", self: "itself",
  allow: "open", deny: "closed", mixed: "for one address family only", depends: "depends on addresses that are not known", some: "for some pairs",
};
// told returns the word for a state. If the view or the matrix is limited to ports, "open" does not
// mean open at every port.
const told = state => state === "open" && (view.port || model.data.asked) ? word.allow : word[state];
const narrow = () => window.innerWidth < 720;
const plural = (n, one) => n.toLocaleString("en") + " " + one + (n === 1 ? "" : "s");
// short omits the middle of a text that is too long, because the names of a workload's pods differ at
// the end.
const short = (s, n) => s.length <= n ? s : s.slice(0, Math.ceil(n / 2) - 1) + "…" + s.slice(-Math.floor(n / 2));

const fields = {by: "", from: "", to: "", fromName: "", toName: "", port: "", seen: "", open: "", cell: ""};
let model, grid, view = {...fields}, rows = [], columns = [], cells = [], seen = [], pointed = "", at = null; // pointed and at: the cell or heading that the panel describes

// The fragment of the page's address contains the view. So a link keeps the view, and the browser's
// back button restores the one before.
function load() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const id in fields) view[id] = given.get(id) || (id === "by" ? model.data.by : "");
  if (!levels.includes(view.by)) view.by = model.data.by;
  if (!model.seen || !uses[view.seen]) view.seen = "";
}
function save(step) {
  const set = new URLSearchParams();
  for (const id in fields) if (view[id] && !(id === "by" && view.by === model.data.by)) set.set(id, view[id]);
  const depth = (history.state && history.state.depth || 0) + (step ? 1 : 0);
  history[step ? "pushState" : "replaceState"]({depth}, "", "#" + set);
  $("link").href = "#" + set;
}
// go changes the view. If step is true, the browser's back button can undo the change.
function go(change, step) {
  view = {...view, cell: "", ...change};
  save(step);
  draw();
}
const above = scope => scope.includes("/") ? scope.split("/")[0] : "";
function back() {
  if (history.state && history.state.depth) history.back();
  else go({from: above(view.from), to: above(view.to)}, true);
}

function fill() {
  const namespaces = side => model.namespaces(side).map(n => [n === "-" ? "nodes and outside" : n, n]);
  const options = (id, all, values) => $(id).replaceChildren(new Option(all, ""), ...values.map(([text, value]) => new Option(text, value)));
  for (const side of ["from", "to"]) options(side, "all namespaces", namespaces(side).concat(view[side].includes("/") ? [[view[side], view[side]]] : []));
  options("port", model.data.asked ? "all of these ports" : "all ports", model.data.ports.map(p => [p, p]));
  for (const id of ["by", "from", "to", "fromName", "toName", "port", "seen"]) if ($(id).value !== view[id]) $(id).value = view[id];
  for (const id of ["from", "to", "port"]) if ($(id).selectedIndex < 0) { $(id).value = ""; view[id] = ""; }
  $("open").checked = view.open !== "";
}

function draw() {
  fill();
  crumbs();
  model.at(view.port);
  rows = model.lines("from", view);
  columns = model.lines("to", view);
  cells = rows.map(r => columns.map(c => model.state(r, c)));
  seen = model.seen ? rows.map(r => columns.map(c => model.use(r, c))) : [];
  if (view.open || view.seen) {
    const has = rows.map((_, r) => columns.map((_, c) => wanted(r, c)));
    const keep = columns.map((_, c) => has.some(line => line[c])), kept = line => line.some(x => x);
    const cut = table => table.filter((_, r) => kept(has[r])).map(line => line.filter((_, c) => keep[c]));
    rows = rows.filter((_, r) => kept(has[r]));
    [cells, seen] = [cut(cells), cut(seen)];
    columns = columns.filter((_, c) => keep[c]);
  }
  const sum = {};
  for (const line of cells) for (const s of line) sum[s] = (sum[s] || 0) + 1;
  const empty = !rows.length || !columns.length;
  $("sum").textContent = empty ? "" : plural(rows.length, "row") + ", " + plural(columns.length, "column");
  $("word-open").textContent = told("open");
  sumSeen();
  for (const s of states) if (s) $("sum-" + s).textContent = (sum[s] || 0).toLocaleString("en");
  grid.kept = null;
  $("scroll").classList.toggle("empty", empty);
  grid.show(table());
  pointed = "";
  restore();
}

// wanted reports whether the filters by state and by flows select a cell.
const wanted = (r, c) => (!view.open || isOpen(cells[r][c])) && (!view.seen || (seen[r][c] & uses[view.seen]) > 0);

// mark returns the signs of what was seen, and heard the words for them. What is open in several pairs is
// used if it is in one of them.
const mark = use => (use & uses.used ? "✓" : use & uses.unused ? "○" : "") + (use & uses.tried ? "!" : "") + (use & uses.changed ? "≠" : "");
const heard = use => [use & uses.used ? "used" : use & uses.unused ? "never used in these flows" : "", use & uses.tried ? "closed ports were tried" : "", use & uses.changed ? "another verdict then" : ""].filter(t => t).join(", ");
const useAt = (r, c) => model.seen ? seen[r][c] : 0;
function sumSeen() {
  if (!model.seen) return;
  const sum = {used: 0, unused: 0, tried: 0, changed: 0};
  for (const line of seen) for (const use of line) {
    if (use & uses.used) sum.used++;
    else if (use & uses.unused) sum.unused++;
    if (use & uses.tried) sum.tried++;
    if (use & uses.changed) sum.changed++;
  }
  for (const id in sum) $("sum-" + id).textContent = sum[id].toLocaleString("en");
}

// restore shows the reasons of the cell in the address, or help if the address has no such cell.
function restore() {
  const [from, to] = view.cell.split(" → "), r = rows.findIndex(l => l.full === from), c = columns.findIndex(l => l.full === to);
  if (r < 0 || c < 0) return silent();
  point(r, c);
  grid.keep({r, c});
  grid.focus(r, c, {quiet: true});
}
function silent() {
  pointed = "";
  at = null;
  grid.mark(null);
  $("detail").className = "idle";
  $("detail").innerHTML = !rows.length || !columns.length ? "<p>Nothing matches the filters.</p>" :
    matchMedia("(pointer: coarse)").matches ? "<p>Touch a cell for the reasons; what is blue opens when you touch it again.</p>" :
    "<p>Point at a cell for the reasons; click to keep them. Namespaces, and workloads whose pods differ, open on a click; with Shift, it keeps their reasons.</p>" +
    (model.seen ? "<p>✓: used in the flows; ○: open, never used in them; !: closed ports were tried; ≠: the last flow got another verdict.</p>" : "") + "<p>Keys: arrows move, Enter opens, Space keeps, Escape closes or goes back.</p><p>A cell is blank where policies do not decide, as between two nodes.</p>";
}

// The functions below make the heading of a line: its name, after its namespace if the view has
// several.
const several = side => !view[side] || view[side] === "-";
const plain = (line, ns, name) => line.name === "*" ? short(line.ns, ns + name) + "/*" : (ns && line.ns ? short(line.ns, ns) + "/" : "") + short(line.name, name);
const label = (line, ns, name) => line.name === "*" ? escape(short(line.ns, ns + name)) + "<small>/*</small>" : (ns && line.ns ? "<small>" + escape(short(line.ns, ns)) + "/</small>" : "") + escape(short(line.name, name));
const parted = (list, k) => k > 0 && list[k].ns !== list[k - 1].ns && (list[k].name !== "*" || list[k - 1].name !== "*") ? " parted" : "";
const pen = document.createElement("canvas").getContext("2d");
const width = text => pen.measureText(text).width;
const widest = (list, of) => Math.ceil(list.reduce((most, o) => Math.max(most, width(of(o))), 0));

// table describes the table for the grid. Cells contain their ports if all columns fit, and otherwise
// signs. The headings of columns are horizontal if they fit.
function table() {
  // The lengths of namespaces and names in the headings of rows, and in those of columns.
  const small = narrow(), room = $("scroll").clientWidth - 2;
  const [ns, name, topNs, topName] = [several("from") && (small ? 6 : 18), small ? 14 : 30, several("to") && (small ? 6 : 12), small ? 14 : 22];
  pen.font = getComputedStyle(document.body).font;
  const side = Math.ceil(small ? Math.min(150, widest(rows, l => plain(l, ns, name)) + 16) : Math.max(96, widest(rows, l => plain(l, ns, name)) + 40));
  const texts = rows.length * columns.length > 2000 ? null : rows.map((r, i) => columns.map((c, j) => (cells[i][j] === "self" ? "·" : short(model.text(r, c), 18)) + (useAt(i, j) ? " " + mark(useAt(i, j)) : "")));
  const fits = width => width * columns.length <= room - side;
  let width = model.seen ? 40 : small ? 34 : 27; // room for the signs of flows
  const words = texts && Math.max(width, widest(texts.flat(), t => t) + 12), head = widest(columns, l => plain(l, topNs, topName)) + 16;
  const spoken = texts !== null && fits(words), level = fits(Math.max(spoken ? words : width, head));
  if (spoken) width = words;
  if (level) width = Math.max(width, head);
  return {
    rows: rows.length, columns: columns.length, side, width, height: small ? 34 : 27, top: level ? 30 : head + 8,
    rowHead: r => ({html: label(rows[r], ns, name), title: rows[r].full, class: rows[r].opens ? " opens" : "", first: parted(rows, r)}),
    columnHead: c => ({html: "<span>" + label(columns[c], topNs, topName) + "</span>", title: columns[c].full, class: parted(columns, c) + (level ? " level" : "") + (columns[c].opens ? " opens" : "")}),
    cell: (r, c) => ({
      html: spoken ? escape(texts[r][c]) : sign[cells[r][c]] + mark(useAt(r, c)),
      title: told(cells[r][c]) + (spoken && isOpen(cells[r][c]) ? ": " + texts[r][c] : "") + (useAt(r, c) ? ", " + heard(useAt(r, c)) : ""),
      class: (cells[r][c] || "none") + (useAt(r, c) & uses.tried ? " tried" : "") + (view.seen && !wanted(r, c) ? " dim" : "") + parted(columns, c) + (rows[r].opens || columns[c].opens ? " opens" : ""),
    }),
  };
}

function crumbs() {
  const path = side => {
    const scopes = ["", ...(view[side] ? [above(view[side]), view[side]].filter(s => s) : [])];
    return scopes.map((scope, i) => {
      const text = escape(scope === "" ? "all" : scope === "-" ? "nodes and outside" : scope.split("/").pop());
      return i === scopes.length - 1 ? `<b aria-current="location">${text}</b>` : `<button type="button" data-side="${side}" data-scope="${escape(scope)}">${text}</button>`;
    }).join(" › ");
  };
  // If the matrix is about one namespace, offer its two halves: flows into the namespace, and flows out
  // of it.
  const [about, more] = model.data.namespaces || [];
  const half = (from, to, text) => view.from === from && view.to === to ? "" : ` · <button type="button" data-from="${escape(from)}" data-to="${escape(to)}">${text} ${escape(about)}</button>`;
  $("crumbs").innerHTML = (view.from || view.to ? '<button type="button" id="back">‹ back</button> ' : "") + "from " + path("from") + " → to " + path("to") + (about && !more ? half("", about, "into") + half(about, "", "out of") : "");
}

const badge = (state, text) => `<span class="badge ${state}">${escape(text)}</span>`;
// why returns the HTML of a reason, with a line for each direction.
const why = text => escape(text).split("; ingress: ").map((t, i) => i ? "ingress: " + t : t).join("<br>");
function reasons(list, state) {
  return "<dl>" + list.map(a => {
    const of = a.verdict === "deny" ? "closed" : a.verdict === "allow" ? state : "part";
    return `<dt>${badge(of, word[a.verdict])} ${escape(a.ports)}</dt><dd>${why(a.why)}</dd>`;
  }).join("") + "</dl>";
}
function isolation(p, way, policies, ordered) {
  if (p.kind !== "pods") return "";
  return "<br>" + (policies ? "isolated for " + way + " by " + escape(policies.join(", ")) : "not isolated for " + way) + (ordered ? "; policies of other tiers: " + escape(ordered.join(", ")) : "");
}
const about = p => `<b>${escape(p.full)}</b>${p.about ? ": " + escape(p.about) : ""}`;
const ends = (from, to) => `<p class="ends">${about(from)}${isolation(from, "egress", from.egress, from.orderedEgress)}</p><p class="ends">${about(to)}${isolation(to, "ingress", to.ingress, to.orderedIngress)}</p>`;

// onePair returns the HTML of the reasons for one pair of leaves.
function onePair(i, j) {
  const kind = model.data.kinds[model.kind(i, j)], state = model.states[model.kind(i, j)], from = model.party("from", i), to = model.party("to", j);
  if (!kind.state) return "<p>Policies do not decide about this pair, or the matrix is not about it.</p>";
  return (kind.state === "self" ? "<p>A pod always reaches itself.</p>" : reasons(model.answers(kind.answers, view.port, [[i, j]]), state)) +
    (kind.ownNode && kind.ownNode.length ? "<h3>On the pod's own node</h3>" + reasons(model.answers(kind.ownNode, view.port, [[i, j]]), state) : "") + ends(from, to);
}

// manyPairs returns the HTML of groups of pairs. For each group, it has the reason of the first answer.
const mostGroups = 12, mostPairs = 3;
function manyPairs(groups) {
  const name = ([i, j]) => escape(model.party("from", i).full) + " → " + escape(model.party("to", j).full);
  const html = groups.slice(0, mostGroups).map(g => {
    const kind = model.data.kinds[g.kind], [first] = model.answers(kind.answers, view.port, g.pairs);
    const ports = view.port || g.state === "closed" || g.state === "self" ? told(g.state) : kind.text === "all" ? "every port" : kind.text;
    const more = g.pairs.length > mostPairs ? "<br>and " + (g.pairs.length - mostPairs).toLocaleString("en") + " more" : "";
    return `<dt>${badge(g.state, ports)} ${plural(g.pairs.length, "pair")}</dt><dd>${g.pairs.slice(0, mostPairs).map(name).join("<br>")}${more}${first ? `<p>${why(first.why)}</p>` : ""}</dd>`;
  });
  return "<dl>" + html.join("") + "</dl>" + (groups.length > mostGroups ? `<p>and ${plural(groups.length - mostGroups, "other reason")}: open the cell to see them.</p>` : "");
}

// times returns how often and when something was seen. Times are in UTC, as in the text above the table.
const stamp = t => new Date(t * 1000).toISOString().replace("T", " ").replace(".000Z", "");
const until = (first, last) => stamp(first) + " to " + (stamp(first).slice(0, 10) === stamp(last).slice(0, 10) ? stamp(last).slice(11) : stamp(last));
const often = (n, word) => n ? [word + " " + plural(n, "time")] : [];
const times = p => [...often(p.allowed, "allowed"), ...often(p.denied, "denied"), ...(p.last ? [p.first < p.last ? until(p.first, p.last) : stamp(p.last)] : [])].join(", ");

// seenText returns the HTML of what was seen in a cell.
const mostPorts = 20;
function seenText(row, column) {
  if (!model.seen) return "";
  const ports = model.portsSeen(row, column), use = model.use(row, column), items = ports.slice(0, mostPorts).map(p => {
    const what = p.own ? "on the pod's own node" : p.changed ? (p.open ? "open" : "closed") + " now: the flows may be from another version of the policies" : p.open ? "" : "closed, tried";
    return `<li><b>${(!p.open ? "!" : p.allowed ? "✓" : "") + (p.changed ? "≠" : "")}</b> ${escape(p.port)}: ${times(p)}${p.pairs > 1 ? ", in " + plural(p.pairs, "pair") : ""}${what ? "; " + what : ""}</li>`;
  });
  if (ports.length > mostPorts) items.push(`<li>and ${plural(ports.length - mostPorts, "other port")}</li>`);
  const never = row.leaves.length * column.leaves.length === 1 ? model.neverUsed(row.leaves[0], column.leaves[0]) : use & uses.used ? "" : use & uses.unused ? "anything that is open" : "";
  if (never) items.push(`<li><b>○</b> never used in these flows: ${escape(never)}</li>`);
  return items.length ? `<h3>Seen</h3><ul id="seen-list">${items.join("")}</ul>` : "";
}

// point shows the reasons of a cell, or the description of a heading.
function point(r, c) {
  const key = (r < 0 ? "" : rows[r].full) + " → " + (c < 0 ? "" : columns[c].full);
  if (key === pointed) return;
  pointed = key;
  at = {r, c};
  grid.mark(at);
  $("detail").className = view.cell ? "held" : "";
  $("detail").innerHTML = '<button type="button" id="close" aria-label="Close">✕</button>' + (r < 0 || c < 0 ? headText(r < 0 ? "to" : "from", r < 0 ? columns[c] : rows[r]) : cellText(rows[r], columns[c]));
  $("detail").scrollTop = 0;
}
function cellText(row, column) {
  const one = row.leaves.length === 1 && column.leaves.length === 1, groups = one ? [] : model.groups(row, column);
  const state = model.state(row, column), text = model.text(row, column);
  return `<h2>${escape(row.full)} → ${escape(column.full)}</h2><p>${badge(state || "none", sign[state] + " " + told(state))} ${isOpen(state) && text !== "all" && !view.port ? escape(text.replace("=", "")) + (/ of \d+$/.test(text) ? " pairs" : "") : ""}</p>` +
    (row.opens || column.opens ? '<p><button type="button" id="below">open ▸</button></p>' : "") + seenText(row, column) + (one ? onePair(row.leaves[0], column.leaves[0]) : manyPairs(groups));
}
function headText(side, line) {
  const p = line.party, list = line.leaves.map(i => model.party(side, i));
  return `<h2>${escape(line.full)}</h2>` + (line.opens ? '<p><button type="button" id="below">open ▸</button></p>' : "") +
    (p ? `<p class="ends">${about(p)}${isolation(p, "egress", p.egress, p.orderedEgress)}${isolation(p, "ingress", p.ingress, p.orderedIngress)}</p>` :
      "<ul>" + list.slice(0, 30).map(q => `<li>${escape(q.name)}${q.about ? "<br><small>" + escape(q.about) + "</small>" : ""}</li>`).join("") + "</ul>" + (list.length > 30 ? `<p>and ${list.length - 30} more</p>` : ""));
}

// openPlace expands a cell or a heading. If it cannot be expanded, or if keep is true, its reasons stay
// shown instead. On a touch screen, the first touch only shows the reasons.
function openPlace(r, c, {touch, keep}) {
  const row = rows[r], column = columns[c], key = (row ? row.full : "") + " → " + (column ? column.full : "");
  const change = {};
  if (row && row.opens) change.from = row.opens;
  if (column && column.opens) change.to = column.opens;
  const shown = pointed === key;
  if ((change.from || change.to) && !keep && (shown || !touch)) return go(change, true);
  if (r < 0 || c < 0) return point(r, c);
  view.cell = view.cell === key ? "" : key;
  save(false);
  grid.keep(view.cell ? {r, c} : null);
  pointed = "";
  point(r, c);
}
function release() {
  view.cell = "";
  save(false);
  grid.keep(null);
  silent();
}

function listen() {
  for (const id of ["by", "from", "to", "port", "seen"]) $(id).addEventListener("change", () => go({[id]: $(id).value}, true));
  for (const id of ["fromName", "toName"]) $(id).addEventListener("input", () => go({[id]: $(id).value}, false));
  $("open").addEventListener("change", () => go({open: $("open").checked ? "1" : ""}, true));
  $("swap").addEventListener("click", () => go({from: view.to, to: view.from, fromName: view.toName, toName: view.fromName}, true));
  $("reset").addEventListener("click", () => go({...fields, by: model.data.by}, true));
  $("filters").addEventListener("submit", e => e.preventDefault());
  $("crumbs").addEventListener("click", e => {
    if (e.target.id === "back") back();
    else if (e.target.dataset.to !== undefined) go({from: e.target.dataset.from, to: e.target.dataset.to}, true);
    else if (e.target.dataset.side) go({[e.target.dataset.side]: e.target.dataset.scope}, true);
  });
  $("detail").addEventListener("click", e => {
    if (e.target.id === "close") { const {r, c} = grid.at; release(); grid.focus(r, c, {quiet: true}); }
    if (e.target.id === "below") openPlace(at.r, at.c, {});
  });
  window.addEventListener("popstate", () => { load(); draw(); });
  new ResizeObserver(resized).observe($("scroll"));
  window.addEventListener("beforeprint", printAll);
  window.addEventListener("afterprint", () => $("print").replaceChildren());
}

// resized draws the table for its new width, and scrolls the focused cell into view, because the panel
// of reasons may now cover it.
let size = 0;
function resized() {
  if ($("scroll").clientWidth === size) grid.render();
  else grid.show(table());
  size = $("scroll").clientWidth;
  if ($("grid").contains(document.activeElement)) grid.reveal();
}

// printAll draws the whole table, because the grid only has elements for visible cells.
const mostPrinted = 40000;
function printAll() {
  for (const notes of document.querySelectorAll(".notes")) notes.open = true;
  if (rows.length * columns.length > mostPrinted) { $("print").innerHTML = "<caption>This table is too large to print: use the filters.</caption>"; return; }
  const html = ["<thead><tr><th>from ↓ to →</th>", ...columns.map(c => `<th><span>${label(c, 18, 30)}</span></th>`), "</tr></thead><tbody>"];
  rows.forEach((row, r) => html.push(`<tr><th>${label(row, 18, 30)}</th>`, ...columns.map((_, c) => `<td class="${cells[r][c] || "none"}">${sign[cells[r][c]]}${mark(useAt(r, c))}</td>`), "</tr>"));
  $("print").innerHTML = html.join("") + "</tbody>";
}

async function start() {
  if (narrow()) $("more").open = false;
  model = new Model(await read($("data").textContent));
  grid = new Grid($("scroll"), $("grid"), {
    point: (r, c) => { if (!view.cell) point(r, c); },
    open: openPlace, escape: () => { if (view.cell) release(); else if (view.from || view.to) back(); },
  });
  if (model.data.by === "pod") $("by").options[2].text = "pods";
  load();
  save(false);
  draw();
  listen();
  performance.mark("drawn");
}
start().catch(err => { $("detail").textContent = "The page cannot show its data: " + err.message + ". It needs a browser of 2023 or newer."; });
